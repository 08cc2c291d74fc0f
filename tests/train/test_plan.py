from __future__ import annotations

import numpy as np
import pytest

from isodense.pipeline.errors import TrainingError
from isodense.train.plan import make_plan


def test_a_plan_follows_the_weights():
    weights = np.array([0.5, 0.25, 0.125, 0.125])
    plan = make_plan(weights, 40_000, seed=3)
    shares = np.bincount(plan.rows, minlength=4) / 40_000
    np.testing.assert_allclose(shares, weights, atol=0.01)
    assert plan.skipped == 0


def test_a_plan_without_replacement_repeats_no_prompt_and_a_mix_reaches_all():
    weights = np.array([0.5, 0.25, 0.25, 0.0])
    once = make_plan(weights, 300, seed=3, replacement=False)
    assert [set(part) for part in np.split(once.rows, 100)] == [{0, 1, 2}] * 100
    mixed = make_plan(weights, 40_000, seed=3, uniform=0.4)
    shares = np.bincount(mixed.rows, minlength=4) / 40_000
    np.testing.assert_allclose(shares, [0.4, 0.25, 0.25, 0.1], atol=0.01)


def test_passing_over_a_prompt_leaves_the_odds_of_the_others():
    weights = np.array([0.5, 0.3, 0.2])
    asked: list[int] = []

    def fits(row: int) -> bool:
        asked.append(row)
        return row != 0

    plan = make_plan(weights, 20_000, seed=3, fits=fits)
    shares = np.bincount(plan.rows, minlength=3) / 20_000
    np.testing.assert_allclose(shares, [0, 0.6, 0.4], atol=0.02)
    assert plan.skipped == pytest.approx(20_000, rel=0.1)
    assert sorted(asked) == [0, 1, 2]


def test_a_longer_plan_begins_with_the_shorter_one():
    weights = np.random.default_rng(0).random(100)
    one = make_plan(weights, 64, seed=1, fits=lambda row: row % 3 > 0)
    two = make_plan(weights, 160, seed=1, fits=lambda row: row % 3 > 0)
    assert np.array_equal(one.rows, two.rows[:64])


def test_prompts_that_are_all_too_long_end_the_search():
    with pytest.raises(TrainingError, match=r"raise train\.max_prompt_tokens"):
        make_plan(np.ones(5), 10, seed=0, fits=lambda row: False)
