"""Approximate nearest neighbours from faiss' inverted file.

An index proposes candidates; distances are then computed in float64 and sorted as in the exact
search. The inverted file (Sivic and Zisserman 2003; Douze et al. 2024, arXiv 2401.08281) puts every
row into the list of the nearest centroid and scores the lists nearest to a query. It needs no
compilation, answers queries independently, so that they can be split, resumed and distributed over
processes, and returns the same rows at any number of threads.
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
BLOCK = 2048  # queries whose distances are computed at once
POINTS = 64  # rows per centroid that k-means is fitted on
PROBES = tuple(round(4 * 2 ** (step / 4)) for step in range(32))  # values to try, 4 to 861

log = logging.getLogger("isodense")


class InvertedFile:
    """Rows in lists by nearest centroid; a query is compared with the rows of the nearest lists.

    Parameters
    ----------
    X : ndarray of shape (n, dim), float32
        Rows of unit length; the index holds a copy in float16.
    centroids : ndarray of shape (n_lists, dim), float32
        See :func:`centroids`.
    probes : int
        Number of lists to search per query, ``nprobe`` in faiss.
    """

    def __init__(self, X: np.ndarray, centroids: np.ndarray, probes: int = PROBES[0]) -> None:
        faiss = _faiss()
        self._X = X
        lists = faiss.IndexFlatIP(X.shape[1])
        lists.add(centroids)
        half = faiss.ScalarQuantizer.QT_fp16  # half the memory; distances are computed in float64
        metric = faiss.METRIC_INNER_PRODUCT
        self._index = faiss.IndexIVFScalarQuantizer(
            lists, X.shape[1], len(centroids), half, metric, False
        )
        self._lists = lists  # the index holds a bare pointer to it
        self._index.train(X[:1])  # centroids are set already; this marks the index as trained
        for start in range(0, len(X), 2**16):
            self._index.add(X[start : start + 2**16])
        self.probes = probes

    def order(self) -> np.ndarray:
        """Return all row numbers, list by list, so that rows near each other are adjacent.

        Returns
        -------
        ndarray of shape (n,), int64
        """
        faiss, lists = _faiss(), self._index.invlists
        return np.concatenate(
            [
                faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number)).copy()
                for number in range(lists.nlist)
                if lists.list_size(number)
            ]
        )

    def search(self, queries: np.ndarray, own: np.ndarray, k: int) -> Graph:
        """Find about the `k` nearest rows for every query.

        Parameters are those of :func:`isodense.neighbors.exact.nearest`.
        """
        self._index.nprobe = self.probes
        found = self._index.search(queries, min(k + 1 + SPARE, len(self._X)))[1]
        return kept(queries, self._X, found, own, k)

    def tune(self, rows: np.ndarray, exact: Graph, aim: float) -> float:
        """Set `probes` to the smallest number of lists that reaches a recall.

        Parameters
        ----------
        rows : ndarray of shape (m,)
            Numbers of the rows to measure recall on.
        exact : Graph
            Exact neighbours of these rows.
        aim : float
            Recall to reach, in [0, 1].

        Returns
        -------
        float
            Recall that was reached; it may be below `aim` if all lists are searched.
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
    """Return the 4√n centroids of spherical k-means on a sample of the rows.

    Parameters
    ----------
    X : ndarray of shape (n, dim), float32
        Rows of unit length.
    seed : int
        Seed of the sample and the initial centroids.

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


def kept(queries: np.ndarray, X: np.ndarray, found: np.ndarray, own: np.ndarray, k: int) -> Graph:
    """Keep the `k` nearest rows that an index found; where there are fewer, search exactly.

    Parameters
    ----------
    queries : ndarray of shape (m, dim), float32
        Rows of unit length.
    X : ndarray of shape (n, dim), float32
        Rows of unit length.
    found : ndarray of shape (m, width)
        Row numbers that the index proposes for each query, each once; -1 for none.
    own : ndarray of shape (m,)
        Number of the row of `X` that the query itself is, -1 for none.
    k : int
        Neighbours to keep.

    Returns
    -------
    Graph
        Graph of m rows, with distances in float64 and sorted as those of the exact search.
    """
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
    """Import faiss; on macOS with one thread, as the wheels of faiss and torch ship two OpenMPs.

    See https://github.com/faiss-wheels/faiss-wheels/issues/73.
    """
    if sys.platform == "darwin":
        os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
    import faiss

    if sys.platform == "darwin":
        faiss.omp_set_num_threads(1)
    return faiss
