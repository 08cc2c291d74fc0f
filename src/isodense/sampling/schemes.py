"""Ways to draw prompts: by density, all alike, by occurrences, by difficulty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from isodense.pipeline.artifact import require_same_ids
from isodense.pipeline.errors import TrainingError

if TYPE_CHECKING:
    from isodense.prompts.reader import PromptSet
    from isodense.sampling.difficulty import Difficulty
    from isodense.sampling.weights import Weights

Sampling = Literal["density", "uniform", "count", "difficulty", "density+difficulty"]
SAMPLING: tuple[Sampling, ...] = get_args(Sampling)
BY_DIFFICULTY: tuple[Sampling, ...] = ("difficulty", "density+difficulty")


def prompt_weights(
    prompts: PromptSet,
    weights: Weights,
    sampling: Sampling,
    difficulty: Difficulty | None = None,
    floor: float = 0.0,
) -> np.ndarray:
    """Return how often each training prompt is to be drawn, up to a factor.

    Parameters
    ----------
    prompts : PromptSet
        The training prompts.
    weights : Weights
        What the density stage wrote.
    sampling : {"density", "uniform", "count", "difficulty", "density+difficulty"}
    difficulty : Difficulty, optional
        What the difficulty stage wrote, for the ways that draw by it.
    floor : float
        See :func:`isodense.sampling.difficulty.signal`.

    Returns
    -------
    ndarray of shape (n_prompts,)

    Raises
    ------
    ArtifactError
        If the weights belong to other prompts, also where they are not used, or the difficulty
        does.
    TrainingError
        If there are no prompts.
    """
    if not len(prompts):
        raise TrainingError("no prompt is left to train on", "lower prompts.heldout, or add data")
    require_same_ids(prompts.ids_sha256, weights.metadata, "the weights")
    if sampling == "density":
        return weights.weights
    if sampling in BY_DIFFICULTY:
        factor = _signal(prompts, difficulty, floor)
        return factor if sampling == "difficulty" else weights.weights * factor
    counts = [row["count"] if sampling == "count" else 1 for row in prompts.rows]
    return np.array(counts, dtype=np.float64)


def _signal(prompts: PromptSet, difficulty: Difficulty | None, floor: float) -> np.ndarray:
    if difficulty is None:
        raise TypeError("drawing by difficulty takes the difficulty")
    require_same_ids(prompts.ids_sha256, difficulty.metadata, "the pass rates")
    return difficulty.signal(floor)
