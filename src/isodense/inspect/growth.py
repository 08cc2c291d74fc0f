"""What new prompts did to a set: rare ones, near-duplicates, and how the other weights moved.

Appended prompts leave the rows of those before alone, and all shards of embeddings but the last.
Neighbours, density and weights are those of the whole set and change for everybody, a little. The
radius of near-duplicates is the one that the density stage found.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.artifact import MANIFEST, read_checked, require_same_ids
from isodense.pipeline.tables import read_at
from isodense.prompts.reader import Columns, load_columns
from isodense.sampling.weights import load_weights


@dataclass(frozen=True)
class Before:
    """What is kept of a set before it grows.

    Attributes
    ----------
    ids : list of str
        Ids of all prompts, in row order.
    counts : dict of str to int
        Occurrences of each of them.
    weights : dict of str to float
        Weight over mean weight of the training prompts.
    shards : set of str or None
        SHA-256 of the shards of embeddings; None where they are not at hand.
    """

    ids: list[str]
    counts: dict[str, int]
    weights: dict[str, float]
    shards: set[str] | None


@dataclass(frozen=True)
class NearDuplicate:
    """A new prompt within the density's radius of near-duplicates of another.

    Attributes
    ----------
    row, other : int
        Rows of the two in ``data/prompts``; `other` was there before, or comes earlier.
    distance : float
        Euclidean distance of the unit vectors.
    """

    row: int
    other: int
    distance: float


@dataclass(frozen=True)
class Growth:
    """What changed between two states of a set; rows are those of the newer ``data/prompts``.

    Attributes
    ----------
    prompts : Columns
        The prompts as they are now.
    before : int
        Prompts before.
    appended : bool
        Whether those before are, in order, the first rows now.
    removed : int
        Prompts that are gone.
    new : list of int
        New prompts, held-out ones too.
    again : list of (int, int, int)
        Prompts that were there and have been asked again, with their occurrences before and now.
    weights : dict of int to float
        Weight over mean weight of the new training prompts.
    near_duplicates : list of NearDuplicate
        New prompts that are near-duplicates; first come those of prompts that were there.
    ratios : ndarray of shape (m,), float64
        Weight over mean now by the same before, for the training prompts in both.
    agreement : float or None
        Rank correlation of those weights.
    shards : (int, int) or None
        Shards that are not among those before, and shards.
    """

    prompts: Columns
    before: int
    appended: bool
    removed: int
    new: list[int]
    again: list[tuple[int, int, int]]
    weights: dict[int, float]
    near_duplicates: list[NearDuplicate]
    ratios: np.ndarray
    agreement: float | None
    shards: tuple[int, int] | None


def remember(prompts: str | Path, density: str | Path, embeddings: str | Path | None) -> Before:
    """Read what :func:`compare` needs of the earlier state.

    Parameters
    ----------
    prompts, density : str or Path
        The artifacts.
    embeddings : str or Path, optional
        The artifact, where it is at hand; only its manifest is read.

    Raises
    ------
    ArtifactError
        If prompts or density are incomplete or do not belong together.
    """
    rows = load_columns(prompts)
    weights = _relative_weights(rows, density)
    manifest = Path(embeddings, MANIFEST) if embeddings else None
    shards = set(_shards(manifest)) if manifest and manifest.is_file() else None
    return Before(rows.ids, _counts(rows), weights, shards)


def compare(before: Before, data: Path) -> Growth:
    """Compare the artifacts in `data` with an earlier state.

    Parameters
    ----------
    before : Before
    data : Path
        The folder with ``prompts``, ``density``, ``neighbors`` and ``embeddings``.

    Raises
    ------
    ArtifactError
        If an artifact is incomplete or made for other prompts.
    """
    from isodense.density.balance import rank_agreement

    prompts = load_columns(data / "prompts")
    weights = _relative_weights(prompts, data / "density")
    both = [one for one in before.weights if one in weights]
    old = np.array([before.weights[one] for one in both])
    now = np.array([weights[one] for one in both])
    new = [row for row, one in enumerate(prompts.ids) if one not in before.counts]
    shards = None
    if before.shards is not None:
        digests = _shards(data / "embeddings" / MANIFEST)
        shards = (sum(digest not in before.shards for digest in digests), len(digests))
    return Growth(
        prompts=prompts,
        before=len(before.ids),
        appended=prompts.ids[: len(before.ids)] == before.ids,
        removed=len(set(before.ids).difference(prompts.ids)),
        new=new,
        again=[
            (row, before.counts[one], count)
            for row, (one, count) in enumerate(_counts(prompts).items())
            if count > before.counts.get(one, count)
        ],
        weights={row: weights[prompts.ids[row]] for row in new if prompts.ids[row] in weights},
        near_duplicates=find_near_duplicates(prompts, new, data),
        ratios=now / old,
        agreement=rank_agreement(old, now) if len(both) > 1 else None,
        shards=shards,
    )


def find_near_duplicates(prompts: Columns, new: Sequence[int], data: Path) -> list[NearDuplicate]:
    """Return the new prompts that are near-duplicates, each with the prompt that it is nearest to.

    Parameters
    ----------
    prompts : Columns
        The prompts as they are now.
    new : sequence of int
        Rows of the new ones.
    data : Path
        The folder with ``density`` and ``neighbors``.

    Returns
    -------
    list of NearDuplicate
        Near-duplicates of prompts that were there before, nearest first; then those of other new
        prompts, the first of which is not listed. Held-out prompts are compared with training
        prompts only.
    """
    from isodense.density.artifact import stored
    from isodense.density.duplicates import IDENTICAL
    from isodense.inspect.lookup import graph_of
    from isodense.neighbors.graph import load_heldout_graph

    weights = load_weights(data / "density")
    require_same_ids(prompts.split("train").ids_sha256, weights.metadata, "the weights")
    graph = graph_of(weights, data / "neighbors")
    radius = np.float64(max(stored(weights).scales.radius, IDENTICAL))
    train, heldout = (prompts.positions("train"), prompts.positions("heldout"))
    pairs = [_within(graph.indices, graph.distances, radius, train, train)]
    if len(heldout):
        near = load_heldout_graph(data / "neighbors").first(graph.k)
        row, other, distance = _within(near.indices, near.distances, radius, heldout, train)
        pairs += [(row, other, distance), (other, row, distance)]
    row, other, distance = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    fresh = np.zeros(len(prompts), dtype=bool)
    fresh[list(new)] = True
    kept = fresh[row] & (~fresh[other] | (other < row))
    row, other, distance = row[kept], other[kept], distance[kept]
    order = np.lexsort((other, distance, fresh[other], row))
    order = order[np.unique(row[order], return_index=True)[1]]  # the best of each row
    order = order[np.lexsort((row[order], distance[order], fresh[other[order]]))]
    return [NearDuplicate(int(row[at]), int(other[at]), float(distance[at])) for at in order]


def _within(
    indices: np.ndarray, distances: np.ndarray, radius: Any, own: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of a graph that are no farther apart, by the rows of ``data/prompts``."""
    row, column = np.nonzero(np.asarray(distances) <= radius)
    return own[row], others[indices[row, column]], np.asarray(distances)[row, column]


def read_texts(prompts: str | Path, rows: Collection[int]) -> dict[int, str]:
    """Return the texts of some rows of ``data/prompts``, reading no more than it takes."""
    read_checked(prompts, "prompts")
    return {number: row["text"] for number, row in read_at(prompts, rows).items()}


def _counts(prompts: Columns) -> dict[str, int]:
    return dict(zip(prompts.ids, prompts.counts.tolist(), strict=True))


def _relative_weights(prompts: Columns, density: str | Path) -> dict[str, float]:
    weights = load_weights(density)
    train = prompts.split("train")
    require_same_ids(train.ids_sha256, weights.metadata, f"the weights in {density}")
    relative = np.asarray(weights.weights, dtype=np.float64) * len(train)
    return dict(zip(train.ids, relative.tolist(), strict=True))


def _shards(manifest: Path) -> list[str]:
    files = json.loads(manifest.read_text("utf-8"))["files"]
    return [entry["sha256"] for name, entry in files.items() if name.startswith("shard-")]
