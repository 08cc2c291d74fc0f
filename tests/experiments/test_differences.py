"""Differences are paired by seed, and say how sure they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from isodense.experiments.differences import describe, markdown, tabulate
from isodense.experiments.figure import figure
from isodense.pipeline.errors import IsodenseError


def metrics(reward: float, words: float, bleu: float | None = 1.0) -> dict:
    trained = {"distinct_2": words} | ({} if bleu is None else {"self_bleu": bleu})
    return {"judge": {"all": reward}, "eval": {"trained": trained}}


DISTINCT = "eval.trained.distinct_2"
DECIDE = ("judge.over_labels", "judge.all")
FOUND = {
    "uniform": [metrics(1.0, 0.5), metrics(5.0, 0.4), metrics(3.0, 0.6, None)],
    "density": [metrics(1.5, 0.4), metrics(5.6, 0.5), metrics(3.4, 0.6)],
}


def test_differences_are_paired_by_seed():
    rows = {(row.measure, row.arm): row.as_dict() for row in tabulate(FOUND, DECIDE)}
    assert {measure for measure, _ in rows} == {"judge.all", DISTINCT}
    row = rows["judge.all", "density"]
    assert row["values"] == [1.5, 5.6, 3.4]
    assert row["difference"] == pytest.approx(0.5)
    expected = stats.ttest_rel([1.5, 5.6, 3.4], [1.0, 5.0, 3.0]).confidence_interval(0.95)
    assert row["difference_low"] == pytest.approx(expected.low, abs=1e-6)
    assert row["difference_high"] == pytest.approx(expected.high, abs=1e-6)
    assert rows["judge.all", "uniform"]["difference"] == 0


def test_the_measure_that_decides_leads():
    assert tabulate(FOUND, DECIDE)[0].measure == "judge.all"
    assert tabulate(FOUND, (DISTINCT,))[0].measure == DISTINCT
    with pytest.raises(IsodenseError, match=r"no eval.trained.vendi\n.*judge.all, distinct_2"):
        tabulate(FOUND, ("eval.trained.vendi",))


def test_what_is_unknown_in_a_run_is_no_measure():
    unknown = {arm: [metrics(1.0, float("nan")), *runs[1:]] for arm, runs in FOUND.items()}
    assert {row.measure for row in tabulate(unknown, DECIDE)} == {"judge.all"}


def test_agreement_and_power_are_of_the_differences():
    row = next(row for row in tabulate(FOUND, (DISTINCT,)) if row.arm == "density")
    assert row.differences == pytest.approx([-0.1, 0.1, 0.0])
    row = tabulate(FOUND, DECIDE)[1].as_dict()
    assert (row["seeds_with_its_sign"], row["seeds_needed"]) == (3, 3)
    down = {"uniform": FOUND["density"], "density": FOUND["uniform"]}
    assert tabulate(down, DECIDE)[1].as_dict()["seeds_with_its_sign"] == 3


def test_the_table_marks_what_is_clear_of_zero():
    lines = markdown(tabulate(FOUND, DECIDE)).splitlines()
    assert lines[0].startswith("What decides: **reward by one judge** (judge.all), 3 seeds")
    assert lines[2] == "| arm | mean | − uniform | seeds with that sign | seeds to show it |"
    assert lines[5].startswith("| density | 3.500 (−1.")
    assert lines[5].endswith("| **+0.500** (+0.252 to +0.748) | 3 of 3 | 3 |")
    assert lines[7] == "| measure | uniform | density − uniform |"
    assert "| +0.000 (" in lines[9]
    assert "**" not in lines[9]


def test_the_terminal_shows_the_same_numbers():
    text = describe(tabulate(FOUND, DECIDE))
    assert "+0.500* (+0.252 to +0.748)" in text
    assert "\n*: the 95% interval over seeds is clear of 0" in text


def test_what_no_seed_changes_has_no_interval():
    found = {"uniform": [metrics(1.0, 0.5)] * 2, "density": [metrics(2.0, 0.25)] * 2}
    assert "| distinct-2 | 0.500 | −0.250 |" in markdown(tabulate(found, DECIDE))


def test_the_figure_is_a_png_whose_bytes_repeat(tmp_path: Path):
    for name in ("one.png", "two.png"):
        figure(tabulate(FOUND, DECIDE), tmp_path / name)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png"))
    assert one == two
    assert one.startswith(b"\x89PNG")
    assert np.frombuffer(one, np.uint8).size > 5000
