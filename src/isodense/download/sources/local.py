r"""Local files of pairs: JSON lines (plain or gzipped) or parquet, in one of four forms.

======================  ================================================================
form                    columns
======================  ================================================================
HH                      ``chosen``, ``rejected``: whole dialogues as strings, with
                        ``\n\nHuman:`` and ``\n\nAssistant:`` before the turns
strings                 ``prompt``, ``chosen``, ``rejected``: one string each
conversational          ``prompt``, ``chosen``, ``rejected``: lists of messages, the last
                        two of one assistant message (TRL's explicit prompt)
implicit                ``chosen``, ``rejected``: whole conversations that share their
                        start (TRL's implicit prompt; a ``prompt`` string is ignored)
======================  ================================================================

The first row of a file decides the form, and a later row of another form is malformed. Any form may
have a column ``label``, the topic of the prompt, which metrics, report and reward functions use;
other columns are left out. A file that cannot be read, or of unknown form, is always an error;
malformed rows are errors or counted, by ``download.on_bad_row``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from isodense.download import examples
from isodense.download.sources import hh
from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import OnBadRow, read_jsonl
from isodense.pipeline.params import Params

HINT = "correct the row, or set download.on_bad_row: skip"
KINDS: dict[tuple[str, ...], str] = {  # the types of prompt, chosen and rejected
    ("NoneType", "str", "str"): "HH",
    ("str", "str", "str"): "strings",
    ("list", "list", "list"): "conversational",
    ("NoneType", "list", "list"): "implicit",
    ("str", "list", "list"): "implicit",
}
COLUMNS = {"prompt", "chosen", "rejected", "label"}
FORMS = (
    "HH (chosen, rejected: dialogue strings), strings (prompt, chosen, rejected), "
    "conversational (prompt, chosen, rejected: lists of messages) "
    "or implicit (chosen, rejected: lists of messages)"
)


class LocalParams(Params):
    """Section ``download.local``: files in order, and the most pairs to take (null: all)."""

    files: list[str]
    limit: int | None = Field(ge=1)


def load(params: LocalParams, on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    """Yield the pairs of the files, in order.

    Parameters
    ----------
    params : LocalParams
        Files to read; relative paths start at the working directory.
    on_bad_row : callable
        Called with a `DataError` for a malformed row.

    Raises
    ------
    DataError
        If a file is missing, damaged, empty, or of no known form.
    """
    return islice(_all(params.files, on_bad_row), params.limit)


def _all(files: list[str], on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    for file in files:
        yield from _pairs(Path(file).expanduser(), on_bad_row)


def _pairs(path: Path, on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    form = unknown = None
    for line, row in _rows(path, on_bad_row):
        form = form or _form(row)
        if form is None:
            columns = ", ".join(f"{name} ({_kind(row[name])})" for name in row) or "none"
            message = f"the columns are of no known form: {columns}"
            unknown = unknown or DataError(message, path, line, f"the forms are: {FORMS}")
            on_bad_row(unknown)
            continue
        pair = _pair(row, form)
        if isinstance(pair, str):
            on_bad_row(DataError(pair, path, line, HINT))
        else:
            yield pair
    if form is None:
        empty = DataError("has no rows", path, hint="remove it from download.local.files")
        raise unknown or empty


def _rows(path: Path, on_bad_row: OnBadRow) -> Iterator[tuple[int, dict[str, Any]]]:
    return read_parquet(path) if path.suffix == ".parquet" else read_jsonl(path, on_bad_row)


def read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(row number, row)`` of a parquet file, counted from 1.

    If the file has both ``chosen`` and ``rejected``, only the columns of a pair are read.

    Raises
    ------
    DataError
        If the file is missing, damaged or cut short.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            known = [name for name in file.schema_arrow.names if name in COLUMNS]
            columns = known if {"chosen", "rejected"} <= set(known) else None
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except FileNotFoundError:
        raise DataError("no such file", path, hint="check the path in params.yaml") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        message = f"the parquet file is damaged or cut short after row {number} ({first})"
        raise DataError(message, path, hint="fetch the file again") from None


def _form(row: dict[str, Any]) -> str | None:
    if row.get("prompt", "") is None:
        return None
    return KINDS.get(tuple(_kind(row.get(name)) for name in ("prompt", "chosen", "rejected")))


def _kind(value: Any) -> str:
    return type(value).__name__


def _pair(row: dict[str, Any], form: str) -> dict[str, Any] | str:
    """Return the pair of a row, or the reason why the row is malformed."""
    if _form(row) != form:
        return f"not of the {form} form, as the file's first row is"
    if form == "HH":
        pair = hh.pair_of(row["chosen"], row["rejected"])
    else:
        pair = {"strings": _strings, "conversational": _explicit, "implicit": _implicit}[form](row)
    if isinstance(pair, str):
        return pair
    found = examples.fault(pair)
    return found or _labelled(pair, row.get("label"))


def _strings(row: dict[str, Any]) -> dict[str, Any] | str:
    return _explicit(
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
    )


def _explicit(row: dict[str, Any]) -> dict[str, Any] | str:
    pair = {}
    for name in ("prompt", "chosen", "rejected"):
        found = _full_messages_fault(row[name])
        if found:
            return f"{name}: {found}"
        pair[name] = _plain(row[name])
    return pair


def _implicit(row: dict[str, Any]) -> dict[str, Any] | str:
    for name in ("chosen", "rejected"):
        found = _full_messages_fault(row[name])
        if not found and row[name][-1]["role"] != "assistant":
            found = f"ends with the {row[name][-1]['role']}, not with the assistant"
        if found:
            return f"{name}: {found}"
    return examples.from_dialogues(_plain(row["chosen"]), _plain(row["rejected"]))


def _full_messages_fault(messages: Any) -> str | None:
    found = examples.messages_fault(messages)
    if found:
        return found
    for number, message in enumerate(messages, start=1):
        if not message["content"].strip():
            return f"the content of message {number} is empty"
    return None


def _plain(messages: list[dict[str, Any]]) -> list[examples.Message]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _labelled(pair: dict[str, Any], label: Any) -> dict[str, Any] | str:
    if label is None or label == "":
        return pair
    if isinstance(label, bool) or not isinstance(label, str | int):
        return f"label is {type(label).__name__}, not a string"
    return {**pair, "label": str(label)}
