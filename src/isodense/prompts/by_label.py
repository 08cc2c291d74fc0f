"""Holding out so many prompts of every label, or the same share of each.

A share of all prompts leaves a rare label with no held-out prompt, and most held-out prompts are of
the commonest labels. Here each label gives its own: those with the smallest ids, which are hashes.
Near-duplicates stay together, so a cluster that is too large for what its labels are to give is
passed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from isodense.pipeline.errors import DataError
from isodense.prompts.reader import are_kinds

Label = str | None


def wanted(count: int, heldout: float) -> int:
    """Return how many of a label's `count` prompts to hold out.

    Parameters
    ----------
    count : int
    heldout : float
        A share below 1: of two prompts or more, one is held out at least and one is trained on. Or
        a number from 1 on: half of the prompts at most.

    Examples
    --------
    >>> [wanted(count, 0.1) for count in (1, 2, 10, 24, 26)]
    [0, 1, 1, 2, 3]
    >>> [wanted(count, 40) for count in (1, 9, 80, 500)]
    [0, 4, 40, 40]
    """
    if heldout >= 1:
        return min(int(heldout), count // 2)
    return min(max(1, int(heldout * count + 0.5)), count - 1)


def choose(
    ids: Sequence[str],
    labels: Sequence[Label],
    clusters: np.ndarray,
    heldout: float,
    held: np.ndarray,
    free: np.ndarray,
) -> np.ndarray:
    """Choose the prompts to hold out, by label.

    Parameters
    ----------
    ids : sequence of str
        Ids of the prompts, in row order.
    labels : sequence of str or None
        Label of each; prompts without one are a kind of their own.
    clusters : ndarray of shape (n,), int
        Near-duplicate cluster of each.
    heldout : float
        See :func:`wanted`; above 0.
    held : ndarray of shape (n,), bool
        What is held out already, which counts.
    free : ndarray of shape (n,), bool
        Which may be chosen; a cluster with one that may not is left as it is.

    Returns
    -------
    ndarray of shape (n,), bool
        What is held out with them.

    Raises
    ------
    DataError
        If there are no labels that name kinds of prompts.
    """
    if not are_kinds(labels):
        message = "is label, and the data has no labels that name kinds of prompts"
        hint = "set it to id, or name a column: download.*.columns: {label: …}"
        raise DataError(message, "prompts.heldout_by", hint=hint)
    sizes = Counter(labels)
    goals = {label: wanted(count, heldout) for label, count in sizes.items()}
    halves = {label: max(goals[label], count // 2) for label, count in sizes.items()}
    taken = Counter(label for label, is_held in zip(labels, held, strict=True) if is_held)
    members = _members(ids, clusters, free)
    parts = {cluster: Counter(labels[row] for row in rows) for cluster, rows in members.items()}
    chosen: dict[int, None] = {}

    def take(cluster: int, limits: dict[Label, int]) -> None:
        part = parts[cluster]
        if cluster not in chosen and all(taken[one] + part[one] <= limits[one] for one in part):
            chosen[cluster] = None
            taken.update(part)

    for label, own in _by_label(labels, members).items():
        for cluster in own:
            if taken[label] >= goals[label]:
                break
            take(cluster, goals)
        for cluster in sorted(own, key=lambda one: parts[one][label]):  # none was small enough
            if taken[label] or not goals[label]:
                break
            take(cluster, halves)
    found = held.copy()
    found[[row for cluster in chosen for row in members[cluster]]] = True
    return found


def _members(ids: Sequence[str], clusters: np.ndarray, free: np.ndarray) -> dict[int, list[int]]:
    """Return the rows of each cluster that may be chosen, in the order of the smallest ids."""
    bound = set(clusters[~free].tolist())
    members: dict[int, list[int]] = {}
    for row in sorted(range(len(ids)), key=ids.__getitem__):
        if (cluster := int(clusters[row])) not in bound:
            members.setdefault(cluster, []).append(row)
    return members


def _by_label(labels: Sequence[Label], members: dict[int, list[int]]) -> dict[Label, list[int]]:
    """Return the clusters of each label, by the smallest ids of that label; labels by name."""
    found: dict[Label, dict[int, None]] = {}
    for cluster, rows in members.items():
        for row in rows:
            found.setdefault(labels[row], {})[cluster] = None
    return {label: list(found[label]) for label in sorted(found, key=lambda one: one or "")}
