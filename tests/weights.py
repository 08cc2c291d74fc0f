"""A density artifact of weights that a test chooses, each prompt a duplicate cluster of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from isodense.pipeline.artifact import ids_sha256, publishing, write_manifest
from isodense.sampling.weights import (
    CLUSTERS,
    DENSITY,
    HELDOUT_DENSITY,
    HELDOUT_LEAKED,
    IDS,
    WEIGHTS,
)

SCALES = {"scale": 0.5, "radius": 0.1, "width": 0.3, "dimension": 4.0}


def write_weights(
    folder: Path,
    ids: Sequence[str],
    weights: np.ndarray,
    density: np.ndarray | None = None,
    heldout: np.ndarray | None = None,
    leaked: Sequence[int] = (),
    heldout_ids: Sequence[str] = (),
) -> None:
    """Write `weights`, scaled to sum 1, and a density that is by default their negative log.

    `leaked` are the numbers of the held-out prompts, `heldout_ids`, with a near-duplicate in
    training.
    """
    weights = np.asarray(weights, dtype=np.float64)
    density = -np.log(weights) if density is None else density
    with publishing(folder) as made:
        np.save(made / WEIGHTS, (weights / weights.sum()).astype(np.float32))
        np.save(made / DENSITY, np.asarray(density, dtype=np.float32))
        np.save(made / CLUSTERS, np.arange(len(ids), dtype=np.int32))
        np.save(made / IDS, np.array(ids, dtype="S32"))
        if heldout is not None:
            np.save(made / HELDOUT_DENSITY, heldout.astype(np.float32))
            np.save(made / HELDOUT_LEAKED, np.isin(np.arange(len(heldout)), leaked))
        fields = {"inputs": {}, "params": {}, "exponent": 1.0, **SCALES}
        fields["heldout_ids_sha256"] = ids_sha256(heldout_ids)
        write_manifest(made, "density", rows=len(ids), ids_sha256=ids_sha256(ids), **fields)
