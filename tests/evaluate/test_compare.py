"""Comparisons are paired by seed, and say how sure they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from isodense.evaluate.compare import (
    ARMS,
    figure,
    judged,
    markdown,
    plan_runs,
    require_different,
    tabulate,
)
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


def metrics(reward: float, words: float, bleu: float | None = 1.0) -> dict:
    trained = {"distinct_2": words} | ({} if bleu is None else {"self_bleu": bleu})
    return {"judge": {"all": reward}, "eval": {"trained": trained}}


FOUND = {
    "uniform": [metrics(1.0, 0.5), metrics(5.0, 0.4), metrics(3.0, 0.6, None)],
    "density": [metrics(1.5, 0.4), metrics(5.6, 0.5), metrics(3.4, 0.6)],
}


def test_differences_are_paired_by_seed():
    rows = {(row.measure, row.arm): row.as_dict() for row in tabulate(FOUND)}
    assert {measure for measure, _ in rows} == {"reward by one judge", "distinct-2"}
    row = rows["reward by one judge", "density"]
    assert row["values"] == [1.5, 5.6, 3.4]
    assert row["difference"] == pytest.approx(0.5)
    expected = stats.ttest_rel([1.5, 5.6, 3.4], [1.0, 5.0, 3.0]).confidence_interval(0.95)
    assert row["difference_low"] == pytest.approx(expected.low, abs=1e-6)
    assert row["difference_high"] == pytest.approx(expected.high, abs=1e-6)
    assert rows["reward by one judge", "uniform"]["difference"] == 0


def test_the_table_marks_what_is_clear_of_zero():
    lines = markdown(tabulate(FOUND)).splitlines()
    assert lines[0] == "| | uniform | density − uniform |"
    assert "**+0.500** (+0.252 to +0.748)" in lines[2]
    assert "| +0.000 (" in lines[3]
    assert "**" not in lines[3]


def test_what_no_seed_changes_has_no_interval():
    found = {"uniform": [metrics(1.0, 0.5)] * 2, "density": [metrics(2.0, 0.25)] * 2}
    assert "| distinct-2 | 0.500 | −0.250 |" in markdown(tabulate(found))


def test_the_figure_is_a_png_whose_bytes_repeat(tmp_path: Path):
    for name in ("one.png", "two.png"):
        figure(tabulate(FOUND), tmp_path / name)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png"))
    assert one == two
    assert one.startswith(b"\x89PNG")
    assert np.frombuffer(one, np.uint8).size > 5000
