"""Where the rows come from: files, a data set of the Hub, or an object of Python's.

Nothing is imported to recognise an object: a table has ``column_names`` (``datasets``, pyarrow) or
``to_dict`` (pandas), and anything else that has a length is a list.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from isodense.download import files
from isodense.pipeline.errors import DataError, IsodenseError
from isodense.pipeline.extras import require
from isodense.pipeline.jsonl import OnBadRow

HUB = re.compile(r"(?:hf://)?(?:datasets/)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
WHAT = "a path, owner/name of the Hub, a data set, a data frame, or a list of texts or rows"

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row]]


@dataclass(frozen=True)
class Part:
    """One file, or an object of Python's.

    Attributes
    ----------
    name : str
        What errors call it.
    read : callable
        Yields rows with their numbers, lines where there are lines; its argument is called with a
        `DataError` for a row that is malformed.
    is_file : bool
        Whether numbers are lines, or rows from 1; otherwise they count from 0.
    """

    name: str
    read: Callable[[OnBadRow], Rows]
    is_file: bool = True


def parts_of(data: Any, split: str, config: str | None) -> tuple[str, Iterator[Part]]:
    """Return what the data are called, and the parts that they consist of.

    Parameters
    ----------
    data : path, str, data set, data frame, or list of str, of messages or of dict
        A string is a file, folder or pattern where there is such a thing, else a data set of the
        Hub as ``owner/name`` or ``owner/name@revision``.
    split : str
        Of a data set of the Hub, or of an object that holds several.
    config : str or None
        Configuration of a data set of the Hub.

    Raises
    ------
    DataError
        If there is no such file, data set or split.
    IsodenseError
        If the object is none of these.
    """
    if isinstance(data, str | Path):
        if not str(data).strip():
            raise IsodenseError("the data have an empty name", f"pass {WHAT}")
        repository = HUB.fullmatch(str(data))
        if repository and not Path(data).exists() and not _is_named_as_file(str(data)):
            return repository[1], _hub(repository[1], repository[2] or "main", split, config)
        return Path(data).name, (_file(path) for path in files.expand([str(data)]))
    if isinstance(data, Mapping):  # a DatasetDict
        if split not in data:
            hint = f"name one of {', '.join(map(str, data))}"
            raise DataError(f"has no split {split!r}", "the data", hint=hint)
        data = data[split]
    return "data", iter([Part("data", partial(_rows, data), is_file=False)])


def holds(data: str, path: Path) -> bool:
    """Return whether a file is among the data, or would be once it is written.

    Parameters
    ----------
    data : str
        What :func:`parts_of` takes.
    path : Path
        The file.
    """
    here = Path(data).expanduser()
    if here.is_dir():
        inside = path.resolve().is_relative_to(here.resolve())
        return inside and _is_named_as_file(path.name)
    read = [here] if here.exists() else files.expand([data]) if glob.has_magic(data) else []
    return path.exists() and any(path.samefile(one) for one in read)


def _is_named_as_file(name: str) -> bool:
    return bool(files.data_files([Path(name)]))


def _file(path: Path) -> Part:
    return Part(str(path), partial(files.read, path))


def _hub(repo: str, revision: str, split: str, config: str | None) -> Iterator[Part]:
    from isodense.download.snapshot import Snapshot
    from isodense.download.sources.hub import split_files

    require("hub")
    snapshot = Snapshot(repo, revision)
    for pattern in split_files(snapshot, config, split):
        for name, path in snapshot.matching(pattern):
            yield Part(name, partial(files.read, path))


def _rows(data: Any, on_bad_row: OnBadRow) -> Rows:
    for number, row in enumerate(_items(data)):
        if isinstance(row, Mapping):
            yield number, {str(name): value for name, value in row.items()}
        elif row is None or isinstance(row, str | list) or _is_nan(row):
            yield number, {"prompt": row}
        else:
            message = f"is {type(row).__name__}, not a text, a list of messages or a row"
            on_bad_row(DataError(message, f"data[{number}]"))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _items(data: Any) -> Iterable[Any]:
    """Return what an object consists of, rows where it is a table."""
    if hasattr(data, "to_pylist"):  # pyarrow.Table
        _require_different(data.schema.names)
        return data.to_pylist()
    if hasattr(data, "column_names"):  # datasets
        return _unformatted(data)
    if hasattr(data, "columns") and hasattr(data, "to_dict"):  # pandas
        _require_different(map(str, data.columns))
        columns = {str(name): _values(column) for name, column in data.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if isinstance(data, Iterable) and not isinstance(data, bytes):
        return data
    raise IsodenseError(f"{type(data).__name__} is nothing to weigh", f"pass {WHAT}")


def _require_different(names: Iterable[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"has two columns {twice[0]!r}", "the data", hint="rename one of them")


def _unformatted(data: Any) -> Any:
    """Return a data set whose rows are Python's, not tensors; a transform of the user stays."""
    chosen = getattr(data, "format", None)
    if chosen is None or chosen["type"] in (None, "custom"):
        return data
    return data.with_format(None, columns=chosen["columns"])


def _values(column: Any) -> list[Any]:
    """Return the values of a column of pandas as Python's, None where one is missing."""
    import pyarrow as pa

    try:
        found: list[Any] = pa.array(column, from_pandas=True).to_pylist()
    except (pa.ArrowException, OverflowError, TypeError, ValueError):  # of several types
        missing = column.isna()
        return [None if gone else value for value, gone in zip(column, missing, strict=True)]
    return found
