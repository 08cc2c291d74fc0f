"""The map as a table for Embedding Atlas, or any other program that draws points from Parquet.

``embedding-atlas FILE --x x --y y`` opens it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from isodense.map.reader import load_coordinates
from isodense.pipeline.artifact import replacing, require_same_ids
from isodense.prompts.reader import iter_rows
from isodense.report.prompts import Prompts, load
from isodense.report.regions import regions_of
from isodense.sampling.weights import Weights, load_weights

ROWS = 65_536  # of a row group
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("weight", pa.float32()),
        ("density", pa.float32()),
        ("cluster", pa.int32()),
        ("region", pa.string()),
        ("label", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("x", pa.float32()),
        ("y", pa.float32()),
    ]
)


def write_atlas(prompts: Path, density: Path, neighbors: Path, where: Path, out: Path) -> int:
    """Write every prompt with its whole text, weight and place on the map.

    The columns are ``id``, ``text``, ``weight`` over the mean weight, ``density``, ``cluster`` of
    near-duplicates, ``region`` of the map, ``label``, ``source``, ``split``, ``x`` and ``y``.
    Weight, density and cluster are null for held-out prompts, region and label where there is none.

    Parameters
    ----------
    prompts, density, neighbors : Path
        Artifacts.
    where : Path
        The map artifact.
    out : Path
        The Parquet file, which is replaced.

    Returns
    -------
    int
        Number of rows.

    Raises
    ------
    ArtifactError
        If an artifact is damaged, or two of them are of other prompts.
    """
    weights = load_weights(density)
    shown = load(prompts, weights)
    coordinates, manifest = load_coordinates(where)
    require_same_ids(shown.ids_sha256, manifest, f"the coordinates in {where}")
    regions, numbers = regions_of(shown, neighbors, coordinates)
    names = np.array([*(one.name for one in regions), None], dtype=object)[numbers]
    columns = _columns(shown, weights, names, coordinates)
    with replacing(out) as staging, pq.ParquetWriter(staging, SCHEMA) as writer:
        texts = (row["text"] for row in iter_rows(prompts, ("text",)))
        for block in _blocks(columns, texts):
            writer.write_table(block)
    return len(shown)


def _columns(
    prompts: Prompts, weights: Weights, regions: np.ndarray, coordinates: np.ndarray
) -> dict[str, Any]:
    """Return all columns but the texts, as Arrow arrays."""

    def of_train(values: np.ndarray) -> pa.Array:
        spread = np.zeros(len(prompts), dtype=values.dtype)
        spread[~prompts.heldout] = values
        return pa.array(spread, mask=prompts.heldout)

    return {
        "id": pa.array(prompts.ids),
        "weight": pa.array(prompts.relative.astype(np.float32), mask=prompts.heldout),
        "density": of_train(weights.density.astype(np.float32)),
        "cluster": of_train(weights.clusters.astype(np.int32)),
        "region": pa.array(regions, pa.string()),
        "label": pa.array([label or None for label in prompts.labels], pa.string()),
        "source": pa.array(prompts.sources),
        "split": pa.array(np.where(prompts.heldout, "heldout", "train").tolist()),
        "x": pa.array(np.array(coordinates[:, 0])),
        "y": pa.array(np.array(coordinates[:, 1])),
    }


def _blocks(columns: dict[str, Any], texts: Iterator[str]) -> Iterator[pa.Table]:
    for start in range(0, len(columns["id"]), ROWS):
        block = {name: values.slice(start, ROWS) for name, values in columns.items()}
        block["text"] = pa.array(islice(texts, ROWS), pa.string())
        yield pa.table([block[field.name] for field in SCHEMA], schema=SCHEMA)
