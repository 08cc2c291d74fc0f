"""Reading the map artifact: two coordinates for every prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.artifact import checked, load_array, read_manifest
from isodense.pipeline.errors import ArtifactError

COORDINATES = "coordinates.npy"
HINT = "run `dvc repro map`, or `dvc checkout --force data/map`"


def load_coordinates(folder: str | Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Load ``data/map`` memory-mapped and check it.

    That the coordinates are those of a set of prompts is for the caller to check, by
    :func:`isodense.pipeline.artifact.require_same_ids`.

    Parameters
    ----------
    folder : str or Path
        The map artifact.

    Returns
    -------
    coordinates : ndarray of shape (n_prompts, 2), float32
        Coordinates of all prompts, held-out ones included, in the order of ``data/prompts``.
    manifest : dict
        The artifact's manifest.

    Raises
    ------
    ArtifactError
        If the artifact is incomplete, or its array is of another shape or type, or not finite.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, "map")
    coordinates = load_array(checked(folder, manifest, COORDINATES), mmap=True)
    shape = (manifest["rows"], 2)
    if coordinates.shape != shape or coordinates.dtype != np.float32:
        found = f"{coordinates.dtype} of shape {coordinates.shape}"
        message = f"{folder / COORDINATES} holds {found}, not float32 of shape {shape}"
        raise ArtifactError(message, HINT)
    if not np.isfinite(coordinates).all():
        raise ArtifactError(f"{folder / COORDINATES} holds coordinates that are not finite", HINT)
    return coordinates, manifest
