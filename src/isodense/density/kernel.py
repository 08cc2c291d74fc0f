"""The soft count: how many distinct prompts lie around each row, by a Gaussian kernel.

And, by a kernel that ends within r₀, how many there are that say the same in other words. The graph
holds the nearest k. What the kernel would count beyond them follows from the distance
r_k to the last and from the intrinsic dimension, so that a crowd larger than k is told from one
of k; it is no more than if all others were as near as that. A duplicate cluster counts as one
prompt.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.sparse import csr_array
from scipy.special import gammaincc, gammaln

from isodense.density.duplicates import Scales
from isodense.neighbors.graph import Graph

BLOCK = 1024  # rows whose kernel is held at once; speed and memory only


def soft_counts(
    graph: Graph, clusters: np.ndarray | None, sizes: np.ndarray, scales: Scales, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the soft count of distinct prompts around each row, and whether it sees any.

    Parameters
    ----------
    graph : Graph
        Neighbours of each row among n prompts.
    clusters : ndarray of shape (n,), optional
        Duplicate cluster of each row; None for rows that are not among the n, which are in none.
    sizes : ndarray of shape (n,)
        How many prompts share the weight of one with each of the n.
    scales : Scales
    n : int

    Returns
    -------
    counts : ndarray of shape (len(graph),), float64
        Without the row itself and its near-duplicates.
    seen : ndarray of shape (len(graph),), bool
        Whether a neighbour is outside the row's own duplicate cluster.
    """
    counts, inside = np.zeros(len(graph)), np.zeros(len(graph))
    inverse = 1.0 / sizes

    def count(rows: slice) -> None:
        scaled, indices = graph.distances[rows].astype(np.float64), graph.indices[rows]
        shares = inverse.take(indices)
        if clusters is not None:
            several = np.flatnonzero(sizes[rows] > 1)  # others have no neighbour in their cluster
            outside = clusters.take(indices[several]) != clusters[rows][several, None]
            shares[several] *= outside
        inside[rows] = shares.sum(axis=1)
        np.square(scaled, out=scaled)
        scaled /= 2 * scales.width**2
        last = scaled[:, -1].copy()
        np.exp(np.negative(scaled, out=scaled), out=scaled)
        counts[rows] = np.einsum("ij,ij->i", shares, scaled)
        if graph.k < n - 1:
            most = (n - graph.k) * np.exp(-last)  # as if all were as near as the last neighbour
            counts[rows] += np.minimum(_beyond(inside[rows], last, scales.dimension), most)

    _in_blocks(count, len(graph))
    return np.minimum(counts, n), inside > 0


def niche_counts(
    graph: Graph, clusters: np.ndarray | None, sizes: np.ndarray, reach: float
) -> np.ndarray:
    """Return how many distinct prompts each row is one of that lie close together.

    Itself and its cluster count 1, another at distance d up to (1 - (d / reach)⁴)²: next to 1 in
    the near half of the reach, 0 beyond it. By such a count Goldberg and Richardson (1987, fitness
    sharing) divide what those in one niche get.

    Parameters
    ----------
    graph, clusters
        As for :func:`soft_counts`.
    sizes : ndarray of shape (n,)
        How many prompts are in the duplicate cluster of each of the n.
    reach : float

    Returns
    -------
    ndarray of shape (len(graph),), float64
        At least 1; the mean over a duplicate cluster.
    """
    row, column = np.nonzero(graph.distances < np.float64(reach))
    other = graph.indices[row, column]
    ratio = graph.distances[row, column].astype(np.float64) / reach
    shares = np.square(1 - np.square(np.square(ratio))) / sizes[other]
    if clusters is None:
        return 1 + np.bincount(row, shares, len(graph))
    shares *= clusters[other] != clusters[row]
    total = np.bincount(clusters[row], shares, clusters.max() + 1)
    return 1 + total[clusters] / sizes


def balanced(graph: Graph, clusters: np.ndarray, width: float) -> np.ndarray:
    """Return weights after three damped steps towards equal kernel mass everywhere.

    Parameters
    ----------
    graph : Graph
    clusters : ndarray of shape (n,), int32
    width : float
        Standard deviation of the kernel.

    Returns
    -------
    ndarray of shape (n,), float64
        Sum 1.
    """
    values = np.exp(-(graph.distances.astype(np.float64) ** 2) / (2 * width**2))
    values[clusters[graph.indices] == clusters[:, None]] = 0
    pointer = np.arange(0, values.size + 1, graph.k)
    kernel = csr_array((values.ravel(), graph.indices.ravel(), pointer), shape=(len(graph),) * 2)
    both = kernel.maximum(kernel.T)
    sizes = np.bincount(clusters)[clusters]
    weights = 1.0 / sizes
    for _ in range(3):
        weights = weights / (weights * sizes + both @ weights) ** 0.7
    return weights / weights.sum()


def _beyond(inside: np.ndarray, last: np.ndarray, dimension: float) -> np.ndarray:
    """Return what the kernel would count beyond the last neighbour.

    With `inside` distinct prompts within r_k, at a density that stays what it is there in D
    dimensions: the integral over r > r_k of exp(-r²/2h²) · inside · D · r^(D-1) / r_k^D, which is
    inside · Γ(D/2 + 1) · t^(-D/2) · Q(D/2, t), with t = r_k²/2h² and Q the regularised upper
    incomplete gamma function.
    """
    if not dimension:
        return np.zeros(len(inside))
    last = np.maximum(last, 1e-12)
    power = gammaln(dimension / 2 + 1) - dimension / 2 * np.log(last)
    return inside * np.exp(np.minimum(power, 700)) * gammaincc(dimension / 2, last)


def _in_blocks(work: Callable[[slice], None], n: int) -> None:
    """Run `work` on blocks of rows, on all cores; each row's result is its own."""
    blocks = [slice(start, start + BLOCK) for start in range(0, n, BLOCK)]
    with ThreadPoolExecutor(min(len(blocks), os.cpu_count() or 1) or 1) as pool:
        list(pool.map(work, blocks))
