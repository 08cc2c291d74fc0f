"""Nearest-neighbour descent in rounds, of pynndescent's compiled parts.

A graph of neighbours is improved by comparing the neighbours of each row with each other (Dong,
Moses and Li, WWW 2011); it starts from the leaves of random projection trees. Trees, choice of
candidates, comparison and heaps are pynndescent's (McInnes). Its ``NNDescent`` runs a number of
rounds set beforehand; here the loop over them goes on until the recall on a sample of rows is what
is wanted. What a round leaves can be kept, and gone on from. Rows are split into `PARTS` whatever
the number of threads, so that it decides the speed only. There is no second copy of the vectors.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from isodense.neighbors.exact import in_threads, measured, nearest
from isodense.neighbors.graph import Graph, recall
from isodense.pipeline.cache import Entry
from isodense.pipeline.runtime import let_numba_compile

PARTS = 8  # of the rows, each changed by one thread; decides the bytes
CANDIDATES, WIDEST = 30, 120  # neighbours of a row, new and old ones each, compared in a round
BLOCK = 8192  # rows whose candidates are compared before distances are looked at again
MEASURED = 2048  # queries whose distances are computed at once
LEAF, LEAVES = 256, 128  # most rows in a leaf; leaves compared before distances are looked at again
STILL = 0.001  # share of the neighbours; a round that changes fewer is followed by a wider one
STATE = "descent.safetensors"  # what the last round left, in the cache
WORTH = 20.0  # seconds of rounds that are kept

log = logging.getLogger("isodense")


class Descent:
    """A graph of about the nearest rows, which rounds improve.

    Parameters
    ----------
    X : ndarray of shape (n, dim), float32
        Rows of unit length.
    k : int
        Neighbours of each row, at most n - 1. A row is not among its own.
    seed : int
        Seed of the trees and of the choice of candidates.
    state : dict of str to ndarray, optional
        What :attr:`state` was after a round of a descent with the same arguments.
    """

    def __init__(
        self, X: np.ndarray, k: int, seed: int, state: dict[str, np.ndarray] | None = None
    ) -> None:
        self._X = X
        rng = np.random.default_rng(seed)
        self._random = rng.integers(-(2**31) + 2**16, 2**31 - 2**16, 3)
        if state is None:
            self._heap = _planted(X, k, int(rng.integers(2**62)))
            self._rounds, self._candidates, self._still = 0, CANDIDATES, False
        else:
            self._heap = state["indices"], state["distances"], state["flags"]
            self._rounds, self._candidates, self._still = state["counts"].tolist()
        self._make_room()

    @property
    def state(self) -> dict[str, np.ndarray]:
        """All that a descent with the same arguments needs to go on from here."""
        indices, distances, flags = self._heap
        counts = np.array([self._rounds, self._candidates, self._still], dtype=np.int64)
        return {"indices": indices, "distances": distances, "flags": flags, "counts": counts}

    @property
    def proposed(self) -> np.ndarray:
        """Row numbers of neighbours, in no order, -1 where there is none; shape (n, k), int32."""
        indices: np.ndarray = self._heap[0]
        return indices

    def round(self) -> bool:
        """Compare candidates, more of them after a round that changed little.

        Returns
        -------
        bool
            Whether a further round may change more than a little.
        """
        from isodense.neighbors.compiled import choose, compare

        if self._still:
            self._candidates *= 2
            self._heap[2][:] = 1  # all neighbours count as new
            self._make_room()
        random = self._random + 64 * self._rounds
        new, old = choose(self._heap, self._candidates, random, PARTS, self._choice)
        changed = compare(self._X, self._heap, new, old, BLOCK, PARTS, self._changes)
        self._rounds += 1
        self._still = bool(changed <= STILL * self.proposed.size)
        return not self._still or 2 * self._candidates <= WIDEST

    def _make_room(self) -> None:
        """Allocate what a round writes to."""
        (n, k), most = self.proposed.shape, self._candidates
        self._choice = _room_to_choose(n, k, most)
        self._changes = _room_to_compare(most**2 + most * (most - 1) // 2, BLOCK)


def descend(
    X: np.ndarray,
    k: int,
    rows: np.ndarray,
    exact: Graph,
    aim: float,
    *,
    n_jobs: int,
    seed: int,
    entry: Entry | None = None,
) -> Graph:
    """Find about the `k` nearest rows of every row, by as many rounds as it takes.

    Parameters
    ----------
    X : ndarray of shape (n, dim), float32
        Rows of unit length.
    k : int
        Number of neighbours, at most n - 1.
    rows : ndarray of shape (m,)
        Numbers of the rows to measure recall on.
    exact : Graph
        Exact neighbours of these rows.
    aim : float
        Recall to reach, in [0, 1]; less is reached where wider and wider rounds change little.
    n_jobs : int
        Threads; the graph does not depend on them.
    seed : int
        See :class:`Descent`.
    entry : Entry, optional
        Where the graph is kept after rounds that took long.

    Returns
    -------
    Graph
        Graph of n rows.
    """
    let_numba_compile()
    import numba

    config: Any = numba.config
    threads = numba.get_num_threads()
    numba.set_num_threads(min(n_jobs, config.NUMBA_NUM_THREADS))
    try:
        begin = time.perf_counter()
        known = load_file(entry.path(STATE)) if entry and entry.holds(STATE) else None
        descent, more = Descent(X, k, seed, known), True
        while more and (reached := recall(_of(descent, X, rows, k), exact)) < aim:
            log.info("recall %.3f of %.3f", reached, aim)
            more = descent.round()
            if entry and time.perf_counter() - begin > WORTH:
                with entry.writing(STATE) as path:
                    save_file(descent.state, path)
                begin = time.perf_counter()
    finally:
        numba.set_num_threads(threads)
    proposed = descent.proposed
    del descent  # its arrays are larger than the graph
    graph = kept(X, X, proposed, np.arange(len(X)), k)
    log.info("recall %.3f", recall(Graph(graph.indices[rows], graph.distances[rows]), exact))
    return graph


def _of(descent: Descent, X: np.ndarray, rows: np.ndarray, k: int) -> Graph:
    """Return the graph of `rows`, with distances in float64."""
    return kept(X[rows], X, descent.proposed[rows], rows, k)


def _planted(X: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, ...]:
    """Return heaps of the nearest rows that share a leaf of a tree: numbers, distances, flags."""
    from pynndescent.hybrid_forest import make_hybrid_leaf_array
    from pynndescent.utils import make_heap

    from isodense.neighbors.compiled import compare

    heap: tuple[np.ndarray, ...] = make_heap(len(X), k)
    trees = max(3, min(12, round(2 * np.log10(len(X)))))  # as many as pynndescent plants
    leaves = make_hybrid_leaf_array(X, trees, max(60, min(LEAF, 5 * k)), seed, angular=False)
    none, most = np.full((len(leaves), 1), -1, dtype=np.int32), leaves.shape[1]
    room = _room_to_compare(most * (most - 1) // 2, LEAVES)
    compare(X, heap, leaves, none, LEAVES, PARTS, room)
    return heap


def _room_to_choose(n: int, k: int, candidates: int) -> tuple[np.ndarray, ...]:
    """Return the arrays that the choice of candidates writes to."""

    def chosen() -> tuple[np.ndarray, np.ndarray]:
        order = np.full((n, candidates), np.inf, dtype=np.float32)
        return np.full((n, candidates), -1, dtype=np.int32), order

    reverse = np.empty(n * k, dtype=np.int32), np.empty(n * k, dtype=np.int32)
    active, bounds = np.ones(n, dtype=np.uint8), np.zeros((PARTS, PARTS + 1), dtype=np.int64)
    return *chosen(), *chosen(), active, *reverse, bounds


def _room_to_compare(pairs: int, block: int) -> tuple[np.ndarray, ...]:
    """Return arrays for the changes from a block of rows with up to `pairs` comparisons each."""
    most = pairs * (block // PARTS + 1) + 4
    updates = np.empty((PARTS, most, 3), dtype=np.float32)
    ordered = np.empty((PARTS, 2 * most, 3), dtype=np.float32)
    counts = np.zeros(PARTS, dtype=np.int32)
    return updates, counts, ordered, np.zeros((PARTS, PARTS + 1), dtype=np.int64)


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
        rows = np.flatnonzero(wanted[start : start + MEASURED].any(axis=1)) + start
        query, slot = np.nonzero(wanted[rows])
        pairs = query, found[rows[query], slot]
        indices[rows], distances[rows] = measured(queries[rows], X, pairs, k)
        return len(rows)

    for _ in in_threads(measure, range(0, len(queries), MEASURED)):
        pass
    if len(short):
        exact = nearest(queries[short], X, k, own=own[short], device="cpu", done=lambda _: None)
        indices[short], distances[short] = exact.indices, exact.distances
    return Graph(indices, distances)
