"""Tables in Parquet shards: written from a stream of rows, read whole, by column or by row.

A table is a folder of ``shard-00000.parquet``, ``shard-00001.parquet``, …, of a fixed number of
rows each, so that appended rows change the last shard only. ``datasets.load_dataset("parquet")``,
pandas and DuckDB read it as it is. The columns have the types of the values: integers beside real
numbers become real numbers, objects get the union of their keys, and values that do not go together
(a number in one row, a string in another) are an error that names both.

What has no fixed columns is stored as JSON text: the schemas in the column ``tools``, and the
arguments of a message's tool calls (as OpenAI's API has them). Readers return them decoded.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from isodense.pipeline.errors import ArtifactError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 65_536  # of a shard
DEPTH = 50  # of objects and lists in one another; Arrow's files hold 64
GROUP = 8_192  # rows of a row group, the least that is read at once
TOOLS = "tools"
CONVERSATIONS = ("prompt", "chosen", "rejected")
ORIGIN = "\0origin"  # key under which a row may carry the file and line it is from; never written

Row = dict[str, Any]
T = TypeVar("T")


class MixedTypes(ValueError):
    """A value that does not go together with those of its column in earlier rows."""


def write_rows(
    folder: Path,
    rows: Iterable[Row],
    on_mixed: Callable[[Row, MixedTypes], None] | None = None,
) -> int:
    """Write `rows` as the shards of a table and return their number.

    Parameters
    ----------
    folder : Path
        An existing folder.
    rows : iterable of dict
        Rows of any keys, in which absent and null are the same. Read as they are written: only
        some thousand are in memory.
    on_mixed : callable, optional
        Called with a row whose types do not go together with those of earlier rows. If the call
        returns, the row is left out.

    Raises
    ------
    MixedTypes
        If there is such a row and `on_mixed` is not given.
    """
    import pyarrow as pa

    with tempfile.TemporaryDirectory(dir=folder, prefix=".rows-") as staging:
        paths, schema = [], pa.schema([])
        for number, batch in enumerate(_chunks(rows, GROUP)):
            table, schema = _typed(batch, schema, on_mixed)
            paths.append(Path(staging, f"{number}.arrow"))
            with (
                pa.OSFile(str(paths[-1]), "wb") as sink,
                pa.ipc.new_file(sink, table.schema) as out,
            ):
                out.write_table(table)
        return _write_shards(folder, paths, schema)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def _typed(
    rows: list[Row], schema: pa.Schema, on_mixed: Callable[[Row, MixedTypes], None] | None
) -> tuple[pa.Table, pa.Schema]:
    """Return `rows` as a table, and the schema of all rows so far."""
    try:
        table = _table(rows)
        return table, _unified(schema, table.schema)
    except MixedTypes:  # rare: find the row, which costs time
        kept = []
        for row in rows:
            try:
                schema = _unified(schema, _table([row]).schema)
                kept.append(row)
            except MixedTypes as error:
                if on_mixed is None:
                    raise
                on_mixed(row, error)
        return _table(kept, schema), schema


def _table(rows: list[Row], schema: pa.Schema | None = None) -> pa.Table:
    import pyarrow as pa

    rows = [_stored(row) for row in rows]
    names = dict.fromkeys(name for row in rows for name in row)
    arrays = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            arrays[name] = pa.array(values, schema.field(name).type if schema else None)
            if is_deep(arrays[name].type):
                raise MixedTypes(f"column {name}: nested more than {DEPTH} deep")
        except (pa.ArrowException, OverflowError, TypeError, RecursionError) as error:
            raise MixedTypes(f"column {name}: {_said(error)}") from None
    return pa.table(arrays)


def is_deep(kind: pa.DataType) -> bool:
    """Return whether a type has more than `DEPTH` types in one another."""
    level = [kind]
    for _ in range(DEPTH):
        level = [part.field(number).type for part in level for number in range(part.num_fields)]
    return bool(level)


def _unified(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    import pyarrow as pa

    try:
        return pa.unify_schemas([schema, other], promote_options="permissive")
    except pa.ArrowException as error:
        raise MixedTypes(_said(error)) from None


def _said(error: BaseException) -> str:
    first = str(error).splitlines()[0]
    return first.removeprefix("Unable to merge: ").replace("Field ", "column ")


def _write_shards(folder: Path, paths: list[Path], schema: pa.Schema) -> int:
    """Write the batches in `paths` as shards of the one schema; return the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([_storable(field) for field in schema])
    count = 0
    for number, shard in enumerate(_chunks(paths, ROWS // GROUP)):
        with pq.ParquetWriter(folder / shard_name(number), schema, compression="zstd") as writer:
            for path in shard:
                with pa.memory_map(str(path)) as source:
                    table = _cast(pa.ipc.open_file(source).read_all(), schema)
                writer.write_table(table, row_group_size=GROUP)
                count += len(table)
    return count


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        column = table.column(field.name)
        try:
            columns.append(column.cast(field.type))
        except pa.ArrowException:  # objects without keys
            try:
                columns.append(pa.array(map(_without_empty, column.to_pylist()), field.type))
            except (pa.ArrowException, OverflowError, TypeError) as error:
                raise MixedTypes(f"column {field.name}: {_said(error)}") from None
    return pa.table(columns, schema=schema)


def _storable(field: pa.Field) -> pa.Field:
    """Return the field without objects that have no keys, which Parquet cannot hold."""
    return field.with_type(_storable_type(field.type))


def _storable_type(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return pa.struct([_storable(field) for field in kind]) if kind.num_fields else pa.null()
    if pa.types.is_list(kind):
        return pa.list_(_storable_type(kind.value_type))
    return kind


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_empty(part) for name, part in value.items()} or None
    if isinstance(value, list):
        return [_without_empty(part) for part in value]
    return value


def shard_name(number: int) -> str:
    """Return the name of a shard's file.

    Examples
    --------
    >>> shard_name(3)
    'shard-00003.parquet'
    """
    return f"shard-{number:05d}.parquet"


def schema_of(folder: str | Path) -> pa.Schema:
    """Return the Arrow schema of a table.

    Raises
    ------
    ArtifactError
        If it has no shard, or the first one is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(folder) / shard_name(0)
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def read_rows(folder: str | Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a table in order, null values left out.

    Parameters
    ----------
    folder : str or Path
    columns : sequence of str, optional
        The columns to read; those that the table lacks are left out. By default all.

    Raises
    ------
    ArtifactError
        If a shard is missing or damaged.
    """
    for batch in read_batches(folder, columns):
        for row in batch.to_pylist():
            yield _read(row)


def read_batches(
    folder: str | Path, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield a table as Arrow record batches; parameters as in :func:`read_rows`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted(Path(folder).glob("shard-*.parquet"))
    if not paths:
        raise _damaged(Path(folder) / shard_name(0), FileNotFoundError("no such file"))
    for path in paths:
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                names = file.schema_arrow.names
                wanted = names if columns is None else [name for name in columns if name in names]
                yield from file.iter_batches(batch_size=GROUP, columns=wanted)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from None


def read_at(folder: str | Path, wanted: Iterable[int]) -> dict[int, Row]:
    """Return some rows of a table by their number, reading only the row groups that hold them.

    Raises
    ------
    ArtifactError
        If a shard is missing or damaged, or there is no such row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: dict[int, Row] = {}
    groups: dict[tuple[int, int], list[int]] = {}
    for row in sorted(set(wanted)):
        groups.setdefault((row // ROWS, row % ROWS // GROUP), []).append(row)
    for (shard, group), rows in groups.items():
        path = Path(folder) / shard_name(shard)
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                table = file.read_row_group(group)
            picked = table.take([row % ROWS % GROUP for row in rows]).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from None
        found |= zip(rows, map(_read, picked), strict=True)
    return found


def _damaged(path: Path, error: BaseException) -> ArtifactError:
    message = f"{path} cannot be read: {str(error).splitlines()[0]}"
    return ArtifactError(message, f"run `dvc checkout --force {path.parent}` or the stage again")


def _stored(row: Row) -> Row:
    """Return a row as it is stored."""
    stored = {name: value for name, value in row.items() if name != ORIGIN}
    if row.get(TOOLS) is not None:
        stored[TOOLS] = compact(row[TOOLS])
    for name in CONVERSATIONS:
        if row.get(name):
            stored[name] = [_message(message, _as_text) for message in row[name]]
    return stored


def _read(row: Row) -> Row:
    """Return a stored row as it was given."""
    row = {name: value for name, value in row.items() if value is not None}
    if TOOLS in row:
        row[TOOLS] = _decoded(row[TOOLS])
    for name in CONVERSATIONS:
        if row.get(name):
            row[name] = [_message(message, _decoded) for message in row[name]]
    return row


def _message(message: Mapping[str, Any], arguments: Callable[[Any], Any]) -> Row:
    """Return a message without absent keys, and the arguments of its tool calls passed through."""
    kept = {name: value for name, value in message.items() if value is not None}
    if "tool_calls" not in kept:
        return kept
    calls = []
    for call in kept["tool_calls"]:
        function = dict(call["function"])
        if function.get("arguments") is not None:
            function["arguments"] = arguments(function["arguments"])
        calls.append({name: value for name, value in call.items() if value is not None})
        calls[-1]["function"] = function
    return {"role": kept["role"], "content": kept.get("content"), **kept, "tool_calls": calls}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else compact(value)


def _decoded(text: str) -> Any:
    """Return the object or list that a JSON text holds; any other text stays as it is."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict | list) else text


def compact(value: Any) -> str:
    """Return `value` as JSON without spaces, with sorted keys."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def plain(value: Any) -> Any:
    """Return `value` as JSON can hold it: times as ISO 8601, numbers that are none as null.

    Examples
    --------
    >>> from datetime import date
    >>> plain({"day": date(2026, 11, 28), "pass_rate": float("nan")})
    {'day': '2026-11-28', 'pass_rate': None}
    """
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
        return None
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if value is None or isinstance(value, str | int | float):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
