"""Weights that follow from no density, to compare with: pruning, and equal mass per cluster."""

from __future__ import annotations

import numpy as np

from isodense.neighbors.graph import Graph

DROPPED = 1e-20  # weight of a prompt that is left out, of one that is kept
ROUNDS = 25
SAMPLE = 256  # prompts per cluster, at most, that the centroids are fitted on


def pruned(graph: Graph, epsilon: float) -> np.ndarray:
    """Return equal weights for the prompts that deduplication keeps, and next to none for others.

    A prompt is left out if an earlier one is more similar to it than 1 - `epsilon`, by the cosine,
    as in SemDeDup (Abbas et al. 2023, arXiv 2303.09540), which finds such pairs within clusters of
    k-means; here they are those of the neighbour graph. Weights have to be positive, so what is
    left out keeps 1e-20 of what is kept: it is not drawn as long as draws are with replacement.

    Parameters
    ----------
    graph : Graph
        Neighbours of every prompt, by distance between unit vectors.
    epsilon : float

    Returns
    -------
    ndarray of shape (n,), float64
        Sum 1.
    """
    rows, column = np.nonzero(graph.distances.astype(np.float64) ** 2 < 2 * epsilon)
    weights = np.ones(len(graph))
    weights[np.maximum(rows, graph.indices[rows, column])] = DROPPED
    return weights / weights.sum()


def evened_clusters(vectors: np.ndarray, clusters: int | None) -> np.ndarray:
    """Return weights under which each cluster of the embeddings is drawn as often as any other.

    Clusters are those of k-means, as in cluster-balanced sampling (Shao et al. 2024,
    ClusterClip, arXiv 2402.14526), and the prompts of one weigh alike.

    Parameters
    ----------
    vectors : ndarray of shape (n, dim), float32
        Rows of unit length.
    clusters : int or None
        Their number, n at most; None: the square root of n.

    Returns
    -------
    ndarray of shape (n,), float64
        Sum 1.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    count = min(clusters or max(1, round(len(vectors) ** 0.5)), len(vectors))
    rng = np.random.default_rng(0)
    fitted = rng.permutation(len(vectors))[: SAMPLE * count]
    means = KMeans(count, n_init=1, max_iter=ROUNDS, random_state=0)
    with threadpool_limits(1):  # threads change the order of sums
        means.fit(vectors[fitted])
        nearest = means.predict(vectors)
    sizes = np.bincount(nearest)
    return 1.0 / (sizes[nearest] * np.count_nonzero(sizes))
