from __future__ import annotations

import numpy as np
import pytest

from isodense.pipeline.errors import ArtifactError, TrainingError
from isodense.reward.scoring.check import (
    accuracy,
    compare,
    is_weak,
    no_signal,
    over,
    require_not_weak,
    summary,
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


def checked(reward: np.ndarray, length: np.ndarray) -> dict[str, float]:
    """Return the manifest's check of outcomes: 1 where a rule is right, -1 where it is wrong."""
    return summary(compare(reward, length, np.ones(1)))


def outcomes(right: int, of: int, first: bool = True) -> np.ndarray:
    made = np.where(np.arange(of) < right, 1, -1)
    return made if first else made[::-1]


@pytest.mark.parametrize(
    ("reward", "length", "of", "weak"),
    [
        (200, 200, 200, False),  # perfect, and so is length
        (20, 20, 20, False),
        (11, 11, 12, False),  # one wrong of few, and length no worse
        (18, 10, 20, False),  # 0.9 against 0.5 on 20 pairs
        (104, 100, 200, True),  # 0.52 against 0.5
        (10, 10, 20, True),  # a coin
        (2, 1, 2, True),  # too few pairs to say
        (130, 130, 200, True),  # length itself
        (1300, 1300, 2000, True),
        (40, 100, 200, True),  # worse than chance
        (150, 180, 200, True),  # better than chance, worse than length
    ],
)
def test_a_reward_is_weak_unless_pairs_show_it_is_not(reward, length, of, weak):
    check = checked(outcomes(reward, of), outcomes(length, of))
    assert is_weak(check) is weak


@pytest.mark.parametrize("size", [5, 20, 200])
def test_a_coin_is_weak(size: int):
    rng = np.random.default_rng(0)
    passed = sum(not is_weak(checked(*rng.choice([1, -1], (2, size)))) for _ in range(1000))
    assert passed / 1000 < 0.05


def test_a_weak_reward_is_refused_with_all_numbers():
    check = checked(outcomes(104, 200), outcomes(100, 200, first=False))
    with pytest.raises(TrainingError, match=r"52\.0%(.|\n)*50\.0%(.|\n)*on_weak_reward"):
        require_not_weak({"check": check}, "models/reward")


def test_a_better_reward_passes_and_an_unchecked_one_does_not():
    require_not_weak({"check": checked(outcomes(18, 20), outcomes(10, 20))}, "models/reward")
    require_not_weak({"check": {"sampled": {}}}, "models/reward")
    for check in ({}, {"heldout": 0.9, "length_only": 0.5}):
        with pytest.raises(ArtifactError, match="dvc repro reward"):
            require_not_weak({"check": check}, "models/reward")


def test_no_signal_in_the_sample_is_said():
    found = {"prompts": 32, "never_solved": 1.0, "always_solved": 0.0}
    silent = no_signal({"check": {"sampled": found | {"frac_reward_zero_std": 1.0}}})
    assert "no group of 32 prompts had two different rewards (never solved: 100%" in silent
    assert no_signal({"check": {"sampled": found | {"frac_reward_zero_std": 0.9}}}) is None
    assert no_signal({"check": {"heldout": 0.9}}) is None
