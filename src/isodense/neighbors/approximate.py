"""Approximate nearest neighbours from two well-kept indexes: faiss' inverted file, pynndescent.

Whatever index proposes the candidates, they are measured in float64 and ordered as those of the
exact search. The inverted file (Sivic and Zisserman 2003; Douze et al. 2024, arXiv 2401.08281)
puts every row into the list of its nearest centroid and scores the lists nearest to a query. It
needs no compilation, answers queries one by one, so that they can be split, resumed and spread
over processes, and gives the same rows on any number of threads.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import numpy as np

from isodense.neighbors.exact import in_threads, measured, nearest
from isodense.neighbors.graph import Graph, recall

SPARE = 4  # candidates beyond k and the row itself
BLOCK = 2048  # queries measured at once
POINTS = 64  # rows per centroid that k-means sees
PROBES = tuple(round(4 * 2 ** (step / 4)) for step in range(32))  # lists to try, 4 to 861

log = logging.getLogger("isodense")


class InvertedFile:
    """Rows in lists by nearest centroid; a query is compared with those of the nearest lists.

    Parameters
    ----------
    X : ndarray of shape (n, dim), float32
        Unit rows; a copy of them in float16 is kept.
    centroids : ndarray of shape (n_lists, dim), float32
        See :func:`centroids`.
    probes : int
        Lists that a query looks into.
    """

    def __init__(self, X: np.ndarray, centroids: np.ndarray, probes: int = PROBES[0]) -> None:
        faiss = _faiss()
        self._X = X
        lists = faiss.IndexFlatIP(X.shape[1])
        lists.add(centroids)
        half = faiss.ScalarQuantizer.QT_fp16  # half the memory to stream; we measure in float64
        metric = faiss.METRIC_INNER_PRODUCT
        self._index = faiss.IndexIVFScalarQuantizer(
            lists, X.shape[1], len(centroids), half, metric, False
        )
        self._lists = lists  # which the index points to
        self._index.train(X[:1])  # the lists are known: only tells it so
        for start in range(0, len(X), 2**16):
            self._index.add(X[start : start + 2**16])
        self.probes = probes

    def order(self) -> np.ndarray:
        """Return all row numbers, list by list: neighbours in this order share their lists."""
        faiss, lists = _faiss(), self._index.invlists
        return np.concatenate(
            [
                faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number)).copy()
                for number in range(lists.nlist)
                if lists.list_size(number)
            ]
        )

    def search(self, queries: np.ndarray, own: np.ndarray, k: int) -> Graph:
        """Find `k` near rows of every query; see :func:`isodense.neighbors.exact.nearest`."""
        self._index.nprobe = self.probes
        found = self._index.search(queries, min(k + 1 + SPARE, len(self._X)))[1]
        return _kept(queries, self._X, found, own, k)

    def tune(self, rows: np.ndarray, exact: Graph, aim: float) -> float:
        """Look into as many lists as it takes to find the share `aim` of the true neighbours.

        Parameters
        ----------
        rows : ndarray of shape (m,)
            Rows to try it on.
        exact : Graph
            Their exact neighbours.
        aim : float
            Recall to reach.

        Returns
        -------
        float
            Recall that was reached.
        """
        reached = 0.0
        for probes in (*PROBES, self._index.nlist):
            self.probes = min(probes, self._index.nlist)
            reached = recall(self.search(self._X[rows], rows, exact.k), exact)
            if reached >= aim or self.probes == self._index.nlist:
                break
        log.info("%d of %d lists give recall %.3f", self.probes, self._index.nlist, reached)
        return reached


def centroids(X: np.ndarray, seed: int) -> np.ndarray:
    """Return 4√n centroids of spherical k-means on a sample of the rows.

    Parameters
    ----------
    X : ndarray of shape (n, dim), float32
        Unit rows.
    seed : int
        Of the sample and the start.

    Returns
    -------
    ndarray of shape (n_lists, dim), float32
    """
    lists = max(1, min(int(4 * len(X) ** 0.5), len(X) // 39))
    means = _faiss().Kmeans(
        X.shape[1], lists, niter=10, seed=seed, max_points_per_centroid=POINTS, spherical=True
    )
    means.train(X)
    return np.asarray(means.centroids, dtype=np.float32)


def descent(X: np.ndarray, k: int, n_jobs: int, seed: int) -> Graph:
    """Find `k` near rows of every row by nearest-neighbour descent (Dong et al. 2011).

    Parameters
    ----------
    X : ndarray of shape (n, dim), float32
        Unit rows.
    k : int
        At most n - 1.
    n_jobs : int
        Threads, which the graph depends on.
    seed : int
        Of the index.

    Returns
    -------
    Graph
    """
    from pynndescent import NNDescent

    index = NNDescent(
        X, metric="dot", n_neighbors=k + 1, random_state=seed, n_jobs=n_jobs, low_memory=True
    )
    return _kept(X, X, np.asarray(index.neighbor_graph[0]), np.arange(len(X)), k)


def _kept(queries: np.ndarray, X: np.ndarray, found: np.ndarray, own: np.ndarray, k: int) -> Graph:
    """Keep `k` of the rows that an index found; where there are fewer, search exactly."""
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


def _faiss() -> Any:
    """Import faiss; on macOS its wheel and torch's each bring an OpenMP, and must not mix threads.

    See https://github.com/faiss-wheels/faiss-wheels/issues/73.
    """
    if sys.platform == "darwin":
        os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
    import faiss

    if sys.platform == "darwin":
        faiss.omp_set_num_threads(1)
    return faiss
