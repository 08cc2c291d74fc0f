"""The columns of any rows as one Arrow table, whatever their values are.

A column has the type of its values, of all rows and not of the first. Values that do not go
together (a number in one row, a string in another), and objects without fixed keys, become JSON
text in a column of Parquet's type JSON, which ``datasets`` decodes; other readers see the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from isodense.pipeline.tables import compact, is_deep, plain

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK = 8_192  # rows that are Python objects at a time

Row = dict[str, Any]


class Columns:
    """Rows, taken one by one and kept as Arrow arrays.

    Examples
    --------
    >>> columns = Columns()
    >>> for row in ({"n": 1}, {"n": 2.5, "mixed": "a"}, {"mixed": 3}):
    ...     columns.add(row)
    >>> columns.table().to_pydict()
    {'n': [1.0, 2.5, None], 'mixed': [None, '"a"', '3']}
    """

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._chunks: list[tuple[int, dict[str, Any]]] = []

    def add(self, row: Row) -> None:
        """Take a row of any keys, in which absent and null are the same."""
        self._rows.append(row)
        if len(self._rows) == CHUNK:
            self._close()

    def table(self) -> pa.Table:
        """Return all rows; columns are in order of their first appearance."""
        import pyarrow as pa

        self._close()
        names = dict.fromkeys(name for _, arrays in self._chunks for name in arrays)
        columns = {}
        for name in names:
            parts = [arrays.get(name, pa.nulls(size)) for size, arrays in self._chunks]
            columns[name] = pa.chunked_array(_together(parts))
        return pa.table(columns)

    def _close(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            names = dict.fromkeys(name for row in rows for name in row)
            arrays = {name: _array([row.get(name) for row in rows]) for name in names}
            self._chunks.append((len(rows), arrays))


def is_json(kind: pa.DataType) -> bool:
    """Return whether a column of a type holds JSON text."""
    import pyarrow as pa

    return bool(kind == pa.json_())


def _array(values: Sequence[Any]) -> pa.Array:
    """Return the values of a column as an array of their common type, or of JSON texts."""
    import pyarrow as pa

    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return _json(values)
    return array if _has_fixed_keys(array.type) and not is_deep(array.type) else _json(values)


def _json(values: Iterable[Any]) -> pa.Array:
    import pyarrow as pa

    texts = [None if value is None else compact(plain(value)) for value in values]
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))


def _together(parts: list[pa.Array]) -> list[pa.Array]:
    """Return the parts of a column in one type."""
    import pyarrow as pa

    if not any(is_json(part.type) for part in parts):
        try:
            kind = pa.unify_schemas(
                [pa.schema([("column", part.type)]) for part in parts],
                promote_options="permissive",
            )
            return [_cast(part, kind.field("column").type) for part in parts]
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            pass
    return [
        part if is_json(part.type) else _json(part.to_pylist(maps_as_pydicts="strict"))
        for part in parts
    ]


def _cast(part: pa.Array, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if pa.types.is_null(kind):  # which readers take for anything
        return pa.nulls(len(part), pa.string())
    return part if part.type == kind else pa.array(part.to_pylist(), kind)


def _has_fixed_keys(kind: pa.DataType) -> bool:
    """Return whether no object within a type is without keys, which Parquet cannot hold."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_has_fixed_keys(field.type) for field in kind)
    return not pa.types.is_list(kind) or _has_fixed_keys(kind.value_type)
