"""Ways to draw prompts: by density, occurrences, difficulty, or to compare with these."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from isodense.pipeline.artifact import require_same_ids
from isodense.pipeline.errors import TrainingError

if TYPE_CHECKING:
    from isodense.prompts.reader import PromptSet
    from isodense.sampling.difficulty import Difficulty
    from isodense.sampling.weights import Weights

Sampling = Literal[
    "density", "uniform", "count", "label", "inverted", "difficulty", "density+difficulty"
]
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
    sampling : Sampling
        By the weights; all alike; by occurrences; all labels alike, as if the kinds of prompts were
        known; in inverse proportion to the weights, the wrong sign: a negative control; by the
        signal that the difficulty promises; or by the product of weight and signal.
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
        If there are no prompts, or a prompt has no label where labels decide.
    """
    if not len(prompts):
        raise TrainingError("no prompt is left to train on", "lower prompts.heldout, or add data")
    require_same_ids(prompts.ids_sha256, weights.metadata, "the weights")
    if sampling == "density":
        return weights.weights
    if sampling == "inverted":
        return 1.0 / weights.weights.astype(np.float64)
    if sampling == "label":
        return _evening_labels(prompts)
    if sampling in BY_DIFFICULTY:
        factor = _signal(prompts, difficulty, floor)
        return factor if sampling == "difficulty" else weights.weights * factor
    counts = [row["count"] if sampling == "count" else 1 for row in prompts.rows]
    return np.array(counts, dtype=np.float64)


def _evening_labels(prompts: PromptSet) -> np.ndarray:
    """Return one over the number of prompts that have the prompt's label."""
    labels = prompts.labels
    if labels is None:
        missing = sum(1 for row in prompts.rows if row.get("label") is None)
        message = f"sampling by label, and {missing} of {len(prompts)} prompts have no label"
        raise TrainingError(message, "sample by density or uniform, or give every row a label")
    sizes = Counter(labels)
    return np.array([1 / sizes[label] for label in labels])


def _signal(prompts: PromptSet, difficulty: Difficulty | None, floor: float) -> np.ndarray:
    if difficulty is None:
        raise TypeError("drawing by difficulty takes the difficulty")
    require_same_ids(prompts.ids_sha256, difficulty.metadata, "the pass rates")
    return difficulty.signal(floor)
