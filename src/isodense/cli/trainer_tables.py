"""Parquet files of rows whose columns the data brings: types from all rows, not from the first.

A column has the Arrow type of its values. What has no fixed keys (the schemas in ``tools``,
messages with tool calls, values that do not go together) is a column of Parquet's type JSON, which
``datasets`` decodes; other readers see the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isodense.pipeline.tables import TOOLS, compact, plain

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
PLAIN = {"role", "content"}  # keys of a message without tools


def write_parquet(rows: Callable[[], Iterator[list[Row]]], measures: set[str], path: Path) -> None:
    """Write rows as one Parquet file.

    Parameters
    ----------
    rows : callable
        Yields the rows in blocks, the same every time: they are read twice.
    measures : set of str
        Columns, also inside ``extra_info``, whose real numbers are float32.
    path : Path
        The new file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema(rows(), measures)
    with pq.ParquetWriter(path, schema) as writer:
        for block in rows():
            arrays = [
                arrow_array([row.get(field.name) for row in block], field.type) for field in schema
            ]
            writer.write_table(pa.table(arrays, schema=schema))


def arrow_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return the values of a column in a type of :func:`arrow_schema`."""
    import pyarrow as pa

    if kind != pa.json_():
        return pa.array(values, kind)
    texts = [None if value is None else compact(plain(value)) for value in values]
    return pa.ExtensionArray.from_storage(kind, pa.array(texts, kind.storage_type))


def arrow_schema(blocks: Iterable[list[Row]], measures: set[str]) -> pa.Schema:
    """Return the schema of all rows."""
    import pyarrow as pa

    types: dict[str, pa.DataType] = {}
    for block in blocks:
        for name in dict.fromkeys(name for row in block for name in row):
            values, kind = [row.get(name) for row in block], types.get(name, pa.null())
            try:
                types[name] = _with(kind, name, values, measures)
            except (pa.ArrowException, OverflowError, TypeError):
                types[name] = pa.json_()
    return pa.schema([(name, _written(kind)) for name, kind in types.items()])


def _with(kind: pa.DataType, name: str, values: list[Any], measures: set[str]) -> pa.DataType:
    """Return the type of values so far, which is `kind`, and of `values`."""
    import pyarrow as pa

    if kind == pa.json_() or name == TOOLS or (name == "prompt" and _has_more(values)):
        return pa.json_()
    return _unified(kind, _inferred(name, values, measures))


def _has_more(prompts: list[list[Row]]) -> bool:
    return any(set(message) != PLAIN for prompt in prompts for message in prompt)


def _inferred(name: str, values: list[Any], measures: set[str]) -> pa.DataType:
    """Return the type of a column's values; real numbers that are measures are float32."""
    import pyarrow as pa

    if hasattr(values[0], "shape"):
        return pa.list_(pa.float32())
    kind = pa.infer_type(values)
    if name in measures and pa.types.is_floating(kind):
        return pa.float32()
    if name == "extra_info" and pa.types.is_struct(kind):
        return pa.struct(
            [
                field.with_type(pa.float32())
                if field.name in measures and pa.types.is_floating(field.type)
                else field
                for field in kind
            ]
        )
    return kind


def _unified(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    schemas = [pa.schema([("column", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field("column").type


def _written(kind: pa.DataType) -> pa.DataType:
    """Return the type with text in the place of nothing, which readers take for anything."""
    import pyarrow as pa

    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_struct(kind):
        return (
            pa.struct([field.with_type(_written(field.type)) for field in kind])
            if kind.num_fields
            else pa.string()
        )
    if pa.types.is_list(kind):
        return pa.list_(_written(kind.value_type))
    return kind
