"""Every published shape becomes the right example; maps, labels and errors say what they do."""

from __future__ import annotations

import copy

import pytest

from isodense.download.messages import Unusable
from isodense.download.shapes import shape_of
from tests.download.real_shapes import PAGE, REAL, Real, page


def example(row: dict, columns: dict | None = None) -> dict | str:
    return shape_of(row, columns or {}, "rows.jsonl").example(row)


@pytest.mark.parametrize("real", REAL, ids=[real.name for real in REAL])
def test_a_published_row_becomes_the_right_example(real: Real):
    before = copy.deepcopy(real.row)
    shape = shape_of(real.row, real.columns, "rows.jsonl")
    assert shape.name == real.shape
    found = shape.example(real.row)
    assert found == real.example
    assert isinstance(found, Unusable) == isinstance(real.example, str)
    assert real.row == before


def test_there_are_thirty_shapes_and_the_page_shows_them():
    assert len({real.name for real in REAL}) == len(REAL) >= 30
    current = PAGE.read_text(encoding="utf-8") == page()
    assert current, "run `python -m tests.download.real_shapes`"
