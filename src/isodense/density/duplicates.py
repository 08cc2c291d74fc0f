"""Near-duplicates, and the lengths that a set of prompts is measured in.

Prompts within a radius of each other, directly or through others, are one duplicate cluster. The
radius is a share of r₀, the median distance to the 20th neighbour; where the intrinsic dimension is
so low that ordinary prompts lie that close, the radius is smaller.

Sources: intrinsic dimension, Levina and Bickel 2004 with the average of MacKay and Ghahramani 2005.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import gammaln

from isodense.neighbors.graph import Graph

IDENTICAL = 1e-6  # distance under which two vectors are the same
RANK = 20  # r₀ is the median distance to this neighbour, whatever k is
STRAY = 0.05  # ordinary neighbours within the radius of near-duplicates, at most
ROUNDS = 5  # at most, of finding near-duplicates, r₀ and the dimension in turn
SURVEYED = 100_000  # rows that the dimension is measured on


@dataclass(frozen=True)
class Scales:
    """Lengths and the dimension of a set of prompts; all 0 where all are alike.

    Attributes
    ----------
    scale : float
        r₀, the median distance to the 20th neighbour, over duplicate clusters.
    radius : float
        Prompts within it are near-duplicates.
    width : float
        Standard deviation h of the kernel.
    dimension : float
        Intrinsic dimension, near-duplicates left out.
    """

    scale: float
    radius: float
    width: float
    dimension: float


def find_duplicates(graph: Graph, dup: float, bandwidth: float) -> tuple[np.ndarray, Scales]:
    """Return each prompt's duplicate cluster, and the lengths that are found with them.

    r₀ and the dimension decide what a near-duplicate is, and near-duplicates are left out of both,
    so they are found in turn. Where the dimension is so low that ordinary prompts lie within `dup`,
    the radius shrinks until `STRAY` of them do: else they would chain.

    Parameters
    ----------
    graph : Graph
    dup : float
        Radius of near-duplicates as a multiple of r₀, at most.
    bandwidth : float
        The kernel weighs as much as a ball of this radius, a multiple of r₀.

    Returns
    -------
    clusters : ndarray of shape (n,), int32
    scales : Scales
    """
    if len(graph) < 3:
        return connected(graph, IDENTICAL), Scales(0.0, 0.0, 0.0, 0.0)
    close = graph.first(min(RANK, graph.k))
    farthest = close.distances[:, -1].astype(np.float64)
    order = np.argsort(farthest)
    order = order[farthest[order] > IDENTICAL]
    if not len(order):  # nothing but duplicate clusters
        return connected(graph, IDENTICAL), Scales(0.0, 0.0, 0.0, 0.0)
    scale = float(farthest[order[3 * len(order) // 4]])  # high: duplicates may be the majority
    radius, dimension = dup * scale, 0.0
    clusters = np.arange(len(graph), dtype=np.int32)
    for _ in range(ROUNDS):
        limit = max(radius, IDENTICAL)
        last, clusters = clusters, connected(graph, limit)
        if dimension and np.array_equal(clusters, last):
            break
        mass = np.cumsum(1.0 / np.bincount(clusters)[clusters[order]])
        half = mass[-1] / 2 * (1 - 1e-10)  # sums of thirds round by the order of the rows
        scale = float(farthest[order[np.searchsorted(mass, half)]])
        dimension = intrinsic_dimension(close, clusters)
        stray = (STRAY / RANK) ** (1 / dimension) if dimension else 1.0
        radius = min(dup, stray) * scale
    ball = float(np.exp(-gammaln(dimension / 2 + 1) / max(dimension, 1e-9))) / 2**0.5
    return clusters, Scales(scale, limit, bandwidth * scale * ball, dimension)


def intrinsic_dimension(graph: Graph, clusters: np.ndarray | None = None) -> float:
    """Return the maximum-likelihood intrinsic dimension (Levina and Bickel 2004).

    The inverse dimension is averaged, as MacKay and Ghahramani (2005) proposed, over duplicate
    clusters.
    Each cluster counts as one neighbour, and the row's own as none. In a large set some 100,000
    rows at equal steps are enough.

    Parameters
    ----------
    graph : Graph
    clusters : ndarray of shape (n,), optional
        Duplicate cluster of each row; by default each is one of its own.

    Returns
    -------
    float
        0 where distances do not vary.
    """
    clusters = np.arange(len(graph)) if clusters is None else clusters
    shares = 1.0 / np.bincount(clusters)[clusters]
    rows = np.arange(0, len(graph), max(1, len(graph) // SURVEYED))
    indices = graph.indices[rows]
    distinct = shares[indices] * (clusters[indices] != clusters[rows, None])
    logs = np.log(np.maximum(graph.distances[rows].astype(np.float64), IDENTICAL))
    total = np.einsum("ij,ij->i", logs[:, -1:] - logs, distinct)
    count = distinct[:, :-1].sum(axis=1)  # the last one's log is 0
    used = count > 1
    inverse = (total[used] / count[used] * shares[rows[used]]).sum()
    return float(shares[rows[used]].sum() / inverse) if inverse > 0 else 0.0


def connected(graph: Graph, radius: float) -> np.ndarray:
    """Return the component of each row in the graph of edges no longer than `radius`, int32."""
    limit = np.float64(radius)  # a bare float would be rounded to float32
    near, heads, tails = np.arange(len(graph)), [], []
    for column in range(graph.k):  # rows are sorted: who has none here has none to the right
        near = near[graph.distances[near, column] <= limit]
        heads.append(near)
        tails.append(graph.indices[near, column])
    edges = np.stack([np.concatenate([*ends, near[:0]]) for ends in (heads, tails)])
    joined = np.zeros(len(graph), dtype=bool)
    joined[edges] = True
    nodes, place = np.flatnonzero(joined), np.cumsum(joined) - 1
    square = coo_array(
        (np.ones(edges.shape[1], dtype=np.int8), place[edges]), shape=(len(nodes),) * 2
    )
    count, label = connected_components(square, directed=False)
    first = np.empty(count, dtype=np.int64)
    first[label[::-1]] = nodes[::-1]  # the last one written stays
    clusters = np.arange(len(graph))
    clusters[nodes] = first[label]
    kept = np.ones(len(graph), dtype=bool)
    kept[nodes] = False
    kept[first] = True
    return (np.cumsum(kept, dtype=np.int32) - 1)[clusters]


def largest_clusters(clusters: np.ndarray, most: int) -> list[np.ndarray]:
    """Return the members of the largest duplicate clusters, of two or more, the largest first.

    Parameters
    ----------
    clusters : ndarray of shape (n,), int32
        Duplicate cluster of each prompt.
    most : int
        Clusters at most.

    Returns
    -------
    list of ndarray of int64
        Rising row numbers of each cluster's prompts.
    """
    sizes = np.bincount(clusters)
    largest = np.argsort(-sizes, kind="stable")[:most]
    members = np.argsort(clusters, kind="stable")  # rows by cluster: one pass for all of them
    ends = np.cumsum(sizes)
    return [
        members[ends[cluster] - sizes[cluster] : ends[cluster]]
        for cluster in largest[sizes[largest] > 1]
    ]
