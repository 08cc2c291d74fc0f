"""Text for terminals: columns that stay aligned, and prompts that cannot do anything to them.

A prompt is anyone's text. Escape codes, line breaks and marks that turn the direction of writing
become spaces, and what is wide (Chinese, emoji) is counted as the two columns it takes.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import unicodedata
from collections.abc import Collection, Sequence

STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
NARROWEST = 20  # columns that a text gets, however narrow the terminal is
MARKS = 4  # characters per column at most: accents take no column, and may be heaped up


def printable(text: str) -> str:
    r"""Return `text` on one line, with a space for whatever is not a visible character.

    Examples
    --------
    >>> printable("red \x1b[31mflag\n")
    'red [31mflag'
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def columns(text: str) -> int:
    """Return how many columns of a terminal `text` takes.

    Examples
    --------
    >>> columns("密度"), columns("e" + chr(0x301))
    (4, 1)
    """
    return sum(_columns(character) for character in text)


def cut(text: str, width: int) -> str:
    """Return `text`, :func:`printable`, ending in an ellipsis where it takes more than `width`.

    Parameters
    ----------
    text : str
    width : int
        Columns, at least 1.
    """
    limit = MARKS * width
    start = printable(text[:limit])
    if len(text) <= limit and columns(start) <= width:
        return start
    ends = itertools.accumulate(map(_columns, start))
    return start[: sum(end < width for end in ends)] + "…"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str], indent: str = "  "
) -> str:
    """Return rows of cells under a header, each column as wide as its widest cell.

    Parameters
    ----------
    header : sequence of str
    rows : sequence of sequence of str
        As many cells in each as in the header.
    left : collection of str
        Headings of the columns that are flush left (texts); the others are flush right (numbers).
    indent : str
        Before each line.

    Returns
    -------
    str
        Lines without trailing spaces, each ended.
    """
    cells = [list(header), *map(list, rows)]
    widths = [max(map(columns, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [
            cell + gap if heading in left else gap + cell
            for heading, cell, width in zip(header, row, widths, strict=True)
            for gap in [" " * (width - columns(cell))]
        ]
        lines.append((indent + "  ".join(padded)).rstrip() + "\n")
    return "".join(lines)


def wrap(text: str, width: int, indent: str, most: int = 20) -> str:
    """Return `text` on lines of `width` columns, at most so many, those after the first indented.

    A word that is too long for a line is cut.
    """
    lines = [""]
    for word in printable(text).split(" "):
        if lines[-1] and columns(lines[-1]) + 1 + columns(word) > width:
            lines.append("")
            if len(lines) > most:
                lines[-1] = "…"
                break
        lines[-1] = f"{lines[-1]} {cut(word, width)}".lstrip(" ")
    return f"\n{indent}".join(lines)


def room(taken: int, most: int | None = None) -> int:
    """Return the columns left for a text on a line of which `taken` are used.

    Where the output is no terminal, and ``COLUMNS`` does not say otherwise, a line has 120.

    Parameters
    ----------
    taken : int
    most : int, optional
        What the user wants instead.
    """
    if most is not None:
        return most
    return max(NARROWEST, shutil.get_terminal_size((120, 24)).columns - taken)


def styled(text: str, style: str) -> str:
    """Return `text` in a style where standard output is a terminal and ``NO_COLOR`` is not set."""
    plain = (
        not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    )
    return text if plain else f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
