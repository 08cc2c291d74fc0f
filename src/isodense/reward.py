"""Fitting the reward on preference pairs, and checking it on pairs it has not seen.

The head maximises the likelihood of the pairs of the training prompts under Bradley and Terry's
model (1952), P(chosen beats rejected) = σ(r(chosen) − r(rejected)) with r linear in the feature:
logistic regression on feature differences, without intercept, with an L2 penalty on standardised
features. The problem is convex; the fit ends at its minimum or with an error.

The pairs of held-out prompts give the accuracy, beside that of always preferring the longer (or
the shorter, whichever wins on the training pairs) answer: a reward that does no better than that
has learnt length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from isodense.artifacts import content_sha256, publishing, read_manifest, write_manifest
from isodense.conversations import prompt_id
from isodense.errors import TrainingError
from isodense.params import as_dict, param
from isodense.promptset import PromptSet

if TYPE_CHECKING:
    from isodense.reward_model import Features

Z95 = 1.959963984540054
TOLERANCE = 1e-6


@dataclass(frozen=True)
class RewardParams:
    """Section ``reward`` of ``params.yaml``.

    Attributes
    ----------
    layer : int
        The feature is the hidden state after this many blocks of the policy.
    pooling : {"last", "mean", "both"}
        At the end-of-turn token, averaged over the answer, or both.
    max_tokens : int
        A longer conversation loses the start of its prompt.
    l2 : float
        Penalty on the head: loss + l2/2 · |w|², features standardised, loss a mean over pairs.
    batch_tokens : int
        Padded tokens per batch; changes speed and memory, not the result.
    """

    layer: int = param(minimum=1)
    pooling: Literal["last", "mean", "both"] = param()
    max_tokens: int = param(minimum=16)
    l2: float = param(minimum=1e-6, maximum=100)
    batch_tokens: int = param(minimum=64)


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


def fit_head(chosen: np.ndarray, rejected: np.ndarray, l2: float) -> Head:
    """Fit a Bradley–Terry head.

    Parameters
    ----------
    chosen, rejected : ndarray of shape (n_pairs, dim)
        Features of both answers of each pair; fitted in float64.
    l2 : float
        See :class:`RewardParams`.

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
    mean, scale = both.mean(axis=0), both.std(axis=0)
    scale[scale == 0] = 1
    difference = (chosen.astype(np.float64) - rejected) / scale

    def objective(weight: np.ndarray) -> tuple[float, np.ndarray]:
        margin = difference @ weight
        loss = np.logaddexp(0, -margin).mean() + l2 / 2 * weight @ weight
        slope = -np.exp(-np.logaddexp(0, margin))  # −σ(−margin)
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


def wilson(successes: float, total: int) -> tuple[float, float]:
    """Return the 95% interval of a proportion (Wilson 1927).

    Examples
    --------
    >>> low, high = wilson(50, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    share, z2 = successes / total, Z95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * np.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def accuracy(margin: np.ndarray) -> dict[str, float]:
    """Return the share of pairs whose chosen answer wins, a tie counting one half.

    Parameters
    ----------
    margin : ndarray of shape (n_pairs,)
        Score of the chosen answer less that of the rejected one.

    Returns
    -------
    dict
        ``accuracy`` with its Wilson interval ``low`` … ``high``.
    """
    wins = float((margin > 0).sum() + 0.5 * (margin == 0).sum())
    low, high = wilson(wins, len(margin))
    return {"accuracy": wins / len(margin), "low": low, "high": high}


def split_pairs(
    pairs: Sequence[dict[str, Any]], prompts: PromptSet
) -> dict[str, list[dict[str, Any]]]:
    """Sort pairs by the split of their prompt.

    Returns
    -------
    dict
        Pairs under ``"train"``, ``"heldout"`` and, for prompts that are not in `prompts`,
        ``"unknown"``.

    Raises
    ------
    TrainingError
        If no pair is left to fit on or to check with.
    """
    split_of = {row["id"]: row["split"] for row in prompts.rows}
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": [], "unknown": []}
    for pair in pairs:
        parts[split_of.get(prompt_id(pair["prompt"]), "unknown")].append(pair)
    if not parts["train"]:
        message = f"none of {len(pairs)} pairs has a training prompt"
        raise TrainingError(message, "run `dvc repro prompts`, or lower prompts.heldout")
    if not parts["heldout"]:
        message = f"none of {len(pairs)} pairs has a held-out prompt to check the reward with"
        raise TrainingError(message, "raise prompts.heldout, or add data")
    return parts


def fit(
    pairs: Sequence[dict[str, Any]],
    prompts: PromptSet,
    policy: Path,
    params: RewardParams,
    device: str,
    inputs: dict[str, str],
    out: Path,
) -> dict[str, Any]:
    """Fit the reward, write ``models/reward`` and return what the metrics report.

    Parameters
    ----------
    pairs : sequence of dict
        Rows of ``data/pairs``.
    prompts : PromptSet
        Says which prompts are held out.
    policy : Path
        The policy's artifact.
    params : RewardParams
        The stage's section.
    device : str
        A torch device.
    inputs : dict
        Content hashes of what `pairs` and `prompts` were read from, for the manifest.
    out : Path
        The reward's artifact.

    Raises
    ------
    TrainingError
        If the pairs do not suffice or the fit fails.
    ModelError
        If the policy cannot give the features asked for.
    """
    from isodense.reward_model import Features

    parts = split_pairs(pairs, prompts)
    used = parts["train"] + parts["heldout"]
    features = Features(
        policy, params.layer, params.pooling, params.max_tokens, params.batch_tokens, device
    )
    chosen, rejected, lengths, truncated = _features(used, features)
    train, heldout = np.arange(len(parts["train"])), np.arange(len(parts["train"]), len(used))
    head = fit_head(chosen[train], rejected[train], params.l2)
    margin = (chosen.astype(np.float64) - rejected) @ head.weight
    inputs = inputs | {"policy": content_sha256(read_manifest(policy, "models"))}
    _publish(head, params, inputs, out)
    return {
        "train_pairs": len(train),
        "heldout_pairs": len(heldout),
        "unknown_pairs": len(parts["unknown"]),
        "truncated_pairs": truncated,
        "train": accuracy(margin[train]),
        "heldout": {
            **accuracy(margin[heldout]),
            "log_loss": float(np.logaddexp(0, -margin[heldout]).mean()),
        },
        "length_only": _length_only(lengths, train, heldout),
    }


def _features(
    pairs: Sequence[dict[str, Any]], features: Features
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return features of chosen and rejected, length margins in tokens, and cut pairs.

    A text that occurs in several pairs is computed once.
    """
    from tqdm import tqdm

    from isodense.stage import progress

    prompts = [pair["prompt"] for pair in pairs] * 2
    answers = [pair[side][0]["content"] for side in ("chosen", "rejected") for pair in pairs]
    keys = [(str(prompt), answer) for prompt, answer in zip(prompts, answers, strict=True)]
    place = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    index = np.array([place[key] for key in keys])
    first = np.unique(index, return_index=True)[1]
    prompts, answers = [prompts[row] for row in first], [answers[row] for row in first]
    _, tokens, cut = features.tokenize(prompts, answers)
    with tqdm(total=len(answers), unit="answer", **progress()) as bar:
        rows = features(prompts, answers, bar.update)
    of_chosen, of_rejected = index[: len(pairs)], index[len(pairs) :]
    length = np.array([len(row) for row in tokens])
    was_cut = np.array(cut)
    return (
        rows[of_chosen],
        rows[of_rejected],
        length[of_chosen] - length[of_rejected],
        int((was_cut[of_chosen] | was_cut[of_rejected]).sum()),
    )


def _length_only(margin: np.ndarray, train: np.ndarray, heldout: np.ndarray) -> dict[str, Any]:
    direction = 1 if accuracy(margin[train])["accuracy"] >= 0.5 else -1
    prefers = "longer" if direction == 1 else "shorter"
    return {**accuracy(direction * margin[heldout]), "prefers": prefers}


def _publish(head: Head, params: RewardParams, inputs: dict[str, str], out: Path) -> None:
    from safetensors.numpy import save_file

    from isodense.reward_model import HEAD

    with publishing(out) as scratch:
        tensors = {
            "weight": head.weight.astype(np.float32),
            "bias": np.array([head.bias], dtype=np.float32),
        }
        save_file(tensors, scratch / HEAD)
        write_manifest(scratch, "reward", params=as_dict(params), inputs=inputs)
