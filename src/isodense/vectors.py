"""Reading the embeddings artifact: shards as one array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from isodense.artifacts import load_array, read_manifest
from isodense.errors import ArtifactError


def shard_name(number: int) -> str:
    """Return the file name of shard `number`."""
    return f"shard-{number:05d}.npy"


def load_vectors(folder: str | Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Load ``data/embeddings``.

    Returns
    -------
    vectors : ndarray of shape (n_prompts, dim), float32
        Unit rows, in the order of the prompts.
    manifest : dict

    Raises
    ------
    ArtifactError
        If the artifact is incomplete, or a shard is not of its shape.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, "embeddings")
    rows, dim, step = manifest["rows"], manifest["dim"], manifest["rows_per_shard"]
    vectors = np.empty((rows, dim), dtype=np.float32)
    for number, start in enumerate(range(0, rows, step)):
        shard = load_array(folder / shard_name(number), mmap=True)
        if shard.shape != (min(step, rows - start), dim):
            message = f"{folder / shard_name(number)} has shape {shard.shape}"
            raise ArtifactError(message, "run `dvc repro embeddings`")
        vectors[start : start + step] = shard
    return vectors, manifest
