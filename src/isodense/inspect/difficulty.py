"""How difficult a training prompt is, beside its weight: the two factors of a draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.artifact import MANIFEST, read_manifest, require_same_ids
from isodense.sampling.difficulty import load_difficulty
from isodense.sampling.weights import Weights


def of_row(row: int, folder: Path | None, weights: Weights) -> dict[str, Any] | None:
    """Return what is known of a training prompt's difficulty, without the floor of training.

    Parameters
    ----------
    row : int
        The prompt's number among the training prompts; -1 where it is not one.
    folder : Path or None
        The difficulty artifact.
    weights : Weights
        What the density stage wrote.

    Returns
    -------
    dict or None
        ``solved``, ``completions``, ``pass_rate`` (smoothed), ``signal``, its value over the mean,
        ``over_mean``, and that of weight × signal, ``product_over_mean``. None of a prompt outside
        the training set, and where the stage is off or has not run.

    Raises
    ------
    ArtifactError
        If the artifact belongs to other prompts, or is damaged.
    """
    if row < 0 or folder is None or not (folder / MANIFEST).is_file():
        return None
    if not read_manifest(folder, "difficulty")["files"]:
        return None
    found = load_difficulty(folder)
    require_same_ids(weights.metadata["ids_sha256"], found.metadata, f"the pass rates in {folder}")
    signal = found.signal(0.0)
    product = signal * np.asarray(weights.weights, dtype=np.float64)
    return {
        "solved": int(found.solved[row]),
        "completions": int(found.completions[row]),
        "pass_rate": float(found.pass_rates[row]),
        "signal": float(signal[row]),
        "over_mean": float(signal[row] / signal.mean()),
        "product_over_mean": float(product[row] / product.mean()),
    }
