"""The nearest training prompts of a new prompt, found exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from isodense.embeddings.build import load_with
from isodense.embeddings.postprocess import FILE as TRANSFORM
from isodense.embeddings.postprocess import load_transform
from isodense.embeddings.reader import load_vectors
from isodense.inspect.lookup import heldout_rows
from isodense.neighbors.build import unit_rows
from isodense.neighbors.exact import nearest
from isodense.neighbors.graph import Graph
from isodense.pipeline.artifact import content_sha256, read_manifest, require_same_ids
from isodense.pipeline.errors import ArtifactError

ROWS = 65_536  # vectors in memory at once


def nearest_to(text: str, k: int, prompts: Path, embeddings: Path, encoder: Path) -> Graph:
    """Embed a text as the embeddings stage does and find its `k` nearest training prompts.

    Parameters
    ----------
    text : str
        What the encoder reads.
    k : int
        At most the number of training prompts.
    prompts, embeddings, encoder : Path
        The artifacts that the set's vectors were made from and are in.

    Returns
    -------
    Graph
        One row that points to numbers of training prompts. Vectors are read a part at a time.

    Raises
    ------
    ArtifactError
        If the artifacts do not belong together.
    ModelError
        If the encoder gives the text no vector.
    """
    manifest = read_manifest(embeddings, "embeddings")
    ids = read_manifest(prompts, "prompts")["ids_sha256"]
    require_same_ids(ids, manifest, f"the vectors in {embeddings}")
    query = _vector(text, embeddings, encoder, manifest)
    rows = np.flatnonzero(~heldout_rows(prompts))
    best = Graph.empty(1, 0)
    for start in range(0, len(rows), ROWS):
        part = unit_rows(load_vectors(embeddings, rows[start : start + ROWS])[0])
        found = nearest(query, part, min(k, len(part)), done=lambda _: None, device="cpu")
        indices = np.hstack([best.indices, found.indices + np.int32(start)])
        distances = np.hstack([best.distances, found.distances])
        order = np.lexsort((indices[0], distances[0]))[:k]
        best = Graph(indices[:, order], distances[:, order])
    return best


def _vector(text: str, embeddings: Path, encoder: Path, manifest: dict[str, Any]) -> np.ndarray:
    """Return the text's vector as it would stand in the artifact, an ndarray of shape (1, dim)."""
    if content_sha256(read_manifest(encoder, "models")) != manifest["inputs"]["encoder"]:
        message = f"{embeddings} was not made by the model in {encoder}"
        raise ArtifactError(message, "run `dvc pull models`, or `dvc repro embeddings`")
    loaded = load_with(encoder, manifest["params"], "auto")
    rows = loaded.encode([text]).astype(manifest["dtype"]).astype(np.float32)
    if rows.shape[1] != manifest["dim"]:
        message = f"{encoder} gives {rows.shape[1]} columns, and {embeddings} has {manifest['dim']}"
        raise ArtifactError(message, "run `dvc repro embeddings`")
    if TRANSFORM in manifest["files"]:
        rows = load_transform(embeddings, manifest).apply(rows)
    return unit_rows(rows)
