"""Lines of a terminal stay aligned and inert, whatever text stands in them."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from isodense.pipeline.terminal import line, paragraph, printable, rendered, table

HOSTILE = "\x1b[31mred\x9b2J\u202etxet\u2066 line\nbreak\u2028\x00\ud800 end"


def test_nothing_that_acts_on_a_terminal_is_left():
    shown = printable(HOSTILE)
    assert shown == "[31mred 2J txet line break end"
    assert all(unicodedata.category(one)[0] != "C" for one in shown)


@given(st.text(max_size=200), st.integers(1, 40))
def test_a_cut_text_fits_and_says_so(text, width):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        shown = rendered(
            table(("prompt",), [(text,)], left=("prompt",), text="prompt", width=width)
        )
    short = shown.split("\n")[1]
    assert cell_len(short) <= width
    assert short == printable(text) or short.endswith("…")


def test_an_accent_repeated_a_thousand_times_is_cut():
    assert len(line("a" + "\u0301" * 1000, 10).plain) <= 41


def test_columns_of_a_table_line_up_under_wide_text():
    lines = rendered(table(("n", "name"), [("1", "密度"), ("100", "e\u0301tude"), ("7", "x")],
                           left=("name",)), indent=2).splitlines()  # fmt: skip
    ends = [cell_len(one[: one.index(word)]) for one, word in
            zip(lines, ("name", "密", "e\u0301", "x"), strict=True)]  # fmt: skip
    assert ends == [7, 7, 7, 7]
    assert lines == [one.rstrip() for one in lines]


def test_markup_in_a_prompt_is_text():
    rows = [("[red]0[/red]", "[bold]x[/bold] :smile:")]
    shown = rendered(table(("n", "prompt"), rows, left=("prompt",), text="prompt"))
    assert shown.splitlines()[1] == "[red]0[/red]  [bold]x[/bold] :smile:"


def test_long_texts_are_wrapped_and_end(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    for text in ("word " * 1000, "x" * 5000):
        lines = rendered(paragraph(text, 30), indent=2).splitlines()
        assert len(lines) == 21
        assert all(cell_len(one) <= 32 for one in lines)
        assert lines[-1] == "  …"
    assert (
        rendered(paragraph("word " * 9, indent=2), indent=2).splitlines()[0]
        == "  " + ("word " * 7).rstrip()
    )


@pytest.mark.parametrize(
    ("columns", "width", "text"), [(60, None, 42), (10, None, 20), (30, 70, 70)]
)
def test_prompts_get_what_the_terminal_or_the_user_says_and_numbers_all_they_need(
    monkeypatch, columns, width, text
):
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = [("1234567890123", "1", "x" * 500)]
    shown = rendered(table(("a", "b", "c"), rows, left=("c",), text="c", width=width))
    number, one, cut = shown.splitlines()[1].split()
    assert (number, one) == ("1234567890123", "1")
    assert cut == "x" * (text - 1) + "…"


def test_without_a_terminal_a_line_has_120_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    shown = rendered(table(("c",), [("x" * 500,)], left=("c",), text="c"))
    assert cell_len(shown.splitlines()[1]) == 120


@pytest.mark.parametrize(
    ("terminal", "variables", "coloured"),
    [(True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False),
     (True, {"TERM": "dumb"}, False)],
)  # fmt: skip
def test_colour_only_where_it_is_wanted(monkeypatch, terminal, variables, coloured):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    shown = rendered(Text("[ok]", "green"))
    assert shown == ("\x1b[32m[ok]\x1b[0m\n" if coloured else "[ok]\n")
