"""Kind ``head``: a linear reward on frozen features of the policy.

The head maximises the likelihood of the pairs of the training prompts under Bradley and Terry's
model (1952), P(chosen beats rejected) = σ(r(chosen) − r(rejected)) with r linear in the feature:
logistic regression on feature differences, without intercept, with an L2 penalty on standardised
features. Each pair counts by its weight, as if it had been drawn so often. The problem is convex;
the fit ends at its minimum or with an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isodense.pipeline.errors import TrainingError
from isodense.reward.base import Outcome, Task
from isodense.reward.pairs import cut_pairs, sides

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Head:
    """A linear reward of raw features: ``features @ weight + bias``, in log-odds.

    Attributes
    ----------
    weight : ndarray of shape (dim,), float64
    bias : float
        Makes the mean reward of the training answers zero.
    """

    weight: np.ndarray
    bias: float


def fit_head(chosen: np.ndarray, rejected: np.ndarray, l2: float, weights: np.ndarray) -> Head:
    """Fit a Bradley–Terry head.

    Parameters
    ----------
    chosen, rejected : ndarray of shape (n_pairs, dim)
        Features of both answers of each pair; fitted in float64.
    l2 : float
        See :class:`isodense.reward.params.RewardParams`.
    weights : ndarray of shape (n_pairs,), float64
        How much each pair counts; mean 1.

    Returns
    -------
    Head

    Raises
    ------
    TrainingError
        If there are no pairs, a feature is not finite, or the fit does not reach its minimum.
    """
    from scipy.optimize import minimize

    both = np.concatenate([chosen, rejected]).astype(np.float64)
    if not len(both) or not np.isfinite(both).all():
        message = f"{len(chosen)} pairs whose features are not all finite"
        raise TrainingError(message, "look at data/pairs and at the policy's weights")
    shares = np.concatenate([weights, weights])[:, None]
    mean = (shares * both).mean(axis=0)
    scale = np.sqrt((shares * (both - mean) ** 2).mean(axis=0))
    scale[both.min(axis=0) == both.max(axis=0)] = 1
    difference = (chosen.astype(np.float64) - rejected) / scale

    def objective(weight: np.ndarray) -> tuple[float, np.ndarray]:
        margin = difference @ weight
        loss = (weights * np.logaddexp(0, -margin)).mean() + l2 / 2 * weight @ weight
        slope = -weights * np.exp(-np.logaddexp(0, margin))  # −σ(−margin)
        return loss, difference.T @ slope / len(margin) + l2 * weight

    options = {"maxiter": 10_000, "maxfun": 20_000, "gtol": TOLERANCE / 10, "ftol": 0.0}
    start = np.zeros(difference.shape[1])
    result = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    steepest = float(np.abs(result.jac).max())
    if not steepest <= TOLERANCE:
        message = f"the reward did not converge: slope {steepest:.1e} after {result.nit} steps"
        raise TrainingError(message, "raise reward.l2")
    weight = result.x / scale
    return Head(weight, float(-mean @ weight))


def make(task: Task, out: Path) -> Outcome:
    """Fit the head on the training pairs and write it; see :func:`isodense.reward.fit.fit`."""
    from isodense.reward.features import load_features

    pairs = task.train + task.heldout
    prompts, answers = sides(pairs)
    rows, cut = load_features(prompts, answers, task.policy, task.params, task.device, task.cache)
    chosen, rejected = np.split(rows, 2)
    size = len(task.train)
    head = fit_head(chosen[:size], rejected[:size], task.params.l2, task.weights)
    margin = (chosen.astype(np.float64) - rejected) @ head.weight
    _write(head, out)
    return Outcome(margin[size:], margin[:size], cut_pairs(cut))


def _write(head: Head, out: Path) -> None:
    from safetensors.numpy import save_file

    from isodense.reward.scoring.load import HEAD

    tensors = {
        "weight": head.weight.astype(np.float32),
        "bias": np.array([head.bias], dtype=np.float32),
    }
    save_file(tensors, out / HEAD)
