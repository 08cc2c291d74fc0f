"""The tree finds what cumulative sums find, whatever was changed before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodense.sampling import sum_tree
from isodense.sampling.sum_tree import SumTree


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=300).filter(any),
    st.lists(st.lists(st.integers(0, 299), max_size=9, unique=True), max_size=5),
    st.sampled_from([2, 3, 64]),
)
def test_every_number_falls_where_cumulative_sums_say(weights, changes, fan):
    """Whole numbers, so that sums are exact in any order."""
    weights = np.array(weights, dtype=np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sum_tree, "FAN", fan)
        tree = SumTree(weights.copy())
        for rows in changes:
            rows = np.array([row for row in rows if row < len(weights)], dtype=np.int64)
            factors = rows % 3.0
            weights[rows] *= factors
            tree.multiply(rows, factors)
        assert tree.total == weights.sum()
        for place in range(int(tree.total)):
            row = np.searchsorted(np.cumsum(weights), place + 0.5, side="right")
            assert tree.find((place + 0.5) / tree.total) == row


@pytest.mark.parametrize("count", [1, 63, 64, 65, 4096, 4097])
def test_the_last_number_below_one_falls_on_the_last_weight_above_zero(count):
    weights = np.random.default_rng(count).random(count)
    weights[count // 2 + 1 :] = 0
    assert SumTree(weights).find(np.nextafter(1, 0)) <= count // 2
    assert SumTree(weights).find(0.0) == 0
    weights[0] = 0
    if weights.any():
        assert SumTree(weights).find(0.0) == 1


def test_changed_weights_are_multiplied():
    tree = SumTree(np.array([0.0, 2.0, 5.0] + [1.0] * 97))
    tree.multiply(np.array([1, 2, 99]), np.array([3.0, 0.0, 0.5]))
    assert tree.total == 6 + 96 + 0.5
    assert [tree.find(place / tree.total) for place in (5.9, 6.1, 101.9, 102.1)] == [1, 3, 98, 99]


@pytest.mark.parametrize("count", [3, 70, 5000])
def test_a_share_that_rounds_up_to_the_total_falls_on_a_weight_above_zero(count):
    """Below the smallest number there is only 0: 0.7 of it is itself."""
    weights = np.zeros(count)
    weights[1] = 5e-324
    assert SumTree(weights).find(0.7) == 1
    weights[count - 2] = 5e-324
    assert SumTree(weights).find(0.9) == count - 2


def test_it_keeps_the_weights_that_it_was_given():
    weights = np.ones(70)
    SumTree(weights).multiply(np.arange(70), 0.0)
    assert weights.sum() == 70
