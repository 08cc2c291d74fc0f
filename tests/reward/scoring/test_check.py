from __future__ import annotations

import numpy as np
import pytest

from isodense.pipeline.errors import ArtifactError, TrainingError
from isodense.reward.scoring.check import (
    accuracy,
    compare,
    over,
    require_better_than_length,
    wilson,
)


def test_wilson_gives_the_textbook_interval():
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == pytest.approx(1)


def test_a_tie_counts_one_half():
    assert accuracy(np.array([1.0, -2.0, 0.0, 0.0]))["accuracy"] == 0.5
    assert accuracy(np.array([1.0, 0.0]))["accuracy"] == 0.75


def test_the_difference_of_two_rules_is_over_the_same_pairs():
    reward, length = np.array([1, 1, 1, -1]), np.array([1, -1, -1, 1])
    assert over(reward, length)["difference"] == 0.25
    same = over(reward, reward)
    assert same["difference"] == 0
    assert same["low"] == -same["high"] < 0
    one = over(np.array([1.0]), np.array([-1.0]))
    assert one["difference"] == 1
    assert one["low"] < 0 < one["high"] <= 1


def test_the_interval_of_the_difference_is_that_of_agresti_and_min():
    """Of 20 pairs, reward alone is right in 8 and length alone in 2; each cell gets one half.

    By hand, with z = 1.96: (8 − 2) / 22 ± z √((8.5 + 2.5) − 6² / 22) / 22.
    """
    reward = np.array([1] * 8 + [-1] * 2 + [1] * 10)
    length = np.array([-1] * 8 + [1] * 2 + [1] * 10)
    found = over(reward, length)
    assert found["difference"] == pytest.approx(0.3)
    assert (found["low"], found["high"]) == pytest.approx((0.00011, 0.54534), abs=1e-5)


@pytest.mark.parametrize("size", [20, 200])
def test_the_interval_of_the_difference_covers_the_truth(size: int):
    """Reward and length are right together in 50%, one alone in 25% and 15%: truth 0.1."""
    rng = np.random.default_rng(0)
    cells = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    covered = 0
    for _ in range(1000):
        reward, length = cells[rng.choice(4, size, p=[0.5, 0.25, 0.15, 0.1])].T
        found = over(reward, length)
        covered += found["low"] <= 0.1 <= found["high"]
    assert 0.93 <= covered / 1000 <= 0.99


def test_length_prefers_what_wins_on_the_training_pairs():
    margin, length = np.array([1.0, 1.0, -1.0]), np.array([5, -3, -2])
    longer = compare(margin, length, np.array([4, 4, -1]))
    assert longer["length_only"]["prefers"] == "longer"
    assert longer["length_only"]["accuracy"] == pytest.approx(1 / 3)
    assert longer["over_length"]["difference"] == pytest.approx(1 / 3)
    shorter = compare(margin, length, np.array([-4, -4, 1]))
    assert shorter["length_only"]["prefers"] == "shorter"
    assert shorter["length_only"]["accuracy"] == pytest.approx(2 / 3)


def test_a_few_right_answers_do_not_beat_chance():
    none = np.zeros(1)
    few, many = compare(np.ones(3), np.ones(3), none), compare(np.ones(30), np.ones(30), none)
    assert few["heldout"]["accuracy"] == many["heldout"]["accuracy"] == 1
    assert (few["beats_chance"], many["beats_chance"]) == (False, True)


@pytest.mark.parametrize("heldout", [0.55, 0.6])
def test_a_reward_no_better_than_length_is_refused_with_both_numbers(heldout: float):
    manifest = {"check": {"heldout": heldout, "length_only": 0.6}}
    with pytest.raises(TrainingError, match=rf"{heldout:.1%}(.|\n)*60\.0%(.|\n)*on_weak_reward"):
        require_better_than_length(manifest, "models/reward")


def test_a_better_reward_passes_and_an_unchecked_one_does_not():
    require_better_than_length({"check": {"heldout": 0.61, "length_only": 0.6}}, "models/reward")
    with pytest.raises(ArtifactError, match="dvc repro reward"):
        require_better_than_length({}, "models/reward")
