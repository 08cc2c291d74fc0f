"""The check on completions, where the rewards are known: the reward is made for the purpose."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isodense.models.inference.generation import Completion
from isodense.pipeline.errors import TrainingError
from isodense.prompts.reader import PromptSet
from isodense.reward.base import Task
from isodense.reward.sampled import FILE, Sample, check, describe, draw_sample, table, warning
from isodense.reward.scoring.check import said
from tests.rl import reward_params, write_inputs


class Scored:
    """A reward model that gives what it is told, in turn."""

    def __init__(self, *values: float) -> None:
        self.values, self.rows = values, []

    def score(self, rows, completions):
        self.rows += rows
        return np.resize(np.array(self.values, dtype=np.float32), len(completions))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("sampled")
    prompts = write_inputs(folder)
    params = reward_params(kind="function", functions=["a:b"])
    policy, none = folder / "models/policy", np.empty(0)
    return Task([], [], none, none, prompts, policy, params, 0, "cpu", folder / "cache")


def sample(total: list[list[float]], truncated: bool = False) -> Sample:
    values = np.array(total, dtype=np.float32)
    made = [[Completion("x", (1,), truncated)] * values.shape[1]] * len(values)
    rows = [{"id": str(row), "prompt": []} for row in range(len(values))]
    return Sample(rows, made, values[..., None], values, ["one"])


def test_shares_are_of_prompts_and_the_interval_is_over_them():
    nan = float("nan")
    found = describe(
        sample([[0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 1, 1], [0.5, 0.2, nan, 0], [nan] * 4]), 0.5
    )
    assert (found["prompts"], found["num_generations"], found["no_opinion"]) == (5, 4, 0.2)
    assert found["never_solved"] == 0.5  # 0.5 is not above 0.5
    assert found["sometimes_solved"] == found["always_solved"] == 0.25
    assert found["frac_reward_zero_std"] == 0.5
    means = np.array([0, 0.5, 1, 0.7 / 3])
    half = 3.182446 * means.std(ddof=1) / 2  # t of 3 degrees of freedom
    assert found["reward"] == pytest.approx(means.mean())
    assert found["reward_low"] == pytest.approx(means.mean() - half, abs=1e-5)
    assert found["reward_high"] == pytest.approx(means.mean() + half, abs=1e-5)
    text = said(found)
    assert "of 4 completions each of 4 training prompts" in text
    assert "2 never solved, 1 sometimes, 1 always; 50% of the groups" in text


@pytest.mark.parametrize(
    ("total", "told"),
    [
        ([[0, 0], [0, 0]], "no completion of 2 prompts was solved and no group"),
        ([[0.2, 0.2], [0, 0]], "no completion of 2 prompts was solved and no group"),
        ([[1, 1], [1, 1]], "every completion of 2 prompts was solved: there is nothing left"),
        ([[1, 1], [0, 0]], "no group of 2 prompts has two different rewards"),
    ],
)
def test_nothing_to_learn_is_warned_of(total, told: str):
    text = warning(describe(sample(total, truncated=True), 0.5))
    assert text.startswith(told)
    assert "GRPO gets no signal" in text
    assert ("100% were cut" in text) is (max(map(max, total)) < 1)


def test_a_signal_is_not_warned_of_though_nothing_was_solved():
    assert warning(describe(sample([[0, 0.1], [0, 0]]), 0.5)) is None


def test_the_sample_is_of_training_prompts_and_repeats(task: Task, tmp_path: Path):
    first, second = Scored(0, 1), Scored(0, 1)
    one = draw_sample(task, first)
    train = task.prompts.split("train")
    assert [row["id"] for row in one.rows] == sorted(train.ids)[:8]
    assert [row["id"] for row in first.rows] == [i for i in sorted(train.ids)[:8] for _ in range(4)]
    other = replace(task, prompts=PromptSet(task.prompts.rows[::-1]), cache=tmp_path)
    assert draw_sample(other, second).completions == one.completions
    seeded = replace(task, seed=1)
    assert draw_sample(seeded, first).completions != one.completions


def test_completions_are_kept_and_not_drawn_again(task: Task, monkeypatch: pytest.MonkeyPatch):
    one = draw_sample(task, Scored(1))
    monkeypatch.setattr("isodense.models.inference.completions.complete_batch", None)
    assert draw_sample(task, Scored(2)).completions == one.completions


def test_the_artifact_has_a_row_for_each_completion(task: Task, tmp_path: Path):
    found = check(task, Scored(0, 1), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert len(rows) == 32
    assert set(rows[0]) == {"id", "prompt", "completion", "truncated", "reward"}
    assert [row["reward"] for row in rows] == [0, 1] * 16
    assert set(found) == {"sampled"}
    assert found["sampled"]["reward"] == 0.5
    assert found["sampled"]["sometimes_solved"] == 1


def test_no_opinion_on_anything_is_an_error(task: Task, tmp_path: Path):
    with pytest.raises(TrainingError, match="no reward function has an opinion on any of 32"):
        check(task, Scored(float("nan")), tmp_path)


def test_prompts_that_leave_no_room_are_passed_over_and_counted(task: Task, caplog):
    rows = [
        row | {"prompt": [{"role": "user", "content": "egg " * 300}]} if number % 2 else row
        for number, row in enumerate(task.prompts.rows)
    ]
    mixed = replace(task, prompts=PromptSet(rows))
    made = draw_sample(mixed, Scored(1))
    assert len(made.rows) == 8
    assert all("egg egg egg egg" not in row["prompt"][-1]["content"] for row in made.rows)
    assert "prompts passed over that leave no room" in caplog.text
    assert made.passed_over > 0
    assert describe(made, 0.5)["passed_over"] == made.passed_over
    long = replace(task, prompts=PromptSet(rows[1:3]))
    with pytest.raises(TrainingError, match="training prompts can be answered"):
        draw_sample(long, Scored(1))


def test_values_that_json_lacks_are_written_as_text():
    class Named:
        label = "one"

        def names(self, name: str) -> bool:
            return name == "when"

    from isodense.reward.scoring.functions import FunctionReward

    made = sample([[1, float("nan")]])
    made.rows[0].update(when={"day": datetime.date(2026, 1, 2)}, other=1)
    first, second = table(made, FunctionReward([Named()], [], Path()))
    assert first["columns"] == {"when": {"day": "2026-01-02"}}
    assert (first["reward"], first["rewards"]) == (1, {"one": 1})
    assert (second["reward"], second["rewards"]) == (None, {"one": None})


def test_the_first_function_alone_decides_and_null_says_nothing():
    made = [[Completion("4", (1,), False)] * 2] * 2
    each = np.array([[[0, 9], [1, 9]], [[0, 9], [0, 9]]], dtype=np.float32)
    sample = Sample([{}] * 2, made, each, each.sum(axis=2), ["right", "long"])
    found = describe(sample, 0.5)
    assert (found["never_solved"], found["sometimes_solved"]) == (0.5, 0.5)
    silent = describe(sample, None)
    assert not [name for name in silent if name.endswith("solved")]
    assert "solved" not in said(silent)
    assert said(found).count("solved") == 1
