"""Balance of weights and labels, against counting, drawing and other people's formulas."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from isodense.density.balance import (
    effective_sample_size,
    label_statistics,
    rank_agreement,
    weight_statistics,
)


def test_effective_sample_size_by_hand():
    assert effective_sample_size(np.ones(7)) == pytest.approx(7)
    assert effective_sample_size(np.array([1.0, 0, 0])) == pytest.approx(1)


def test_weight_statistics_by_hand():
    report = weight_statistics(np.array([0.4, 0.3, 0.2, 0.1]), np.array([0, 1, 1, 2]))
    assert report == {
        "prompts": 4,
        "ess": 3.333,
        "ess_share": 0.833333,
        "max_over_mean": 1.6,
        "min_over_mean": 0.4,
        "duplicate_clusters": 1,
        "prompts_in_duplicate_clusters": 2,
        "duplicates_mass_uniform": 0.5,
        "duplicates_mass": 0.5,
    }


def test_the_largest_weight_over_the_mean_is_the_draws_of_an_epoch():
    weights = np.array([0.5, 0.3, 0.1, 0.1])
    drawn = np.random.default_rng(0).multinomial(4, weights, size=20000)[:, 0].mean()
    assert weight_statistics(weights, np.arange(4))["max_over_mean"] == pytest.approx(drawn, 0.02)


def test_ranks_agree_reverse_or_mean_nothing():
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    assert rank_agreement(weights, weights**3) == 1
    assert rank_agreement(weights, weights[::-1]) == -1
    assert rank_agreement(weights, np.full(4, 0.25)) is None
    assert rank_agreement(np.full(4, 0.25) + 1e-12 * weights, weights) is None
    assert rank_agreement(np.ones(1), np.ones(1)) is None


def test_label_statistics_by_hand():
    labels = ["a"] * 6 + ["b"] * 2
    even = np.array([1 / 12] * 6 + [1 / 4] * 2)
    report = label_statistics(even, labels)
    assert report["entropy"] == pytest.approx(1)
    assert report["gap"] == pytest.approx(1)
    assert report["kl_to_even"] == 0
    assert report["kl_to_even_uniform"] == pytest.approx(entropy([6, 2], [1, 1]), abs=1e-6)
    assert report["rarest_quarter_uniform"] == pytest.approx(0.25)
    assert report["rarest_quarter"] == pytest.approx(0.5)
    assert label_statistics(np.full(8, 1 / 8), labels)["gap"] == pytest.approx(0)
    worse = np.array([1 / 6.5] * 6 + [0.25 / 6.5] * 2)
    assert label_statistics(worse, labels)["gap"] < 0


def test_a_quarter_of_the_labels_is_rarest_and_every_digit_is_kept():
    labels = [name for name, count in zip("abcdefgh", range(1, 9), strict=True)
              for _ in range(count)]  # fmt: skip
    report = label_statistics(np.full(36, 1 / 36), labels)
    assert report["rarest_quarter"] == round(3 / 36, 6)  # of a, once, and b, twice
    shares = np.arange(1, 9) / 36
    assert report["entropy"] == round(entropy(shares) / np.log(8), 6)
    assert report["kl_to_even"] == round(entropy(shares, np.full(8, 1 / 8)), 6)
    assert report["labels_in_256"] == round(float((1 - (1 - shares) ** 256).sum()), 3)
    assert report["labels_in_256_best"] == round(8 * (1 - (7 / 8) ** 256), 3)
    better = np.repeat(np.sqrt(shares) / np.arange(1, 9), np.arange(1, 9))
    masses = np.sqrt(shares) / np.sqrt(shares).sum()
    gap = 1 - entropy(masses, np.full(8, 1 / 8)) / entropy(shares, np.full(8, 1 / 8))
    assert label_statistics(better / better.sum(), labels)["gap"] == round(gap, 6)


def test_two_uneven_labels_have_the_entropy_of_a_coin():
    report = label_statistics(np.full(8, 1 / 8), ["a"] * 6 + ["b"] * 2)
    assert report["entropy"] == round(entropy([0.75, 0.25], base=2), 6)


def test_one_label_is_even_and_raises_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = label_statistics(np.full(3, 1 / 3), ["a"] * 3)
    assert (report["entropy"], report["kl_to_even"], report["labels_in_256"]) == (1, 0, 1)
    assert "gap" not in report


def test_the_labels_of_256_draws_are_those_that_drawing_finds():
    rng = np.random.default_rng(0)
    labels = [f"label {rank}" for rank in range(200) for _ in range(1 + 400 // (rank + 1))]
    weights = rng.random(len(labels))
    weights /= weights.sum()
    report = label_statistics(weights, labels)
    codes = np.unique(labels, return_inverse=True)[1]
    for name, p in (("", weights), ("_uniform", None)):
        draws = [len(set(codes[rng.choice(len(codes), 256, p=p)])) for _ in range(1500)]
        assert report[f"labels_in_256{name}"] == pytest.approx(np.mean(draws), abs=0.7)
    even = [len(set(rng.integers(200, size=256).tolist())) for _ in range(1500)]
    assert report["labels_in_256_best"] == pytest.approx(np.mean(even), abs=0.7)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), kinds=st.integers(1, 20))
def test_label_statistics_stay_in_their_bounds(seed, n, kinds):
    rng = np.random.default_rng(seed)
    labels = [f"é{code}" for code in rng.integers(kinds, size=n)]
    weights = rng.dirichlet(np.full(n, 0.3)) + 1e-9
    report = label_statistics(weights / weights.sum(), labels)
    json.dumps(report, allow_nan=False)
    assert report["labels"] == len(set(labels))
    for name in ("", "_uniform"):
        assert 0 <= report[f"entropy{name}"] <= 1 + 1e-6
        assert 0 <= report[f"kl_to_even{name}"] <= np.log(report["labels"]) + 1e-6
        assert 1 <= report[f"labels_in_256{name}"] + 1e-3
        assert report[f"labels_in_256{name}"] <= report["labels_in_256_best"] + 1e-3
    assert report["labels_in_256_best"] <= min(256, report["labels"])


def test_the_order_of_prompts_changes_no_statistic():
    rng = np.random.default_rng(1)
    labels = rng.choice(list("abcdefghij"), 300, p=np.arange(1, 11) / 55)
    weights = rng.dirichlet(np.ones(300))
    order = rng.permutation(300)
    one = label_statistics(weights, labels.tolist())
    other = label_statistics(weights[order], labels[order].tolist())
    assert one == pytest.approx(other, abs=2e-6)
