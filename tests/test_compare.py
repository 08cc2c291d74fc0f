"""Comparisons are paired by seed, and say how sure they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from isodense.compare import ARMS, figure, markdown, plan_runs, tabulate
from isodense.errors import IsodenseError


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


def test_the_figure_is_a_png_whose_bytes_repeat(tmp_path: Path):
    for name in ("one.png", "two.png"):
        figure(tabulate(FOUND), tmp_path / name)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png"))
    assert one == two
    assert one.startswith(b"\x89PNG")
    assert np.frombuffer(one, np.uint8).size > 5000
