"""Approximate nearest neighbours from an index of pynndescent.

The index proposes candidates; distances are then computed in float64 and sorted as in the exact
search. :mod:`isodense.neighbors.lists` is the approximate search that can be split, resumed and
distributed.
"""

from __future__ import annotations

import numpy as np

from isodense.neighbors.exact import in_threads, measured, nearest
from isodense.neighbors.graph import Graph
from isodense.pipeline.runtime import let_numba_compile

BLOCK = 2048  # queries whose distances are computed at once


def descent(X: np.ndarray, k: int, n_jobs: int, seed: int) -> Graph:
    """Find about the `k` nearest rows of every row by NN-Descent (Dong et al. 2011).

    Parameters
    ----------
    X : ndarray of shape (n, dim), float32
        Rows of unit length.
    k : int
        Number of neighbours, at most n - 1.
    n_jobs : int
        Number of threads; the graph depends on it.
    seed : int
        Seed of the index.

    Returns
    -------
    Graph
        Graph of n rows.
    """
    let_numba_compile()
    from pynndescent import NNDescent

    index = NNDescent(
        X, metric="dot", n_neighbors=k + 1, random_state=seed, n_jobs=n_jobs, low_memory=True
    )
    return _kept(X, X, np.asarray(index.neighbor_graph[0]), np.arange(len(X)), k)


def _kept(queries: np.ndarray, X: np.ndarray, found: np.ndarray, own: np.ndarray, k: int) -> Graph:
    """Keep the `k` nearest rows that an index found; where there are fewer, search exactly."""
    indices = np.empty((len(queries), k), dtype=np.int32)
    distances = np.empty((len(queries), k), dtype=np.float32)
    wanted = (found >= 0) & (found != own[:, None])
    short = np.flatnonzero(wanted.sum(axis=1) < k)
    wanted[short] = False

    def measure(start: int) -> int:
        rows = np.flatnonzero(wanted[start : start + BLOCK].any(axis=1)) + start
        query, slot = np.nonzero(wanted[rows])
        pairs = query, found[rows[query], slot]
        indices[rows], distances[rows] = measured(queries[rows], X, pairs, k)
        return len(rows)

    for _ in in_threads(measure, range(0, len(queries), BLOCK)):
        pass
    if len(short):
        exact = nearest(queries[short], X, k, own=own[short], device="cpu", done=lambda _: None)
        indices[short], distances[short] = exact.indices, exact.distances
    return Graph(indices, distances)
