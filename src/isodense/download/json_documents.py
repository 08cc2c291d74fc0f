"""Files that are one JSON value: an array of rows, or an object that holds one.

An array is read as a stream, a row at a time. An object is read whole, since its array may come
last.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from isodense.download.shapes.known import KNOWN
from isodense.pipeline.compressed import open_bytes
from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import OnBadRow

AROUND = frozenset("data rows examples instances items records train test validation".split())
CHUNK = 2**20  # characters read at once
SPACE = " \t\r\n"
HINT = "correct it there: an array cannot be read past a fault"

Rows = Iterator[tuple[int, dict[str, Any]]]

log = logging.getLogger("isodense")


class Buffer:
    """A text of which the part that is being parsed is in memory.

    Attributes
    ----------
    line : int
        Line of the place reached, from 1.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._text, self._at = stream, "", 0
        self._ended = False
        self.line = 1

    def more(self) -> bool:
        """Read on; return whether there was anything left."""
        chunk = self._stream.read(max(CHUNK, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + chunk, 0
        self._ended = not chunk
        return bool(chunk)

    def peek(self) -> str:
        """Skip white space and return the next character; empty at the end."""
        while True:
            for place in range(self._at, len(self._text)):
                if self._text[place] not in SPACE:
                    self._take(place)
                    return self._text[place]
            self._take(len(self._text))
            if not self.more():
                return ""

    def skip(self) -> None:
        """Go past the character that `peek` returned."""
        self._take(self._at + 1)

    def value(self) -> Any:
        """Parse the JSON value that begins here.

        Raises
        ------
        ValueError
            If it is not JSON, or the text ends in it.
        """
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, self._at)
            except ValueError:
                if self._ended or not self.more():
                    raise
                continue
            if end == len(self._text) and self.more():  # a number may go on
                continue
            self._take(min(end, len(self._text)))
            return value

    def _take(self, place: int) -> None:
        self.line += self._text.count("\n", self._at, place)
        self._at = place


def read_array(path: Path, on_bad_row: OnBadRow) -> Rows:
    """Yield the objects of a JSON array with the lines they begin on; see `files.read`."""
    with open_bytes(path) as stream:
        text = Buffer(io.TextIOWrapper(stream, encoding="utf-8-sig"))
        text.peek()
        text.skip()  # the bracket
        mark = text.peek()
        while mark != "]":
            line = text.line
            row = _parsed(text, path)
            if isinstance(row, dict):
                yield line, row
            else:
                message = f"not a JSON object but {type(row).__name__}"
                on_bad_row(DataError(message, path, line, "correct it, or skip such rows"))
            mark = text.peek()
            if mark == ",":
                text.skip()
                mark = text.peek()
            elif mark != "]":
                said = f"{mark!r} instead of a comma" if mark else "the file ends in the array"
                raise DataError(f"not JSON ({said})", path, text.line, HINT)
        text.skip()
        if rest := text.peek():
            message = f"not JSON ({rest!r} after the array)"
            raise DataError(message, path, text.line, "make it one array, or JSON lines")


def sole_value(path: Path) -> bool:
    """Return whether a file that begins with a JSON object holds nothing else.

    A row of JSON lines, the last one included, has its prompt in it and not in a list of objects.
    """
    with open_bytes(path) as stream:
        text = Buffer(io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace"))
        try:
            text.peek()
            value = text.value()
        except (ValueError, RecursionError):
            return False
        return not text.peek() and _rows_of(value, path) is not None


def read_object(path: Path, on_bad_row: OnBadRow) -> Rows:
    """Yield the objects in the list of a JSON object, counted from 1; see `files.read`."""
    with open_bytes(path) as stream:
        value = json.load(io.TextIOWrapper(stream, encoding="utf-8-sig"))
    for number, row in enumerate(_rows_of(value, path) or [], start=1):
        if isinstance(row, dict):
            yield number, row
        else:
            message = f"not a JSON object but {type(row).__name__}"
            on_bad_row(DataError(message, path, number, "correct it, or skip such rows"))


def _rows_of(value: Any, path: Path) -> list[Any] | None:
    """Return the list of rows that a JSON object holds under one of `AROUND`, or None.

    Raises
    ------
    DataError
        If the object could be a row itself, or holds two such lists.
    """
    if not isinstance(value, dict):
        return None
    found = [name for name in value if name.lower() in AROUND and _is_table(value[name])]
    if not found:
        return None
    if len(found) > 1 or any(shape.fits(value) for shape in KNOWN):
        names = " and ".join(found)
        message = f"is one JSON object, of which it is not clear whether {names} holds the rows"
        raise DataError(message, path, hint="save the rows as JSON lines, one object a line")
    rows: list[Any] = value[found[0]]
    log.info("%s: the rows are the %d objects in %s", path, len(rows), found[0])
    return rows


def _is_table(part: Any) -> bool:
    return isinstance(part, list) and bool(part) and isinstance(part[0], dict)


def _parsed(text: Buffer, path: Path) -> Any:
    line = text.line
    try:
        return text.value()
    except RecursionError:
        raise DataError("not JSON (nested too deep)", path, line, HINT) from None
    except ValueError as error:
        raise DataError(f"not JSON ({_said(error)})", path, line, HINT) from None


def _said(error: ValueError) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)
