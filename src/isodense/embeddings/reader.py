"""Reading the embeddings artifact: shards, the ids of their rows, and all rows as one array."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from isodense.embeddings.postprocess import FILE as TRANSFORM
from isodense.embeddings.postprocess import load_transform
from isodense.pipeline.artifact import checked, load_array, read_manifest
from isodense.pipeline.errors import ArtifactError

HINT = "run `dvc repro embeddings`"


def embedding_bytes(rows: int, dim: int, dtype: str) -> int:
    """Return the size of so many vectors on disk."""
    return rows * dim * np.dtype(dtype).itemsize


def shard_name(number: int) -> str:
    """Return the file name of shard `number`."""
    return f"shard-{number:05d}.npy"


def ids_name(number: int) -> str:
    """Return the name of the file with the prompt ids of shard `number`, one per line."""
    return f"ids-{number:05d}.txt"


def shard_count(manifest: dict[str, Any]) -> int:
    """Return the number of shards of an artifact."""
    return sum(name.startswith("shard-") for name in manifest["files"])


def iter_shards(folder: str | Path, manifest: dict[str, Any]) -> Iterator[np.ndarray]:
    """Yield the shards in order, memory-mapped and checked, without post-processing.

    Parameters
    ----------
    folder : str or Path
        The embeddings artifact.
    manifest : dict
        The artifact's manifest.

    Yields
    ------
    ndarray of shape (rows, dim), float16 or float32

    Raises
    ------
    ArtifactError
        If a shard is damaged, its shape is not that in the manifest, or rows are missing.
    """
    for number in range(len(_shapes(folder, manifest))):
        yield _shard(folder, manifest, number)


def _shapes(folder: str | Path, manifest: dict[str, Any]) -> list[tuple[int, ...]]:
    """Return the shape of each shard as the manifest has it."""
    entries = [manifest["files"].get(shard_name(i)) for i in range(shard_count(manifest))]
    shapes = [tuple(entry["shape"]) if entry else () for entry in entries]
    if {len(shape) for shape in shapes} != {2} or sum(s[0] for s in shapes) != manifest["rows"]:
        message = f"the shards of {folder} do not hold the {manifest['rows']} rows of its manifest"
        raise ArtifactError(message, HINT)
    return shapes


def _shard(folder: str | Path, manifest: dict[str, Any], number: int) -> np.ndarray:
    path = checked(folder, manifest, shard_name(number))
    shard, shape = load_array(path, mmap=True), manifest["files"][path.name]["shape"]
    if shard.shape != tuple(shape) or shard.shape[1] != manifest["dim"]:
        message = f"{path} has shape {shard.shape}, not as its manifest says"
        raise ArtifactError(message, HINT)
    return shard


def read_shard_ids(folder: str | Path, manifest: dict[str, Any]) -> list[list[str]]:
    """Return the prompt ids of the rows of each shard, in order.

    Parameters
    ----------
    folder : str or Path
        The embeddings artifact.
    manifest : dict
        The artifact's manifest.

    Raises
    ------
    ArtifactError
        If a shard has no file of ids.
    """
    names = [ids_name(number) for number in range(shard_count(manifest))]
    if absent := [name for name in names if name not in manifest["files"]]:
        raise ArtifactError(f"{folder} has no {absent[0]}", HINT)
    return [checked(folder, manifest, n).read_text(encoding="ascii").split() for n in names]


def load_vectors(
    folder: str | Path, rows: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Load ``data/embeddings``, post-processed if the artifact has a transform.

    Parameters
    ----------
    folder : str or Path
        The artifact; only shards with requested rows are read, and only those rows are copied.
    rows : ndarray of shape (m,), optional
        Numbers of the rows to load, in rising order; all by default.

    Returns
    -------
    vectors : ndarray of shape (m, dim), float32
        Rows of unit length, in the order of the prompts.
    manifest : dict
        The artifact's manifest.

    Raises
    ------
    ArtifactError
        If the artifact is incomplete, or a shard is damaged or of another shape.
    """
    manifest = read_manifest(folder, "embeddings")
    transform = load_transform(folder, manifest) if TRANSFORM in manifest["files"] else None
    rows = np.arange(manifest["rows"]) if rows is None else rows
    if len(rows) and rows[-1] >= manifest["rows"]:
        message = f"{folder} has {manifest['rows']} rows, but row {rows[-1]} is wanted"
        raise ArtifactError(message, HINT)
    vectors = np.empty((len(rows), manifest["dim"]), dtype=np.float32)
    start = 0
    for number, (size, _) in enumerate(_shapes(folder, manifest)):
        first, last = np.searchsorted(rows, (start, start + size))
        if first < last:
            part = _shard(folder, manifest, number)[rows[first:last] - start]
            vectors[first:last] = part if transform is None else transform.apply(part)
        start += size
    return vectors, manifest
