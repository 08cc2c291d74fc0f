"""From rows to prompts, one for each row, with all columns kept beside."""

from __future__ import annotations

import logging
import sys
from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from isodense.download.examples import example_id
from isodense.download.messages import tool_schemas
from isodense.download.shapes.columns import free, lookup
from isodense.download.shapes.known import is_prompt
from isodense.download.shapes.shape import Shape, shape_of
from isodense.pipeline.errors import DataError
from isodense.prompts.conversations import encoder_text, id_of
from isodense.prompts.reader import are_kinds
from isodense.weighing.columns import Columns
from isodense.weighing.data import Part

if TYPE_CHECKING:
    import pyarrow as pa

OURS = ("prompt_id", "row", "weight", "density", "cluster", "x", "y")  # columns of the result
PROMPT, LABEL = "prompt", "label"
BESIDE = ("system", "system_prompt", "tools")  # columns that belong to a prompt
SKIP = "correct the row, or leave such rows out: --on-bad-row skip"
OPTIONS = {  # of `weigh`, for what the hints of `download` name
    "set download.hub.split, or name its files": "name one with --split",
    "set download.hub.config to one of": "name one with --config:",
    "name the files in download.hub.files": "fetch its files and name them",
    "name them in the `local` source": "name them here",
    "use the source hub": "name it as owner/name",
    " in params.yaml": "",
}
THEIRS = "\0"  # behind a name of ours in the data, until all of the data's names are known
DEEPEST = 200  # objects and lists in one another
SHOWN = 5  # skipped rows that are logged; all are counted

OnBadRow = Literal["error", "skip"]
Row = dict[str, Any]

log = logging.getLogger("isodense")


class Reading:
    """One pass over the rows.

    Parameters
    ----------
    parts : iterable of Part
    source : str
        What the data are called.
    column : str or None
        The column of the prompts, nested ones with dots; None: found as `download` finds it.
    label : str or None
        The column that names the kinds of prompts; None: ``label``, where it can name kinds.
    on_bad_row : {"error", "skip"}
        Whether a row without a prompt raises an error or is counted.

    Attributes
    ----------
    rows : array of int64
        Place of each row that has a prompt, from 0; rows that were skipped are counted.
    ids : list of str
        Prompt id of each of them.
    columns : Columns
        Their columns; :meth:`table` gives those with a name of ours an underscore behind it.
    skipped : int
        Rows without a prompt.
    labels : list of str
        The kinds that are known.
    """

    def __init__(
        self,
        parts: Iterable[Part],
        source: str,
        column: str | None,
        label: str | None,
        on_bad_row: OnBadRow,
    ) -> None:
        self.source, self.column = source, column
        self._parts, self._label, self._on_bad_row = parts, label, on_bad_row
        self.rows: array[int] = array("q")
        self.ids: list[str] = []
        self.columns = Columns()
        self.skipped = 0
        self.labels: list[str] = []

    def examples(self) -> Iterator[Row]:
        """Yield the rows of ``data/examples``.

        Raises
        ------
        DataError
            For the first row without a prompt, unless such rows are skipped; if a file cannot be
            read; if no column holds prompts, or one that is named is not there.
        """
        try:
            for part in self._parts:
                yield from _PartReading(self, part).examples()
        except DataError as error:
            raise with_hint(error, reworded(error.hint)) from None
        if not self.ids:
            message = f"no prompt in {self.skipped:,} rows" if self.skipped else "has no rows"
            hint = "see what the first one lacks without --on-bad-row skip" if self.skipped else ""
            raise DataError(message, self.source, hint=hint)
        if self._label is not None and not self.labels:
            message = f"no row has a column {self._label!r}"
            raise DataError(message, self.source, hint="correct --label")

    def table(self) -> pa.Table:
        """Return the columns under names that are free."""
        table = self.columns.table()
        taken = {name.removesuffix(THEIRS) for name in table.column_names}
        names = {
            name: free(f"{name.removesuffix(THEIRS)}_", taken)
            for name in table.column_names
            if name.endswith(THEIRS)
        }
        return table.rename_columns([names.get(name, name) for name in table.column_names])

    @property
    def has_kinds(self) -> bool:
        """Whether the labels are said to name kinds of prompts, or can."""
        return self._label is not None or are_kinds(self.labels)

    def label_of(self, row: Row) -> str:
        """Return the kind of a row's prompt, empty where it is not known."""
        value = lookup(row, self._label or LABEL)
        if isinstance(value, float) and value.is_integer():  # an integer column with nulls
            value = int(value)
        if isinstance(value, str | int) and (self._label or not isinstance(value, bool)):
            return str(value).strip()
        if self._label and value is not None and value == value:
            kind = type(value).__name__
            raise _NoPrompt(f"{self._label} is {kind}, and --label names a column of texts")
        return ""

    def bad(self, error: DataError) -> None:
        """Count a row without a prompt, or raise."""
        if self._on_bad_row == "error":
            raise error
        self.skipped += 1
        if self.skipped <= SHOWN:
            log.warning("skipped %s", error.message.splitlines()[0])


class _PartReading:
    """One pass over one file."""

    def __init__(self, whole: Reading, part: Part) -> None:
        self._whole, self._part = whole, part
        self._shape: Shape | None = None
        self._keeps = False  # whether the column `prompt` is the one that is weighed

    def examples(self) -> Iterator[Row]:
        whole, unknown = self._whole, None
        for number, row in self._part.read(self._malformed):
            try:
                shape = self._shape = self._shape or self._shape_of(row)
                example = self._example(shape, row)
                identifier = id_of(example)
                _require_storable(row)
            except _UnknownShape as error:  # the first row alone may be malformed
                unknown = unknown or error
                whole.bad(error)
                continue
            except _NoPrompt as reason:
                whole.bad(self._fault(str(reason), number))
                continue
            except UnicodeEncodeError:
                whole.bad(self._fault("a text holds half of a surrogate pair", number))
                continue
            whole.rows.append(len(whole.rows) + whole.skipped)
            whole.ids.append(identifier)
            whole.labels += [sys.intern(example[LABEL])] if LABEL in example else []
            whole.columns.add(self._kept(row, example))
            yield {"id": example_id(example), **example, "source": whole.source}
        if unknown is not None and self._shape is None:
            raise unknown

    def _malformed(self, error: DataError) -> None:
        self._whole.bad(with_hint(error, SKIP))

    def _shape_of(self, row: Row) -> Shape:
        """Return the shape of the file by its first row."""
        column = self._whole.column
        if column is not None and column not in row and lookup(row, column) is None:
            message = f"has no column {column!r}; the columns are {', '.join(row)}"
            raise DataError(message, self._part.name, hint=_columns_hint(row))
        mapped = {} if column is None else {PROMPT: column}
        try:
            shape = shape_of(self._view(row), mapped, self._part.name)
        except DataError as error:
            raise _UnknownShape.of(error, _columns_hint(row)) from None
        self._keeps = is_prompt(row.get(PROMPT)) and column in (None, PROMPT)
        return shape

    def _example(self, shape: Shape, row: Row) -> Row:
        """Return the prompt of a row, with its tools and label."""
        found = shape.example(self._view(row))
        if isinstance(found, str):
            raise _NoPrompt(found)
        example = {name: found[name] for name in (PROMPT, "tools") if name in found}
        if not encoder_text(example[PROMPT]):
            raise _NoPrompt(f"{self._whole.column or PROMPT} holds no text")
        label = self._whole.label_of(row)
        return example | ({LABEL: label} if label else {})

    def _view(self, row: Row) -> Row:
        """Return the columns that may belong to the prompt."""
        column = self._whole.column
        if column is None:
            view = {name: value for name, value in row.items() if name != LABEL}
        elif (value := lookup(row, column)) is None:
            raise _NoPrompt(f"{column} is null")
        else:
            view = {name: row[name] for name in BESIDE if name in row} | {column: value}
        if isinstance(tool_schemas(view.get("tools")), str):  # names, say: a column like others
            del view["tools"]
        return view

    def _kept(self, row: Row, example: Row) -> Row:
        """Return the row's columns, names of ours marked; `prompt` is what is weighed."""
        ours = OURS if self._keeps else (*OURS, PROMPT)
        first = {} if self._keeps else {PROMPT: example[PROMPT]}
        return first | {
            f"{name}{THEIRS}" if name in ours else name: value for name, value in row.items()
        }

    def _fault(self, message: str, number: int | None) -> DataError:
        if self._part.is_file:
            return DataError(message, self._part.name, number, SKIP)
        return DataError(message, f"{self._part.name}[{number}]", hint=SKIP)


def _require_storable(value: Any, depth: int = DEEPEST) -> None:
    """Raise unless names and values of columns, and all that is in them, can be written.

    Raises
    ------
    _NoPrompt
        If they are nested more than `depth` deep.
    UnicodeEncodeError
        For half of a surrogate pair.
    """
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict | list | tuple):
        if not depth:
            raise _NoPrompt(f"a column is nested more than {DEEPEST} deep")
        for part in value:
            _require_storable(part, depth - 1)
        if isinstance(value, dict):
            _require_storable(tuple(value.values()), depth)


class _NoPrompt(Exception):
    """Why a row holds no prompt."""


class _UnknownShape(DataError):
    """Why a file cannot be read, as far as a row shows."""

    @classmethod
    def of(cls, error: DataError, hint: str) -> _UnknownShape:
        return cls(_bare(error), error.path, error.line, hint)


def with_hint(error: DataError, hint: str) -> DataError:
    """Return an error with another hint."""
    return DataError(_bare(error), error.path, error.line, hint)


def _bare(error: DataError) -> str:
    """Return what an error says behind file and line."""
    where = f"{error.path}:{error.line}" if error.line is not None else str(error.path)
    return error.message.removeprefix(f"{where}: ")


def reworded(hint: str) -> str:
    """Return the hint of a stage with the options of `weigh` in the place of params."""
    for param, option in OPTIONS.items():
        hint = hint.replace(param, option)
    return hint


def _columns_hint(row: Row) -> str:
    texts = [name for name, value in row.items() if is_prompt(value)]
    longest = max(texts, key=lambda name: len(str(row[name])), default=None)
    guess = f", perhaps --column {longest}" if longest else ""
    return f"name the column that holds the prompts{guess}"
