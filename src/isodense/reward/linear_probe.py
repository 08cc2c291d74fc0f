"""Kind ``head``: a linear reward on frozen features of the policy.

The head maximises the likelihood of the pairs of the training prompts under Bradley and Terry's
model (1952), P(chosen beats rejected) = σ(r(chosen) − r(rejected)) with r linear in the feature:
logistic regression on feature differences, without intercept, with an L2 penalty on standardised
features. Each pair counts by its weight, as if it had been drawn so often. The problem is convex;
the fit ends at its minimum or with an error.

Features stay float32 on disk. Every sum over pairs is one of float64 in blocks of pairs, in order,
so memory holds a few blocks whatever the number of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isodense.pipeline.errors import TrainingError
from isodense.reward.base import Outcome, Task
from isodense.reward.pairs import cut_pairs, sides

TOLERANCE = 1e-6
CROSS = 20_000  # training pairs that are cross-validated, the first ones: these are copied
BLOCK = 8_192  # pairs whose features are float64 at once; 75 MB at 576 dimensions


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

    pairs = _Pairs(chosen, rejected, weights)
    mean, scale = pairs.moments()

    def objective(weight: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = 0.0, np.zeros(len(weight))
        for difference, shares in pairs.differences(scale):
            margin = difference @ weight
            loss += (shares * np.logaddexp(0, -margin)).sum()
            slope = -shares * np.exp(-np.logaddexp(0, margin))  # −σ(−margin)
            gradient += difference.T @ slope
        penalty = l2 / 2 * weight @ weight
        return loss / len(pairs) + penalty, gradient / len(pairs) + l2 * weight

    options = {"maxiter": 10_000, "maxfun": 20_000, "gtol": TOLERANCE / 10, "ftol": 0.0}
    result = minimize(objective, np.zeros(len(mean)), jac=True, method="L-BFGS-B", options=options)
    steepest = float(np.abs(result.jac).max())
    if not steepest <= TOLERANCE:
        message = f"the reward did not converge: slope {steepest:.1e} after {result.nit} steps"
        raise TrainingError(message, "raise reward.l2")
    weight = result.x / scale
    return Head(weight, float(-mean @ weight))


class _Pairs:
    """Features of pairs, read and turned into float64 block by block."""

    def __init__(self, chosen: np.ndarray, rejected: np.ndarray, weights: np.ndarray) -> None:
        self._sides, self._weights = (chosen, rejected), weights
        self._kept: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._weights)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the features of both answers, the chosen ones first, and how much each counts."""
        for rows in _blocks(len(self)):
            weights = self._weights[rows]
            both = np.concatenate([side[rows] for side in self._sides]).astype(np.float64)
            yield both, np.concatenate([weights, weights])[:, None]

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean of each dimension and its standard deviation, 1 where it is constant."""
        dim = self._sides[0].shape[1]
        total, low, high = np.zeros(dim), np.full(dim, np.inf), np.full(dim, -np.inf)
        finite = len(self) > 0
        for both, shares in self.blocks():
            finite &= bool(np.isfinite(both).all())
            total += (shares * both).sum(axis=0)
            low, high = np.minimum(low, both.min(axis=0)), np.maximum(high, both.max(axis=0))
        if not finite:
            message = f"{len(self)} pairs whose features are not all finite"
            raise TrainingError(message, "look at data/examples and at the policy's weights")
        mean, squares = total / (2 * len(self)), np.zeros(dim)
        for both, shares in self.blocks():
            squares += (shares * (both - mean) ** 2).sum(axis=0)
        scale = np.sqrt(squares / (2 * len(self)))
        scale[low == high] = 1
        return mean, scale

    def differences(self, scale: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the scaled feature differences and the weights; a single block is kept."""
        for rows in _blocks(len(self)):
            difference = self._kept
            if difference is None:
                chosen, rejected = (side[rows] for side in self._sides)
                difference = (chosen.astype(np.float64) - rejected) / scale
            if len(self) <= BLOCK:
                self._kept = difference
            yield difference, self._weights[rows]


def margins_of(head: Head, chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """Return the reward of each chosen answer less that of the rejected one, float64."""
    return np.concatenate(
        [
            (chosen[rows].astype(np.float64) - rejected[rows]) @ head.weight
            for rows in _blocks(len(chosen))
        ]
    )


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))


def make(task: Task, out: Path) -> Outcome:
    """Fit the head on the training pairs and write it; see :func:`isodense.reward.fit.fit`."""
    from isodense.reward.features import load_features

    pairs = task.train + task.heldout
    prompts, answers = sides(pairs)
    tools = [pair.get("tools") for pair in pairs] * 2
    rows, cut = load_features(
        prompts, answers, task.policy, task.params, task.device, task.cache, tools
    )
    chosen, rejected = np.split(rows, 2)
    size = len(task.train)
    head = fit_head(chosen[:size], rejected[:size], task.params.l2, task.weights)
    margin = margins_of(head, chosen, rejected)
    _write(head, out)
    kept = min(size, CROSS)
    sides_of = (chosen[:kept], rejected[:kept])
    crossed = cross_validate(*sides_of, task.params.l2, task.weights[:kept], task.folds[:kept])
    return Outcome(margin[size:], margin[:size], crossed, cut_pairs(cut))


def cross_validate(
    chosen: np.ndarray, rejected: np.ndarray, l2: float, weights: np.ndarray, folds: np.ndarray
) -> np.ndarray | None:
    """Return the margin of each training pair under a head that was fitted on the other folds.

    Layer, pooling and penalty are chosen by this, so that held-out pairs have no say in them.

    Parameters
    ----------
    chosen, rejected, l2, weights
        See :func:`fit_head`.
    folds : ndarray of shape (n_pairs,), int64

    Returns
    -------
    ndarray of shape (n_pairs,), float64, or None
        None where all pairs are in one fold.
    """
    margin = np.zeros(len(folds))
    for fold in (present := np.unique(folds)):
        out, rest = folds == fold, folds != fold
        if len(present) < 2:
            return None
        shares = weights[rest] / weights[rest].mean()
        head = fit_head(chosen[rest], rejected[rest], l2, shares)
        margin[out] = margins_of(head, chosen[out], rejected[out])
    return margin


def _write(head: Head, out: Path) -> None:
    from safetensors.numpy import save_file

    from isodense.reward.scoring.load import HEAD

    tensors = {
        "weight": head.weight.astype(np.float32),
        "bias": np.array([head.bias], dtype=np.float32),
    }
    save_file(tensors, out / HEAD)
