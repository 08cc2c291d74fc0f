"""Differences are paired by seed, and say how sure they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from isodense.experiments.differences import describe, figure, markdown, tabulate


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
    assert lines[0] == "| measure | uniform | density − uniform |"
    assert "**+0.500** (+0.252 to +0.748)" in lines[2]
    assert "| +0.000 (" in lines[3]
    assert "**" not in lines[3]


def test_the_terminal_shows_the_same_numbers():
    head, judge, words, _, legend = describe(tabulate(FOUND)).splitlines()
    assert head.split() == ["measure", "uniform", "density", "−", "uniform"]
    assert judge.endswith("+0.500* (+0.252 to +0.748)")
    assert "+0.000 (" in words
    assert len(head) == len(judge)
    assert legend.startswith("*: the 95% interval is clear of 0")


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
