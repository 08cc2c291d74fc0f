"""Preference pairs as the reward sees them: split, weighed, and their two sides apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isodense.pipeline.artifact import require_same_ids
from isodense.pipeline.errors import TrainingError
from isodense.prompts.conversations import Message, id_of
from isodense.prompts.near_duplicates import WordPairs
from isodense.prompts.reader import PromptSet
from isodense.sampling.weights import Weights

FOLDS = 5  # of cross-validation
FITTED = ("head", "full")  # kinds of reward that are fitted on pairs


def sides(pairs: Sequence[dict[str, Any]]) -> tuple[list[list[Message]], list[str]]:
    """Return prompts and answers of all chosen, then of all rejected sides."""
    prompts = [pair["prompt"] for pair in pairs] * 2
    answers = [pair[side][0]["content"] for side in ("chosen", "rejected") for pair in pairs]
    return prompts, answers


def margins(scores: np.ndarray) -> np.ndarray:
    """Return chosen less rejected of scores in the order of :func:`sides`, as float64."""
    chosen, rejected = np.split(np.asarray(scores, dtype=np.float64), 2)
    return chosen - rejected


def cut_pairs(cut: np.ndarray) -> int:
    """Return how many pairs have a cut conversation on either side, in the order of `sides`."""
    return int(np.logical_or(*np.split(cut, 2)).sum())


def split_pairs(
    pairs: Sequence[dict[str, Any]], prompts: PromptSet
) -> dict[str, list[dict[str, Any]]]:
    """Sort pairs by the split of their prompt.

    Returns
    -------
    dict
        Pairs under ``"train"``, ``"heldout"`` and, for prompts that are not in `prompts`,
        ``"unknown"``.
    """
    split_of = {row["id"]: row["split"] for row in prompts.rows}
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": [], "unknown": []}
    for pair in pairs:
        parts[split_of.get(id_of(pair), "unknown")].append(pair)
    return parts


def folds_of(
    pairs: Sequence[dict[str, Any]], prompts: PromptSet, near_duplicate: float | None
) -> np.ndarray:
    """Return the fold of each training pair: that of its prompt, near-duplicates in one.

    Parameters
    ----------
    pairs : sequence of dict
        Training pairs.
    prompts : PromptSet
        All prompts.
    near_duplicate : float or None
        Similarity of near-duplicates in ``data/prompts``.

    Returns
    -------
    ndarray of shape (n_pairs,), int64
        From 0 to `FOLDS` - 1; ids are hashes, so the folds are about as large.
    """
    train, texts = prompts.split("train") if pairs else PromptSet([]), WordPairs()
    ids = train.ids
    for text in train.texts:
        texts.add(text)
    first = list(range(len(ids)))
    if near_duplicate is not None:
        for row, earlier in texts.near_duplicates(near_duplicate):
            first[row] = first[earlier[0]]
    fold_of = {one: int(ids[at][:8], 16) % FOLDS for one, at in zip(ids, first, strict=True)}
    return np.array([fold_of[id_of(pair)] for pair in pairs], dtype=np.int64)


def require_any(kind: str, pairs: Sequence[dict[str, Any]]) -> None:
    """Raise if a kind that is fitted on pairs has none.

    Raises
    ------
    TrainingError
        Naming the kinds that do without.
    """
    if kind in FITTED and not pairs:
        message = f"reward.kind {kind} needs preference pairs, this data has none"
        raise TrainingError(message, "use reward.kind: function or model")


def require_both(parts: dict[str, list[dict[str, Any]]]) -> None:
    """Raise unless there are pairs to fit on and pairs to check with.

    Raises
    ------
    TrainingError
        If there are none of either.
    """
    count = sum(map(len, parts.values()))
    if not parts["train"]:
        message = f"none of {count} pairs has a training prompt"
        raise TrainingError(message, "run `dvc repro prompts`, or lower prompts.heldout")
    if not parts["heldout"]:
        message = f"none of {count} pairs has a held-out prompt to check the reward with"
        raise TrainingError(message, "raise prompts.heldout, or add data")


def pair_weights(
    pairs: Sequence[dict[str, Any]], prompts: PromptSet, weights: Weights | None
) -> np.ndarray:
    """Return how much each training pair counts.

    Parameters
    ----------
    pairs : sequence of dict
        Training pairs.
    prompts : PromptSet
        All prompts.
    weights : Weights, optional
        Of the density stage; without them all pairs count alike. A prompt's weight is shared by
        its pairs, so that how often it was asked does not enter.

    Returns
    -------
    ndarray of shape (n_pairs,), float64
        Mean 1.

    Raises
    ------
    ArtifactError
        If the weights belong to other prompts.
    """
    if weights is None:
        return np.ones(len(pairs))
    require_same_ids(prompts.split("train").ids_sha256, weights.metadata, "the weights")
    return weights.align([id_of(pair) for pair in pairs]) * len(pairs)
