from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from isodense.evaluate.averages import gain_over_labels, lowest, over_labels
from isodense.evaluate.intervals import interval, named_weighted

# Of eight labels, that of fewest training prompts first; the last has most held-out prompts, too.
LABELS = np.split(np.arange(20), [1, 3, 4, 5, 6, 8, 9])
MEANS = np.array([0.1, 0.9, 0.5, 0.3, 0.7, 0.6, 0.2, 1.0])


def spread(means: np.ndarray) -> np.ndarray:
    """Return a value for each prompt, so that labels have these means."""
    return np.repeat(means, [len(rows) for rows in LABELS])


def test_every_label_counts_alike_whatever_the_number_of_its_prompts():
    found = over_labels("reward", spread(MEANS), LABELS)
    assert spread(MEANS).mean() > 0.7
    expected = {
        "over_labels": MEANS.mean(),
        "rarer_half": (0.1 + 0.9 + 0.5 + 0.3) / 4,
        "rarest_quarter": (0.1 + 0.9) / 2,
        "commonest_quarter": (0.2 + 1.0) / 2,
        "worst_quarter": (0.1 + 0.2) / 2,
    }
    names = [f"reward_{part}{end}" for part in expected for end in ("", "_low", "_high")]
    assert list(found) == names
    for part, value in expected.items():
        assert found[f"reward_{part}"] == pytest.approx(value)
        assert found[f"reward_{part}_low"] < value < found[f"reward_{part}_high"]
    reference = stats.ttest_1samp(MEANS[:4], 0).confidence_interval()
    assert found["reward_rarer_half_low"] == pytest.approx(reference.low, abs=1e-5)


def test_of_a_share_every_interval_is_among_shares():
    found = over_labels("pass_at_1", spread(np.array([0, 0, 1, 1, 1, 1, 1, 1.0])), LABELS, True)
    assert all(0 <= value <= 1 for value in found.values())
    assert found["pass_at_1_worst_quarter"] == found["pass_at_1_rarest_quarter"] == 0
    assert found["pass_at_1_worst_quarter_high"] > 0.5  # two labels say little


@pytest.mark.parametrize(("count", "parts"), [(1, 0), (2, 2), (3, 2), (4, 5)])
def test_few_labels_have_no_quarters(count: int, parts: int):
    labels = [np.array([row]) for row in range(count)]
    assert len(over_labels("reward", np.arange(count, dtype=float), labels)) == 3 * parts
    assert len(gain_over_labels("reward", np.ones(count), np.ones(count), labels)) == 3 * parts


def test_a_gain_is_the_difference_of_the_policies_and_of_the_worst_quarter_of_each():
    after = MEANS[::-1] + 0.05
    base, trained = spread(MEANS), spread(after)
    gain = gain_over_labels("reward", base, trained, LABELS)
    before, then = (over_labels("reward", values, LABELS) for values in (base, trained))
    for part in ("over_labels", "rarer_half", "rarest_quarter", "commonest_quarter"):
        change = then[f"reward_{part}"] - before[f"reward_{part}"]
        assert gain[f"reward_{part}"] == pytest.approx(change, abs=2e-6)
    assert gain["reward_rarest_quarter"] == pytest.approx((1.05 + 0.25 - 0.1 - 0.9) / 2)
    assert gain["reward_worst_quarter"] == pytest.approx(0.05)  # the same means, raised


def test_what_is_not_known_of_a_label_is_left_out():
    means = MEANS.copy()
    means[[0, 4]] = np.nan
    found = over_labels("reward", spread(means), LABELS)
    assert found["reward_over_labels"] == pytest.approx(np.nanmean(means))
    assert found["reward_rarest_quarter"] == 0.9
    assert found["reward_worst_quarter"] == pytest.approx((0.2 + 0.3) / 2)
    unknown = over_labels("reward", spread(means * np.nan), LABELS)
    assert set(unknown.values()) == {None}


def test_the_interval_of_the_worst_covers_the_choice_of_the_worst():
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(2000, 40))
    found = np.array([lowest(values, 10) for values in drawn])
    assert found.mean(axis=1) == pytest.approx(np.sort(drawn, axis=1)[:, :10].mean(axis=1))
    errors = found.std(axis=1, ddof=1) / np.sqrt(40)
    assert errors.mean() == pytest.approx(found.mean(axis=1).std(), rel=0.1)


def test_equal_weights_give_the_t_interval():
    values = np.append(np.random.default_rng(0).normal(size=30), np.nan)
    found = named_weighted("reward_evened", values, np.full(31, 3.0))
    assert tuple(found.values()) == pytest.approx(interval(values), abs=2e-6)
    assert list(found) == ["reward_evened", "reward_evened_low", "reward_evened_high"]


def test_the_interval_of_a_weighted_mean_covers_it():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        density = rng.gamma(2.0, size=200)
        values, weights = density + rng.normal(size=200), np.exp(-density)
        found = named_weighted("x", values, weights)
        inside += found["x_low"] < 1.0 < found["x_high"]  # of the mean of a gamma(2, 1/2)
    assert inside / 400 == pytest.approx(0.95, abs=0.03)


def test_a_weighted_share_is_a_share_and_its_interval_knows_what_the_weights_are_worth():
    solved = np.repeat([0.0, 1.0], 50)
    even = named_weighted("p", solved, np.ones(100), share=True)
    assert tuple(even.values()) == pytest.approx((0.5, 0.404, 0.596), abs=1e-3)
    uneven = named_weighted("p", solved, np.tile([1.0, 9.0], 50), share=True)
    assert uneven["p"] == pytest.approx(0.5)
    assert uneven["p_high"] > even["p_high"]
    none = named_weighted("p", np.zeros(8), np.arange(1, 9.0), share=True)
    assert (none["p"], none["p_low"]) == (0, 0)
    assert none["p_high"] > 0.3


def test_few_known_values_have_no_interval():
    known = named_weighted("x", np.array([2.0, np.nan]), np.ones(2))
    assert list(known.values()) == [2, None, None]
    assert set(named_weighted("x", np.full(2, np.nan), np.ones(2)).values()) == {None}
