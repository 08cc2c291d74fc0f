"""Ways to draw prompts: by density, all alike, or by occurrences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from isodense.pipeline.artifact import require_same_ids
from isodense.pipeline.errors import TrainingError

if TYPE_CHECKING:
    from isodense.prompts.reader import PromptSet
    from isodense.sampling.weights import Weights

Sampling = Literal["density", "uniform", "count"]
SAMPLING: tuple[Sampling, ...] = get_args(Sampling)


def prompt_weights(prompts: PromptSet, weights: Weights, sampling: Sampling) -> np.ndarray:
    """Return how often each training prompt is to be drawn, up to a factor.

    Parameters
    ----------
    prompts : PromptSet
        The training prompts.
    weights : Weights
        What the density stage wrote.
    sampling : {"density", "uniform", "count"}

    Returns
    -------
    ndarray of shape (n_prompts,)

    Raises
    ------
    ArtifactError
        If the weights belong to other prompts, also where they are not used.
    TrainingError
        If there are no prompts.
    """
    if not len(prompts):
        raise TrainingError("no prompt is left to train on", "lower prompts.heldout, or add data")
    require_same_ids(prompts.ids_sha256, weights.metadata, "the weights")
    if sampling == "density":
        return weights.weights
    counts = [row["count"] if sampling == "count" else 1 for row in prompts.rows]
    return np.array(counts, dtype=np.float64)
