"""A comparison runs every arm with every seed, and one judge scores all arms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isodense.experiments.arms import ARMS
from isodense.experiments.compare import judged, plan_runs, require_different
from isodense.pipeline.errors import IsodenseError


def test_runs_are_all_arms_of_a_seed_before_the_next_seed():
    runs = plan_runs(["uniform", "density-both"], 2, ["train.max_steps=3"])
    assert [(run.arm, run.seed) for run in runs] == [
        ("uniform", 0),
        ("density-both", 0),
        ("uniform", 1),
        ("density-both", 1),
    ]
    assert runs[3].settings == (
        "train.max_steps=3",
        "reward.sampling=density",
        "train.sampling=density",
        "train.seed=1",
    )
    assert len({run.name for run in runs}) == 4


def test_names_tell_settings_apart():
    one, other = (
        plan_runs(["uniform", "density"], 2, [f"train.max_steps={steps}"])[0] for steps in (3, 4)
    )
    assert one.name.startswith("uniform-0-")
    assert one.name != other.name


@pytest.mark.parametrize(
    ("arms", "seeds"),
    [(["uniform"], 3), (["uniform", "uniform"], 3), (["uniform", "dense"], 3), (list(ARMS), 1)],
)
def test_nothing_to_compare_is_refused(arms: list[str], seeds: int):
    with pytest.raises(IsodenseError, match="two or more of uniform, density"):
        plan_runs(arms, seeds)


@pytest.mark.parametrize("setting", ["train.seed=5", "+train.sampling=uniform"])
def test_what_the_arms_differ_in_cannot_be_set(setting: str):
    with pytest.raises(IsodenseError, match="choose among --arms"):
        plan_runs(["uniform", "density"], 2, [setting])


def test_arms_that_a_reward_cannot_tell_apart_are_refused(tmp_path: Path):
    params = tmp_path / "params.yaml"
    params.write_text("reward: {kind: head}\n")
    both = ["uniform", "density-both"]
    require_different(both, [], params)
    require_different(["uniform", "density"], ["reward.kind=function"], params)
    with pytest.raises(IsodenseError, match="leave out density-both"):
        require_different(both, ["reward.kind=function"], params)


def test_the_judge_scores_the_trained_completions_by_density():
    rows = [
        {"id": name, "density": density, "trained": trained, "base": ["xxxxxxxx"] * 2}
        for name, density, trained in [
            ("a", 3.0, ["1", "3"]),
            ("b", 1.0, ["10", "20"]),
            ("c", 2.0, ["5", "5"]),
        ]
    ]
    conversations = {name: [{"role": "user", "content": name}] for name in "abc"}
    seen = []

    def score(prompts, completions):
        seen.extend(prompt[-1]["content"] for prompt in prompts)
        return np.array([float(text) for text in completions], dtype=np.float32)

    found = judged(rows, conversations, score)
    assert seen == list("aabbcc")
    assert found == {"all": pytest.approx(22 / 3), "sparse": 15.0, "crowded": 2.0}
