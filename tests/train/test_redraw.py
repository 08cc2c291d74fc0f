"""Redrawing moves what is learnt towards the weights, by draws that the trainer really uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isodense.pipeline.errors import TrainingError
from isodense.prompts.reader import PromptSet
from isodense.train.grpo import make_trainer
from isodense.train.params import TrainParams
from isodense.train.plan import make_plan
from isodense.train.realised import KEY, Signals, realised
from isodense.train.redraw import CAP, Redraw, drawn_plan, factors, strata
from isodense.train.settings import draws_at_once, draws_needed, make_config
from tests.rl import SECTIONS, write_inputs

MANY = 1e9  # groups, so that the prior does not matter


@pytest.mark.parametrize(
    ("mass", "signal", "expected"),
    [
        ([0.5, 0.5], [0.25, 1.0], [1.6, 0.4]),
        ([0.1, 0.3, 0.6], [0.5, 0.5, 0.5], [1, 1, 1]),
        ([0.1, 0.9], [0.0, 1.0], [CAP, 0.7 / 0.9]),
        ([0.9, 0.1], [0.1, 1.0], [(1 - 0.1 / CAP) / 0.9, 1 / CAP]),
        ([0.2, 0.8], [0.0, 0.0], [1, 1]),
    ],
)
def test_a_stratum_that_teaches_half_is_drawn_twice_as_often_within_bounds(mass, signal, expected):
    many = np.full(len(mass), MANY)
    found = factors(np.array(mass), many, many * signal)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_few_groups_say_little():
    nothing_yet = factors(np.array([0.5, 0.5]), np.zeros(2), np.zeros(2))
    few = factors(np.array([0.5, 0.5]), np.array([2.0, 2.0]), np.array([0.0, 2.0]))
    assert nothing_yet.tolist() == [1, 1]
    assert 1 < few[0] < 1.5


def crowd(count: int = 400) -> tuple[PromptSet, np.ndarray, np.ndarray]:
    """Return prompts of two labels, their odds, and their density, which falls with the row."""
    rows = [{"id": f"{n:032x}", "label": "rare" if n % 4 else "common"} for n in range(count)]
    odds = np.linspace(1, 3, count)
    return PromptSet(rows), odds / odds.sum(), -np.arange(float(count))


def simulated(redraw: Redraw | None, plan: np.ndarray, taught: np.ndarray) -> list[dict[str, Any]]:
    """Return the log of a run of 8 draws a step, whose groups have a signal at known rates."""
    rng, history = np.random.default_rng(5), []
    for step in range(0, len(plan), 8):
        numbers = range(step, step + 8)
        rows = [redraw.row(n, history) for n in numbers] if redraw else plan[numbers].tolist()
        signal = (rng.random(8) < taught[rows]).astype(float).tolist()
        history.append({"reward": 0.5, KEY: {"rows": rows, "signal": signal, "skipped": 0}})
    return history


@pytest.mark.parametrize("by", ["decile", "label"])
def test_what_is_learnt_follows_the_weights(by: str):
    """The most isolated decile, and one label, has a signal in a quarter of its groups."""
    prompts, odds, density = crowd()
    groups = strata(by, density, prompts)
    weak = groups[0]
    taught = np.ones(len(prompts))
    taught[weak] = 0.25
    plan = make_plan(odds, 1600, seed=3)
    redraw = Redraw(prompts.rows, odds, groups, 1600, 8, 3, lambda _: True)
    end = "" if by == "decile" else "_over_labels"
    tables, metrics = {}, {}
    for name, one in {"off": None, "on": redraw}.items():
        history = simulated(one, plan.rows, taught)
        table, metrics[name] = realised(history, odds, density, prompts)
        tables[name] = next(row for row in table if row["kind"] == by)
    off, on = (metrics[name][f"realised_total_variation{end}"] for name in ("off", "on"))
    assert on < off / 2
    nominal = tables["off"]["nominal_share"]
    assert tables["off"]["realised_share"] < 0.5 * nominal
    assert tables["on"]["realised_share"] == pytest.approx(nominal, rel=0.25)
    assert 1.8 * nominal < tables["on"]["draw_share"] <= CAP * nominal
    # Within the stratum, as the weights say: these rise with the row.
    drawn = np.bincount(drawn_plan(history).rows, minlength=len(prompts))[weak]
    _, upper = np.array_split(np.arange(len(weak)), 2)
    expected = odds[weak][upper].sum() / odds[weak].sum()
    assert drawn[upper].sum() / drawn.sum() == pytest.approx(expected, abs=0.07)


def test_before_anything_is_known_the_draws_are_those_of_the_plan():
    prompts, odds, density = crowd()
    redraw = Redraw(
        prompts.rows, odds, strata("decile", density, prompts), 64, 8, 3, lambda _: True
    )
    assert [redraw.row(n, []) for n in range(64)] == make_plan(odds, 64, seed=3).rows.tolist()


def test_prompts_that_do_not_fit_are_drawn_again_and_counted():
    prompts, odds, density = crowd()
    groups = strata("decile", density, prompts)
    redraw = Redraw(prompts.rows, odds, groups, 800, 8, 3, lambda row: row >= 300)
    rows = np.array([redraw.row(n, []) for n in range(800)])
    entry: dict[str, Any] = {KEY: {"rows": rows.tolist(), "signal": [1.0] * 800}}
    redraw.on_log(None, type("State", (), {"log_history": [entry]}), None)
    assert rows.min() == 300
    expected = odds[350:].sum() / odds[300:].sum()
    assert (rows >= 350).mean() == pytest.approx(expected, abs=0.06)
    missed = odds[:300].sum()
    assert drawn_plan([entry]).skipped / 800 == pytest.approx(missed / (1 - missed), rel=0.15)
    none = Redraw(prompts.rows, odds, groups, 8, 8, 3, lambda _: False)
    with pytest.raises(TrainingError, match="max_prompt_tokens"):
        none.row(0, [])


def test_labels_that_are_no_kinds_are_refused():
    prompts = PromptSet([{"id": f"{n:032x}"} for n in range(20)])
    with pytest.raises(TrainingError, match="needs labels"):
        strata("label", np.arange(20.0), prompts)


class Parity:
    """A reward that only differs among completions of the prompts of one stratum."""

    def __init__(self, taught: set[str]) -> None:
        self.taught, self.asked = taught, []

    def score(self, rows: Sequence[dict[str, Any]], completions: Sequence[str]) -> np.ndarray:
        self.asked.append([row["id"] for row in rows])
        return np.array([row["id"] in self.taught and n % 2 for n, row in enumerate(rows)], float)


@pytest.mark.parametrize(
    ("settings", "per_pass"),
    [
        ({}, 16),
        ({}, 4),
        ({"num_iterations": 2}, 4),
        ({"steps_per_generation": 2}, 4),
        ({"steps_per_generation": 8}, 4),
        ({"dataloader_num_workers": 1}, 16),
    ],
)
def test_the_trainer_completes_the_prompts_that_are_drawn(tmp_path: Path, settings, per_pass):
    prompts = write_inputs(tmp_path).split("train")
    params = TrainParams(
        **SECTIONS["train"]
        | {"grpo": settings, "completions_per_pass": per_pass}
        | {"prompts_per_step": 4, "max_steps": 12, "learning_rate": 0.0}
    )
    config = make_config(params, 1, "cpu", tmp_path / "run")
    size = draws_needed(config)
    odds = np.full(len(prompts), 1 / len(prompts))
    groups = np.array_split(np.arange(len(prompts)), 2)
    plan = make_plan(odds, size, seed=1)

    def made() -> Redraw:
        at_once = draws_at_once(config)
        return Redraw(prompts.rows, odds, groups, size, at_once, 1, lambda _: True)

    reward, signals = Parity({prompts.ids[row] for row in groups[1]}), Signals(prompts.ids)
    rows = [prompts.rows[row] for row in plan.rows]
    trainer = make_trainer(tmp_path / "models/policy", reward, config, rows, None, signals, made())
    trainer.train()
    history = trainer.state.log_history
    found = drawn_plan(history)
    asked = [identifier for call in reward.asked for identifier in call[::4]]
    assert asked == [prompts.ids[row] for row in found.rows]
    assert len(asked) == size
    first = config.gradient_accumulation_steps // config.steps_per_generation or 1
    start = first * draws_at_once(config)
    assert found.rows[:start].tolist() == plan.rows[:start].tolist()
    assert found.rows.tolist() != plan.rows.tolist()
    again, number = made(), 0
    for step, entry in enumerate(history):
        for row in entry.get(KEY, {"rows": []})["rows"]:
            assert again.row(number, history[:step]) == row  # what a resumed run knows is enough
            number += 1
