"""What `weigh` returns: a weight for every row, and the file that holds them beside the data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isodense.neighbors.graph import Graph
from isodense.pipeline.artifact import replacing
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.tables import compact, plain
from isodense.weighing.columns import is_json
from isodense.weighing.reading import OURS

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".csv", ".jsonl")
BATCH = 1024  # rows


@dataclass(frozen=True)
class Weighed:
    """Weights of the rows of a data set, in their order.

    Attributes
    ----------
    weights : ndarray of shape (n_rows,), float64
        Sum 1; the larger, the less crowded the neighbourhood of the row's prompt. Rows of the same
        prompt share its weight in equal parts.
    rows : ndarray of shape (n_rows,), int64
        Place of each in the data, from 0; it has gaps where rows were skipped.
    ids : list of str
        Prompt id of each row, as in ``data/prompts``.
    density : ndarray of shape (n_rows,), float32
        Log density; the larger, the more crowded.
    clusters : ndarray of shape (n_rows,), int32
        Duplicate cluster of each row's prompt, from 0.
    coordinates : ndarray of shape (n_rows, 2), float32
        Where it is on the map.
    graph : Graph
        The neighbour graph of the different prompts, in order of first appearance.
    prompts : ndarray of shape (n_rows,), int64
        Which row of the graph each is.
    facts : dict
        Counts and measures behind the opinion.
    opinion : str
        What the weights do, in words.
    inputs : pyarrow.Table
        The data's columns, those with a name of ours under another one.

    Examples
    --------
    >>> import isodense
    >>> texts = ["How do I boil an egg?", "How do I boil eggs?", "Name a volcano."]
    >>> w = isodense.weigh(texts, encoder="models/encoder", params={"embeddings.max_tokens": 64})
    >>> w.table.column_names
    ['prompt_id', 'row', 'weight', 'density', 'cluster', 'x', 'y', 'prompt']
    >>> w.table.to_pandas()  # doctest: +SKIP
    """

    weights: np.ndarray
    rows: np.ndarray
    ids: list[str]
    density: np.ndarray
    clusters: np.ndarray
    coordinates: np.ndarray
    graph: Graph
    prompts: np.ndarray
    facts: dict[str, Any]
    opinion: str
    inputs: pa.Table

    def __len__(self) -> int:
        return len(self.weights)

    def __repr__(self) -> str:
        return f"Weighed({len(self):,} rows, {len(self.graph):,} different prompts)"

    @property
    def table(self) -> pa.Table:
        """All of it as a table: our columns first, then the data's."""
        import pyarrow as pa

        x, y = self.coordinates[:, 0], self.coordinates[:, 1]
        arrays = (self.ids, self.rows, self.weights, self.density, self.clusters, x, y)
        ours = {name: pa.array(values) for name, values in zip(OURS, arrays, strict=True)}
        theirs = zip(self.inputs.column_names, self.inputs.columns, strict=True)
        return pa.table({**ours, **dict(theirs)})

    def to_parquet(self, path: str | Path) -> None:
        """Write the table as one Parquet file."""
        import pyarrow.parquet as pq

        with replacing(path) as staging:
            pq.write_table(self.table, staging, compression="zstd")

    def to_jsonl(self, path: str | Path) -> None:
        """Write the table as JSON lines, null values left out."""
        table = self.table
        decoded = [field.name for field in table.schema if is_json(field.type)]
        with replacing(path) as staging, staging.open("w", encoding="utf-8") as stream:
            for batch in table.to_batches(max_chunksize=BATCH):
                for row in batch.to_pylist():
                    row |= {name: json.loads(row[name]) for name in decoded if row[name]}
                    kept = {name: value for name, value in row.items() if value is not None}
                    stream.write(json.dumps(plain(kept), ensure_ascii=False) + "\n")

    def to_csv(self, path: str | Path) -> None:
        """Write the table as CSV, with lists, objects and bytes as JSON text."""
        import pyarrow as pa
        from pyarrow import csv

        table = self.table
        for place, field in enumerate(table.schema):
            if not is_plain(field.type):
                values = table.column(place).to_pylist()
                texts = [
                    value if value is None or isinstance(value, str) else compact(plain(value))
                    for value in values
                ]
                table = table.set_column(place, field.name, pa.array(texts, pa.string()))
        with replacing(path) as staging:
            csv.write_csv(table, staging)

    def save(self, path: str | Path) -> None:
        """Write the table in the format that the name of the file asks for.

        Raises
        ------
        IsodenseError
            If it is not one of ``.parquet``, ``.csv`` and ``.jsonl``.
        """
        require_suffix(path)
        {".parquet": self.to_parquet, ".csv": self.to_csv, ".jsonl": self.to_jsonl}[
            Path(path).suffix.lower()
        ](path)


def is_plain(kind: pa.DataType) -> bool:
    """Return whether Arrow writes a type as CSV; else a CSV file has JSON text."""
    import pyarrow as pa

    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    extension = isinstance(kind, pa.BaseExtensionType)
    return not (binary or extension or pa.types.is_nested(kind))


def require_suffix(path: str | Path) -> None:
    """Raise unless a file's name says in which format it is to be written."""
    if Path(path).suffix.lower() not in SUFFIXES:
        message = f"{path} ends in none of {', '.join(SUFFIXES)}"
        raise IsodenseError(message, "name a file that does: its name says the format")
