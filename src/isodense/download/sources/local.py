"""Local files: any that :mod:`isodense.download.files` reads, of any shape that is known.

The first row of a file decides its shape (:mod:`isodense.download.shapes`), and a later row of
another shape is malformed. A file that cannot be read, or whose rows are of no known shape, is
always an error; malformed rows are errors or counted, by ``download.on_bad_row``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from isodense.download import files
from isodense.download.examples import bad_row
from isodense.download.shapes import shape_of
from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import OnBadRow
from isodense.pipeline.params import Params
from isodense.pipeline.tables import ORIGIN

HINT = "correct the row, or set download.on_bad_row: skip"


class LocalParams(Params):
    """Section ``download.local``.

    Attributes
    ----------
    files : list of str
        Files, folders and patterns, read in order.
    heldout : list of str
        The same of a test set, whose rows are not to be trained on. They come first, so that files
        added later append, and all of them.
    columns : dict of str to str or None
        What the data calls a column, by the name that it should have: see
        :mod:`isodense.download.shapes`. Empty where the shape is known.
    limit : int or None
        The most examples of `files` to take.
    """

    files: list[str]
    heldout: list[str]
    columns: dict[str, str | None]
    limit: int | None = Field(ge=1)


def load(params: LocalParams, on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    """Yield the examples of the files, in order.

    Parameters
    ----------
    params : LocalParams
        Files to read; relative paths start at the working directory.
    on_bad_row : callable
        Called with a `DataError` for a malformed row.

    Raises
    ------
    DataError
        If a file is missing, damaged, empty, or of no known shape.
    """
    for example in _all(params.heldout, params, on_bad_row):
        yield example | {"heldout": True}
    yield from islice(_all(params.files, params, on_bad_row), params.limit)


def _all(names: list[str], params: LocalParams, on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    for path in files.expand(names):
        yield from examples_of(path, str(path), params.columns, on_bad_row)


def examples_of(
    path: Path,
    name: str,
    columns: Mapping[str, str | None],
    on_bad_row: OnBadRow,
    params: str = "download.local",
) -> Iterator[dict[str, Any]]:
    """Yield the examples of one file.

    Parameters
    ----------
    path : Path
        See :func:`isodense.download.files.read`.
    name : str
        What errors call the file.
    columns : mapping of str to str or None
        See :class:`LocalParams`.
    on_bad_row : callable
        Called with a `DataError` for a malformed row.
    params : str
        Section of the map in ``params.yaml``, for errors.

    Raises
    ------
    DataError
        If the file cannot be read, has no rows, or is of no known shape.
    """
    faults = 0

    def bad(error: DataError) -> None:
        nonlocal faults
        faults += 1
        on_bad_row(_renamed(error, path, name))

    shape = unknown = None
    try:
        for line, row in files.read(path, bad):
            if shape is None:
                try:
                    shape = shape_of(row, columns, name, params)
                except DataError as error:  # the first row alone may be malformed
                    unknown = unknown or error
                    bad(error)
                    continue
            example = shape.example(row)
            if isinstance(example, str):
                bad(bad_row(example, name, line, HINT))
            else:
                yield example | {ORIGIN: (name, line)}
    except DataError as error:
        raise _renamed(error, path, name) from None
    if unknown is not None and shape is None:
        raise unknown
    if shape is None and not faults:
        raise DataError("has no rows", name, hint="leave the file out")


def _renamed(error: DataError, path: Path, name: str) -> DataError:
    """Return an error that calls a file by `name` instead of its path in a cache."""
    if str(path) == name or str(error.path) != str(path):
        return error
    said = error.message.removeprefix(str(path)).partition(": ")[2]
    return DataError(said, name, error.line, error.hint)
