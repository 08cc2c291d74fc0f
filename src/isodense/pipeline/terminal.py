"""Text for terminals: tables whose columns line up, and prompts that cannot do anything to them.

Tables are rich's. A prompt is anyone's text: escape codes, line breaks and marks that turn the
direction of writing become spaces (:func:`printable`), and nothing in it is read as rich's markup.
Where the output is no terminal it is plain, and 120 columns wide unless ``COLUMNS`` says otherwise.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

NARROWEST = 20  # columns that a text gets, however narrow the terminal is
MARKS = 4  # characters per column at most: accents take no column, and may be heaped up
LINES = 20  # of one text


def printable(text: str) -> str:
    r"""Return `text` on one line, with a space for whatever is not a visible character.

    Examples
    --------
    >>> printable("red \x1b[31mflag\n")
    'red [31mflag'
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def line(text: str, width: int | None = None) -> Text:
    """Return anyone's text as one line that ends in an ellipsis where there is no more room.

    Parameters
    ----------
    text : str
    width : int, optional
        Columns it may get; by default those of the terminal.
    """
    most = MARKS * (width or _console().width)
    shown = printable(text[:most]) + "…" * (len(text) > most)
    return Text(shown, no_wrap=True, overflow="ellipsis")


def paragraph(text: str, width: int | None = None, indent: int = 0) -> Text:
    """Return anyone's text on `LINES` lines at most.

    Parameters
    ----------
    text : str
    width : int, optional
        Columns of a line; by default those of the terminal, less `indent`.
    indent : int
    """
    console = _console()
    width = width or max(console.width - indent, NARROWEST)
    lines = Text(printable(text[: MARKS * width * LINES])).wrap(console, width)
    ended = [*lines[:LINES], Text("…")] if len(lines) > LINES else list(lines)
    return Text("\n", no_wrap=True, overflow="ignore").join(ended)


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Collection[str],
    text: str | None = None,
    width: int | None = None,
) -> Table:
    """Return rows of cells under a header, each column as wide as its widest cell.

    Parameters
    ----------
    header : sequence of str
    rows : sequence of sequence of str
        As many cells in each as in the header.
    left : collection of str
        Headings of the columns that are flush left (texts); the others are flush right (numbers).
    text : str, optional
        Heading of the column of prompts, which are cut where the terminal is too narrow. No other
        column is.
    width : int, optional
        Columns that a prompt gets; by default what there is room for.
    """
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="none")
    columns = []
    for heading, *cells in zip(header, *rows, strict=True):
        prompts = heading == text
        columns.append([line(cell, width) if prompts else Text(cell) for cell in cells])
        longest = max(map(cell_len, [heading, *(cell.plain for cell in columns[-1])]))
        made.add_column(
            Text(heading),
            justify="left" if heading in left else "right",
            min_width=min(longest, width or NARROWEST) if prompts else longest,
            max_width=width if prompts else None,
        )
    for row in zip(*columns, strict=True):
        made.add_row(*row)
    return made


def rendered(*parts: RenderableType, indent: int = 0) -> str:
    """Return what a console prints for `parts`, each on lines of their own, as text.

    With styles where standard output is a terminal and ``NO_COLOR`` is not set.
    """
    console = _console()
    console.width = max(console.width - indent, NARROWEST)
    with console.capture() as capture:
        console.print(Group(*parts), crop=False)
    lines = capture.get().removesuffix("\n").split("\n")
    return "".join((" " * indent + one).rstrip() + "\n" for one in lines)


def _console() -> Console:
    return Console(
        width=shutil.get_terminal_size((120, 24)).columns,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        markup=False,
        emoji=False,
        highlight=False,
    )
