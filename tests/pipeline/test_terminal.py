"""Lines of a terminal stay aligned and inert, whatever text stands in them."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodense.pipeline.terminal import columns, cut, printable, room, styled, table, wrap

HOSTILE = "\x1b[31mred\x9b2J\u202etxet\u2066 line\nbreak\u2028\x00\ud800 end"


def test_nothing_that_acts_on_a_terminal_is_left():
    shown = printable(HOSTILE)
    assert shown == "[31mred 2J txet line break end"
    assert all(unicodedata.category(one)[0] != "C" for one in shown)


def test_wide_characters_take_two_columns_and_accents_none():
    assert columns("密度 ab") == 7
    assert columns("e\u0301") == 1
    assert columns("\U0001f600") == 2


@given(st.text(max_size=200), st.integers(1, 40))
def test_a_cut_text_fits_and_says_so(text, width):
    short = cut(text, width)
    assert columns(short) <= width
    assert len(short) <= 4 * width + 1
    assert short == printable(text) or short.endswith("…")


def test_an_accent_repeated_a_thousand_times_is_cut():
    assert len(cut("a" + "\u0301" * 1000, 10)) <= 41


def test_columns_of_a_table_line_up_under_wide_text():
    lines = table(("n", "name"), [("1", "密度"), ("100", "e\u0301tude"), ("7", "x")],
                  left=("name",)).splitlines()  # fmt: skip
    ends = [columns(line[: line.index(word)]) for line, word in
            zip(lines, ("name", "密", "e\u0301", "x"), strict=True)]  # fmt: skip
    assert ends == [7, 7, 7, 7]
    assert lines == [line.rstrip() for line in lines]


def test_long_texts_are_wrapped_and_end():
    lines = wrap("word " * 1000, 30, "  ").split("\n  ")
    assert len(lines) == 21
    assert all(columns(line) <= 30 for line in lines)
    assert lines[-1] == "…"
    assert wrap("x" * 5000, 30, "  ") == "x" * 29 + "…"


def test_a_line_has_what_the_terminal_or_the_user_says(monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    assert room(30) == 60
    assert room(30, 7) == 7
    monkeypatch.setenv("COLUMNS", "10")
    assert room(30) == 20


@pytest.mark.parametrize(
    ("terminal", "variables", "coloured"),
    [(True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False),
     (True, {"TERM": "dumb"}, False)],
)  # fmt: skip
def test_colour_only_where_it_is_wanted(monkeypatch, terminal, variables, coloured):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert styled("[ok]", "green") == ("\x1b[32m[ok]\x1b[0m" if coloured else "[ok]")
