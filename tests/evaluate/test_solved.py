"""pass@k is the share of subsets of k completions in which one is solved."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from isodense.evaluate.solved import pass_at, sizes


@pytest.mark.parametrize("generations", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_solved_completion(generations):
    for solved, k in itertools.product(range(generations + 1), range(1, generations + 1)):
        marks = [True] * solved + [False] * (generations - solved)
        subsets = list(itertools.combinations(marks, k))
        share = np.mean([any(subset) for subset in subsets])
        assert pass_at(np.array([solved]), generations, k)[0] == pytest.approx(share, abs=1e-12)


def test_pass_at_k_holds_for_thousands_of_completions():
    # (1 - 1/2000) to 1 - C(1999, 1000) / C(2000, 1000) = 1000 / 2000
    assert pass_at(np.array([1]), 2000, 1000)[0] == pytest.approx(0.5, abs=1e-9)
    assert pass_at(np.array([0, 2000]), 2000, 2000).tolist() == [0.0, 1.0]


def test_it_is_reported_for_powers_of_two_and_for_all():
    assert [sizes(count) for count in (1, 2, 4, 6)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 6]]
