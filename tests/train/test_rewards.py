"""Reward functions in TRL's trainer: what they are given, and what is made of what they return."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from isodense.pipeline.errors import TrainingError
from isodense.prompts.reader import PromptSet
from isodense.reward.params import FunctionParams
from isodense.reward.scoring.functions import FunctionReward, columns_of, find_functions
from isodense.sampling.weights import load_weights
from isodense.train.params import TrainParams
from isodense.train.record import quarters, steps_with_signal
from isodense.train.train import train
from tests.rl import SECTIONS, snapshot, write_inputs

SOURCE = """
    calls = []

    def length(completions, prompts, prompt_id, extra, completion_ids, trainer_state,
               log_metric, **others):
        calls.append((prompts, prompt_id, extra, trainer_state.global_step, sorted(others)))
        assert len(completion_ids) == len(completions)
        log_metric("longest", max(map(len, completion_ids)))
        return [len(answer[-1]["content"]) for answer in completions]

    async def spaces(completions):
        return [float(answer[-1]["content"].count(" ")) for answer in completions]

    def sometimes(completions, extra):
        return [None if value["n"] % 2 else 1.0 for value in extra]

    def never(completions):
        return [None] * len(completions)

    def capped(completions, most):
        return [float(min(most, len(answer[-1]["content"]))) for answer in completions]

    def fail_later(completions, trainer_state):
        if trainer_state.global_step == 3 and not calls:
            raise KeyboardInterrupt
        return [0.0] * len(completions)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a project whose module of rewards is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "rewards.py").write_text(dedent(SOURCE))
    yield tmp_path
    sys.modules.pop("rewards", None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PromptSet]:
    """Prompts with a column whose mappings differ in their keys and types."""
    folder = tmp_path_factory.mktemp("rewards")
    prompts = write_inputs(folder).split("train")
    for number, row in enumerate(prompts.rows):
        row["extra"] = {"n": number, f"key {number}": "text" if number % 2 else 1}
    return folder, prompts


def run(world, name: str, functions: Sequence[object], **changes: object) -> dict:
    """Train with ``reward.functions``, given as in params.yaml."""
    folder, prompts = world
    specs = [FunctionParams.model_validate(one) for one in functions]
    policy = folder / "models/policy"
    return train(
        prompts,
        (weights := load_weights(folder / "data/density")).weights,
        weights.density,
        lambda device: FunctionReward(find_functions(specs), columns_of(prompts.rows), policy),
        policy,
        TrainParams(**(SECTIONS["train"] | changes)),  # type: ignore[arg-type]
        seed=1,
        device="cpu",
        cache=folder / "cache" / name,
        inputs={"reward": {"kind": "reward", "functions": [one.model_dump() for one in specs]}},
        out=folder / name / "models/grpo",
        live=folder / name / "reports/train",
        table=folder / name / "reports/train" / "realised.csv",
    )


def series(world, run: str) -> dict[str, list[float]]:
    """Return what dvclive wrote of a run, by the series' name."""
    folder = world[0] / run / "reports/train/plots/metrics/train"
    found = {}
    for path in folder.rglob("*.tsv"):
        name = path.relative_to(folder).with_suffix("").as_posix()
        with path.open() as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        found[name] = [float(list(row.values())[-1]) for row in rows]
    return found


def test_functions_are_weighed_and_logged_one_by_one(project, world):
    functions = [
        {"name": "rewards:length", "weight": 0.5},
        {"name": "rewards:spaces", "weight": -2.0},
        {"name": "rewards:capped", "args": {"most": 3}},
    ]
    report = run(world, "weights", functions)
    found = series(world, "weights")
    parts = (found[f"rewards/{name}"] for name in ("length", "spaces", "capped"))
    total = [
        0.5 * length - 2 * spaces + capped for length, spaces, capped in zip(*parts, strict=True)
    ]
    np.testing.assert_allclose(found["reward"], total, rtol=1e-5)
    assert max(found["rewards/capped"]) <= 3
    assert len(found["logged/longest"]) == 2
    assert report["changed"] is True
    assert report["steps_with_signal"] == 2
    manifest = json.loads((world[0] / "weights/models/grpo/manifest.json").read_text())
    assert manifest["changed"] is True


def test_a_function_sees_the_rows_values_not_those_of_the_data_set(project, world):
    _, prompts = world
    run(world, "values", ["rewards:length"])
    calls = sys.modules["rewards"].calls
    by_id = {row["id"]: row for row in prompts.rows}
    assert [step for *_, step, _ in calls] == [0, 1]
    for asked, ids, extra, _, others in calls:
        assert extra == [by_id[identifier]["extra"] for identifier in ids]
        assert asked == [by_id[identifier]["prompt"] for identifier in ids]
        assert others == ["log_extra"]


def test_no_opinion_is_left_out_as_in_trl(project, world):
    run(world, "none", ["rewards:never", "rewards:length"], max_steps=3)
    found = series(world, "none")
    assert "rewards/never" not in found
    assert found["reward"] == pytest.approx(found["rewards/length"])


@pytest.mark.parametrize("lora", [None, {"r": 4, "target_modules": "all-linear"}])
def test_one_reward_throughout_leaves_the_policy(project, world, caplog, lora):
    name = f"silent-{lora is None}"
    report = run(world, name, ["rewards:sometimes"], lora=lora)
    assert (report["changed"], report["steps_with_signal"]) == (False, 0)
    assert "nothing could be learnt" in caplog.text


def test_no_opinion_at_all_is_an_error(project, world):
    with pytest.raises(TrainingError, match="no reward function had an opinion"):
        run(world, "mute", ["rewards:never"])


def test_trls_functions_and_normalisation_train(project, world):
    functions = [
        "trl.rewards:think_format_reward",
        {"name": "trl.rewards:get_soft_overlong_punishment",
         "args": {"max_completion_len": 6, "soft_punish_cache": 5}},
        "rewards:length",
    ]  # fmt: skip
    settings = {"multi_objective_aggregation": "normalize_then_sum"}
    report = run(world, "trl", functions, grpo=settings)
    assert report["changed"] is True
    found = series(world, "trl")
    names = {"think_format_reward", "get_soft_overlong_punishment", "length"}
    assert {f"rewards/{name}" for name in names} <= set(found)
    assert run(world, "sum", functions)["changed"] is True
    # losses of advantages of mean 0 are rounding, which some processors do alike
    assert series(world, "sum")["grad_norm"] != pytest.approx(found["grad_norm"], rel=0.01)


def test_a_run_that_was_cut_off_ends_with_the_same_bytes(project, world):
    functions = [
        "rewards:fail_later",
        {"name": "rewards:capped", "weight": 2.0, "args": {"most": 9}},
        "rewards:spaces",
    ]
    changes = {"max_steps": 4, "save_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        run(world, "cut", functions, **changes)
    sys.modules["rewards"].calls.append("goes on")
    report = run(world, "cut", functions, **changes)
    assert run(world, "whole", functions, **changes) == report
    assert snapshot(world[0] / "cut") == snapshot(world[0] / "whole")


def test_what_a_function_does_wrong_stops_the_run_with_its_name(project, world):
    (project / "rewards.py").write_text("def right(completions, extra):\n    return [extra[9]]\n")
    with pytest.raises(TrainingError, match=r"rewards:right raised IndexError(.|\n)*for prompt"):
        run(world, "wrong", ["rewards:right"])
    assert not (world[0] / "wrong/models").exists()


def test_quarters_leave_out_steps_without_an_opinion():
    history = [{"reward": value} for value in (1.0, float("nan"), None, 2.0, 4.0)] + [{"other": 1}]
    assert quarters(history) == {"reward_first_quarter": 1.0, "reward_last_quarter": 4.0}


@pytest.mark.parametrize(
    ("share", "gradient", "steps"), [(1.0, 0.0, 0), (0.5, 0.1, 1), (0.0, 0.0, 0), (1.0, 1e-3, 0)]
)
def test_a_step_has_a_signal_if_a_group_differs_and_there_is_a_gradient(share, gradient, steps):
    entry = {"reward": 0.0, "frac_reward_zero_std": share, "grad_norm": gradient}
    assert steps_with_signal([entry, {"train_runtime": 1.0}]) == steps
