"""Verifying an embeddings artifact: a sample of the prompts is embedded again and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from isodense.embeddings.build import load_with
from isodense.embeddings.reader import iter_shards
from isodense.pipeline.artifact import content_sha256, read_manifest, require_same_ids
from isodense.pipeline.errors import ArtifactError
from isodense.prompts.reader import load_prompts

# least cosine of one model's vectors on two machines
DRIFT = {"float64": 0.9999, "float32": 0.9999, "bfloat16": 0.99}
UNIT = 1e-3  # tolerance of the norm of a stored row, in float16


def recompute(folder: Path, prompts: Path, encoder: Path, count: int, device: str = "auto") -> str:
    """Embed `count` prompts again and compare the vectors with the stored ones.

    Parameters
    ----------
    folder : Path
        The embeddings artifact.
    prompts : Path
        The prompts artifact.
    encoder : Path
        The model artifact of the encoder.
    count : int
        Number of prompts to embed, evenly spread.
    device : {"auto", "cpu", "cuda"}
        Device to embed on.

    Returns
    -------
    str
        ``same`` (to the byte), ``drifted (largest difference …)`` as on another kind of machine,
        or ``different model (…)``, with the reason.

    Raises
    ------
    ArtifactError
        If the prompts are not those of the embeddings.
    """
    manifest = read_manifest(folder, "embeddings")
    found = load_prompts(prompts)
    require_same_ids(found.ids_sha256, manifest, f"the vectors in {folder}")
    rows = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int))
    stored = _stored(folder, manifest, rows)
    encoder_sha256 = content_sha256(read_manifest(encoder, "models"))
    if encoder_sha256 != manifest["inputs"]["encoder"]:
        wanted = manifest["inputs"]["encoder"]
        return f"different model (the hash of {encoder} is {encoder_sha256:.12}, not {wanted:.12})"
    loaded = load_with(encoder, manifest["params"], device)
    computed = loaded.encode([found.texts[row] for row in rows]).astype(manifest["dtype"])
    if computed.shape != stored.shape:
        return f"different model (it gives {computed.shape[1]} columns, not {stored.shape[1]})"
    if (computed == stored).all():
        return "same"
    one, two = computed.astype(np.float64), stored.astype(np.float64)
    cosine = float((one * two).sum(axis=1).min())
    unit = bool((np.abs(np.linalg.norm(two, axis=1) - 1) < UNIT).all())
    if not (cosine >= DRIFT[manifest["params"]["precision"]] and unit):  # also true for NaN
        return f"different model (smallest cosine {cosine:.4f})"
    return f"drifted (largest difference {np.abs(one - two).max():.1e})"


def _stored(folder: Path, manifest: dict[str, Any], rows: np.ndarray) -> np.ndarray:
    """Return the stored vectors of the rows `rows`, in rising order."""
    parts, start = [], 0
    for shard in iter_shards(folder, manifest):
        parts.append(shard[rows[(rows >= start) & (rows < start + len(shard))] - start])
        start += len(shard)
    if not parts:
        raise ArtifactError(f"{folder} has no shards", "run `dvc repro embeddings`")
    return np.concatenate(parts)
