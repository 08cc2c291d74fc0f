"""What was learnt from: advantages are TRL's, and shares of known signals come out as they are."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import TrainerCallback

from isodense.prompts.reader import PromptSet
from isodense.train.grpo import make_trainer
from isodense.train.params import TrainParams
from isodense.train.realised import KEY, Signals, advantages, realised, write_table
from isodense.train.settings import make_config
from tests.rl import SECTIONS, write_inputs


class Scored:
    """A function with an opinion on some completions, and the same of the first group."""

    awaited = False

    def __init__(self, number: int) -> None:
        self.label, self.weight = f"f{number}", 1.0 + number
        self._rng = np.random.default_rng(number)

    def __call__(self, passed) -> np.ndarray:
        count = len(passed["prompt_id"])
        values = self._rng.integers(0, 3, count).astype(np.float32) / self.weight
        values[self._rng.random(count) < 0.2] = np.nan
        values[:4] = 1.0
        return values


class Uneven:
    """A reward of two functions."""

    def __init__(self) -> None:
        self.functions = [Scored(0), Scored(1)]

    def given(self, rows):
        return {"prompt_id": [row["id"] for row in rows]}


class Watch(TrainerCallback):
    """Keeps the advantages that TRL has computed for a step."""

    def __init__(self) -> None:
        self.trainer, self.steps = None, []

    def on_log(self, args, state, control, **event) -> None:
        if "reward" in event["logs"]:
            self.steps.append(list(self.trainer._logs["advantages"]))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("realised")
    return folder, write_inputs(folder).split("train")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale_rewards": "batch"},
        {"scale_rewards": "none"},
        {"multi_objective_aggregation": "normalize_then_sum"},
    ],
)
def test_advantages_are_those_of_trl(world, tmp_path: Path, settings, monkeypatch):
    from isodense.train import rewards

    folder, prompts = world
    monkeypatch.setattr(rewards, "FunctionReward", Uneven)
    params = TrainParams(**SECTIONS["train"] | {"grpo": settings, "completions_per_pass": 4})
    config = make_config(params, 1, "cpu", tmp_path)
    rows = [prompts.rows[number] for number in (5, 2, 7, 5)]
    signals, watch = Signals(prompts.ids), Watch()
    trainer = make_trainer(folder / "models/policy", Uneven(), config, rows, None, signals)
    trainer.add_callback(watch)
    watch.trainer = trainer
    trainer.train()
    steps = [entry[KEY] for entry in trainer.state.log_history if KEY in entry]
    assert [step["rows"] for step in steps] == [[5, 2], [7, 5]]
    for step, found in zip(steps, watch.steps, strict=True):
        expected = np.abs(np.reshape(found, (2, 4))).mean(axis=1)
        np.testing.assert_allclose(step["signal"], expected, rtol=1e-4, atol=1e-6)
        assert step["signal"][0] == 0 < step["signal"][1]


def test_a_group_of_one_reward_has_no_signal():
    args = SimpleNamespace(
        num_generations=4,
        reward_weights=[1.0],
        multi_objective_aggregation="sum_then_normalize",
        scale_rewards="group",
    )
    nan = np.nan
    scores = np.array([0.1, 0.1, 0.1, 0.1, 0, 0, 1, 1, nan, nan, nan, nan, 1, nan, 1, 1])[:, None]
    found = advantages(scores, args)
    assert (found[[0, 2, 3]] == 0).all()
    np.testing.assert_allclose(found[1], np.array([-1, -1, 1, 1]) * 0.5 / (3**-0.5 + 1e-4))


def test_shares_of_known_signals(tmp_path: Path):
    """Crowded prompts are drawn by weight, and half of their groups teach nothing."""
    rows = [{"id": f"{n:032x}", "label": "rare" if n < 10 else "common"} for n in range(40)]
    density = np.arange(40) / 10  # decile 1: rows 0 to 3
    odds = np.where(np.arange(40) < 10, 3.0, 1.0)
    history = [
        {"reward": 0.1, KEY: {"rows": [0, 1, 38, 39], "signal": [0.5, 0.5, 0.0, 1.0]}},
        {"train_runtime": 1.0},
        {"reward": 0.1, KEY: {"rows": [39, 39], "signal": [0.0, 0.0]}},
    ]
    table, metrics = realised(history, odds, density, PromptSet(rows))
    first, last = (next(row for row in table if row["name"] == name) for name in ("1", "10"))
    assert first == {
        "kind": "decile", "name": "1", "prompts": 4, "nominal_share": 0.2, "draws": 2,
        "draw_share": round(2 / 6, 6), "zero_signal": 0, "realised_share": 0.5,
    }  # fmt: skip
    assert (last["draws"], last["zero_signal"], last["realised_share"]) == (4, 3, 0.5)
    labels = {row["name"]: row for row in table if row["kind"] == "label"}
    assert {name: row["nominal_share"] for name, row in labels.items()} == {
        "rare": 0.5, "common": 0.5
    }  # fmt: skip
    assert metrics["zero_signal_share"] == 0.5
    assert metrics["realised_total_variation_over_labels"] == 0
    assert metrics["drawn_total_variation_over_labels"] == pytest.approx(4 / 6 - 0.5, abs=1e-6)
    for kind in ("decile", "label"):
        mine = [row for row in table if row["kind"] == kind]
        assert sum(row["nominal_share"] for row in mine) == pytest.approx(1, abs=1e-5)
        assert sum(row["realised_share"] for row in mine) == pytest.approx(1)
        assert sum(row["draws"] for row in mine) == 6
    write_table(table, tmp_path / "realised.csv")
    with (tmp_path / "realised.csv").open(newline="") as stream:
        assert [row["name"] for row in csv.DictReader(stream)][:2] == ["1", "2"]


def test_a_run_without_any_signal_has_no_realised_shares():
    rows = [{"id": f"{n:032x}"} for n in range(5)]
    history = [{"reward": 1.0, KEY: {"rows": [0, 1], "signal": [0.0, 0.0]}}]
    table, metrics = realised(history, np.ones(5), np.arange(5.0), PromptSet(rows))
    assert [row["prompts"] for row in table] == [1] * 5
    assert all(row["realised_share"] is None for row in table)
    assert metrics["zero_signal_share"] == 1
    assert set(metrics) == {"zero_signal_share", "drawn_total_variation"}
