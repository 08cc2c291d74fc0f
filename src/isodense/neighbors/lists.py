"""Approximate nearest neighbours: an inverted file searched by matrix products, block by block.

Every row is in the list of a centroid near to it (Sivic and Zisserman 2003), and a query is
compared with the rows of the lists nearest to it. Queries are taken in blocks of adjacent lists,
which are near each other and so look into much the same lists: one matrix product scores all rows
of a list for all queries of the block that look into it, as the exact search does with tiles
(compare the leaves of PiPNN, arXiv 2602.21247).

There are many short lists, since with 16√n lists a query has to see a third of the rows that it has
to see with √n for the same recall. So centroids are found and looked up in two levels: cells of
some √lists centroids, of which the nearest cells are looked into.

What a query finds depends on the query and the lists alone. Where rounding of float32 scores could
decide which lists it looks into, or which rows it keeps, scores are computed again in float64. So
the bytes are the same for any size of blocks, any number of threads, and vectors in memory or on
disk, and blocks are pure functions that may be computed anywhere.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_limits

from isodense.neighbors.exact import SPARE, Best, Pairs, in_threads, margin, measured, threads
from isodense.neighbors.graph import Graph

LISTS = 16  # lists per √n
SHORTEST = 16  # rows of a list, on average, at least
POINTS, ROUNDS = 32, 5  # of k-means: rows per centroid, iterations
LOOK = 8  # centroids looked at per list probed
PROBES = sorted({round(2 ** (step / 4)) for step in range(57)})  # values to try, 1 to 16,384
BLOCK = 8192  # queries of a block, at most
CHUNK = 1024  # queries whose centroids are scored at once
MEASURED = 2048  # queries whose candidates are measured at once
GAP = 64  # rows that are read from disk and not wanted, rather than starting another read
CROWDED = 16  # queries scored again at once: each may have very many candidates

Reader = Callable[[], Iterable[np.ndarray]]


class Rows(Protocol):
    """Unit vectors sorted by list, float32; position p is row ``lists.order[p]``."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the vectors at positions `start` to `stop`."""

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Return the vectors at rising positions."""


@dataclass(frozen=True)
class InMemory:
    """Vectors in memory, in their own order.

    Attributes
    ----------
    X : ndarray of shape (n, dim), float32
        Unit rows.
    order : ndarray of shape (n,), int32
        Row number at each position.
    """

    X: np.ndarray
    order: np.ndarray

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the vectors at positions `start` to `stop`."""
        return self.X[self.order[start:stop]]

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Return the vectors at rising positions."""
        return self.X[self.order[positions]]


@dataclass(frozen=True)
class Slice:
    """Vectors of some positions in memory, in the order of the lists.

    Attributes
    ----------
    X : ndarray of shape (n, dim), float32
        Unit rows.
    start : int
        Position of the first.
    """

    X: np.ndarray
    start: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the vectors at positions `start` to `stop`."""
        return self.X[start - self.start : stop - self.start]

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Return the vectors at rising positions."""
        return self.X[positions - self.start]


@dataclass(frozen=True)
class OnDisk:
    """Vectors in a file without header, sorted by list; only what is asked for is read.

    Attributes
    ----------
    path : Path
    dim : int
    dtype : str
        Of the file; rows are scaled to unit length as they are read.
    """

    path: Path
    dim: int
    dtype: str = "float16"

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the vectors at positions `start` to `stop`."""
        return unit(self._stored(start, stop))

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Return the vectors at rising positions, read in runs with short gaps."""
        found = np.empty((len(positions), self.dim), dtype=self.dtype)
        ends = [0, *(np.flatnonzero(np.diff(positions) > GAP) + 1), len(positions)]
        for first, last in pairwise(ends):
            part = positions[first:last]
            if len(part):
                found[first:last] = self._stored(part[0], part[-1] + 1)[part - part[0]]
        return unit(found)

    def _stored(self, start: int, stop: int) -> np.ndarray:
        width = self.dim * np.dtype(self.dtype).itemsize
        count = int(stop - start) * self.dim
        found = np.fromfile(self.path, dtype=self.dtype, count=count, offset=int(start) * width)
        return found.reshape(-1, self.dim)


def unit(X: np.ndarray) -> np.ndarray:
    """Return rows scaled to unit length, float32; a row's bytes depend on nothing but the row."""
    wide = X.astype(np.float64)
    wide /= np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None]
    return wide.astype(np.float32)


@dataclass(frozen=True)
class Lists:
    """Centroids in two levels, and which rows are in whose list.

    Attributes
    ----------
    cells : ndarray of shape (n_cells, dim), float32
        Centroids of cells of lists.
    bounds : ndarray of shape (n_cells + 1,), int64
        Lists of cell c are ``bounds[c]`` to ``bounds[c + 1]``.
    centroids : ndarray of shape (n_lists, dim), float32
        Of the lists; adjacent ones are near each other.
    order : ndarray of shape (n,), int32
        Row numbers, list by list, rising in each.
    offsets : ndarray of shape (n_lists + 1,), int64
        Rows of list l are at positions ``offsets[l]`` to ``offsets[l + 1]``.
    """

    cells: np.ndarray
    bounds: np.ndarray
    centroids: np.ndarray
    order: np.ndarray
    offsets: np.ndarray

    @classmethod
    def fit(cls, read: Reader, rows: int, seed: int, lists: int | None = None) -> Lists:
        """Find centroids by k-means on a sample, and the list of every row.

        Parameters
        ----------
        read : callable
            Yields all vectors in order, in blocks of any size, unit float32; called twice.
        rows : int
            How many there are.
        seed : int
            Seed of the sample and the initial centroids.
        lists : int, optional
            16√n by default, or fewer so that a list has 16 rows on average.
        """
        lists = lists or max(1, min(int(LISTS * rows**0.5), rows // SHORTEST))
        cells, bounds, centroids = _two_levels(_sample(read, rows, POINTS * lists, seed), lists)
        found = cls(cells, bounds, centroids, np.empty(0, np.int32), np.empty(0, np.int64))
        home, begin = np.empty(rows, dtype=np.int32), 0
        for block in read():
            begin += found._assign(block, home[begin:])
        order = np.argsort(home, kind="stable").astype(np.int32)
        offsets = np.searchsorted(home[order], np.arange(len(centroids) + 1))
        return cls(cells, bounds, centroids, order, offsets.astype(np.int64))

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file({field.name: getattr(self, field.name) for field in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> Lists:
        """Read what :meth:`save` wrote."""
        return cls(**load_file(path))

    def __len__(self) -> int:
        return len(self.centroids)

    def slices(self, most: int) -> list[range]:
        """Return all positions in slices of whole lists, of up to `most` rows or a single list."""
        found, start = [], 0
        while start < len(self.order):
            last = np.searchsorted(self.offsets, start + most, side="right") - 1
            first = np.searchsorted(self.offsets, start, side="right")
            found.append(range(start, int(self.offsets[max(first, last)])))
            start = found[-1].stop
        return found

    def probed(self, queries: np.ndarray, probes: int) -> Pairs:
        """Return the lists that queries look into.

        Parameters
        ----------
        queries : ndarray of shape (m, dim), float32
            Unit rows.
        probes : int
            Lists per query.

        Returns
        -------
        query, list : ndarray of shape (m · probes,), int32
            Pairs, by query. Ties go to the list or the cell that comes first.
        """
        probes = min(probes, len(self))
        cells = min(len(self.cells), 1 + -(-LOOK * probes * len(self.cells) // len(self)))
        query = np.repeat(np.arange(len(queries), dtype=np.int32), probes)
        found = np.empty(len(query), dtype=np.int32)
        for start in _starts(queries, CHUNK):
            part = self._nearest(queries[start : start + CHUNK], cells, probes)
            found[start * probes :][: len(part)] = part
        return query, found

    def _nearest(self, queries: np.ndarray, cells: int, probes: int) -> np.ndarray:
        """Return the nearest lists in the nearest cells, `probes` for each query in turn."""
        look = _highest(queries @ self.cells.T, cells, queries, self.cells)
        widths = np.diff(self.bounds)
        while (look @ widths < probes).any():  # small cells
            cells = min(2 * cells, len(self.cells))
            look = _highest(queries @ self.cells.T, cells, queries, self.cells)
        slot, width = np.cumsum(look, axis=1) - 1, int(widths.max())
        cell_of = np.nonzero(look)[1].reshape(len(queries), cells)  # cell in each slot
        scores = np.full((len(queries), cells, width), -np.inf, dtype=np.float32)
        for cell in np.flatnonzero(look.any(axis=0)):
            asking, lists = np.flatnonzero(look[:, cell]), slice(*self.bounds[cell : cell + 2])
            found = queries[asking] @ self.centroids[lists].T
            scores[asking, slot[asking, cell], : widths[cell]] = found

        def number(query: np.ndarray, column: np.ndarray) -> np.ndarray:
            lists: np.ndarray = self.bounds[cell_of[query, column // width]] + column % width
            return lists

        high = _highest(scores.reshape(len(queries), -1), probes, queries, self.centroids, number)
        return number(*np.nonzero(high))

    def _assign(self, block: np.ndarray, home: np.ndarray) -> int:
        """Put down the nearest list of each vector; return how many vectors there are."""

        def assign(start: int) -> int:
            part = block[start : start + CHUNK]
            home[start : start + len(part)] = self.probed(part, 1)[1]
            return len(part)

        return sum(in_threads(assign, _starts(block, CHUNK)))

    def search(
        self,
        rows: Rows,
        queries: np.ndarray,
        own: np.ndarray,
        k: int,
        probes: int,
        *,
        within: range | None = None,
        block: int | None = None,
    ) -> Graph:
        """Find about the `k` nearest rows of queries, in as many threads as BLAS has.

        Parameters are those of :meth:`search_block`, and further

        Parameters
        ----------
        block : int, optional
            Queries searched at once, by default 8,192, or fewer so that every thread has some;
            changes speed and memory, not the result. Queries in the order of the lists are
            searched fastest.
        """
        graph = Graph.empty(len(queries), k)
        block = block or max(1, min(BLOCK, -(-len(queries) // threads())))

        def search(start: int) -> int:
            part = slice(start, start + block)
            found = self.search_block(rows, queries[part], own[part], k, probes, within)
            graph.indices[part], graph.distances[part] = found.indices, found.distances
            return len(found)

        for _ in in_threads(search, _starts(queries, block)):
            pass
        return graph

    def search_block(
        self,
        rows: Rows,
        queries: np.ndarray,
        own: np.ndarray,
        k: int,
        probes: int,
        within: range | None = None,
    ) -> Graph:
        """Find about the `k` nearest rows of queries, all at once.

        Parameters
        ----------
        rows : Rows
            The vectors.
        queries : ndarray of shape (m, dim), float32
            Unit rows.
        own : ndarray of shape (m,)
            Row number of the query itself, which is excluded; -1 for none.
        k : int
            Neighbours; at most n, or n - 1 with `own`.
        probes : int
            Lists per query. A query whose lists hold fewer than `k` rows looks into all.
        within : range, optional
            Positions that `rows` holds, one of :meth:`slices`: rows elsewhere are left out.

        Returns
        -------
        Graph
            Nearest rows by rising (distance, row number), distances measured in float64; -1 and
            infinity where there are fewer within.
        """
        if not k or not len(queries):
            return Graph.empty(len(queries), k)
        pairs = self._enough(*self.probed(queries, probes), len(queries), k)
        if within is not None:
            starts = self.offsets[pairs[1]]
            inside = (starts >= within.start) & (starts < within.stop)
            pairs = pairs[0][inside], pairs[1][inside]
        best = Best(len(queries), min(k + 1 + SPARE, len(self.order)))
        for asking, tile, positions in self._tiles(rows, queries, pairs):
            best.add(tile, positions, asking)
        best.merge()
        best.scores[self.order[best.rows] == own[:, None]] = -np.inf
        return self._kept(rows, queries, own, pairs, best, k)

    def _enough(self, query: np.ndarray, list_: np.ndarray, queries: int, k: int) -> Pairs:
        """Let queries whose lists hold `k` rows or fewer, one perhaps their own, see all lists."""
        held = np.diff(self.offsets)[list_].reshape(queries, -1).sum(axis=1)
        if held.min() > k:
            return query, list_
        short = np.flatnonzero(held <= k)
        others = ~np.isin(query, short)
        every = np.arange(len(self))
        return (
            np.concatenate([query[others], np.repeat(short, len(every))]),
            np.concatenate([list_[others], np.tile(every, len(short))]),
        )

    def _tiles(
        self, rows: Rows, queries: np.ndarray, pairs: Pairs
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield, list by list, who looks into it, their scores of its rows, and its positions.

        Lists that most look into come first, as they raise the thresholds of most. The scores are
        overwritten by the next list's.
        """
        sizes = np.diff(self.offsets)
        asked = np.bincount(pairs[1], minlength=len(self))
        asking = pairs[0][np.argsort(pairs[1].astype(np.min_scalar_type(len(self))), kind="stable")]
        ends, counts = np.cumsum(asked), asked * (sizes > 0)
        most = int(counts.max())
        gathered = np.empty((most, queries.shape[1]), dtype=np.float32)
        memory = np.empty(int((counts * sizes).max()), dtype=np.float32)
        for number in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]:
            who = asking[ends[number] - counts[number] : ends[number]]
            part = np.take(queries, who, axis=0, out=gathered[: len(who)], mode="clip")
            start, stop = self.offsets[number : number + 2]
            tile = memory[: len(who) * (stop - start)].reshape(len(who), stop - start)
            np.matmul(part, rows.read(start, stop).T, out=tile)
            yield who, tile, np.arange(start, stop)

    def _kept(
        self, rows: Rows, queries: np.ndarray, own: np.ndarray, pairs: Pairs, best: Best, k: int
    ) -> Graph:
        """Keep the `k` nearest candidates; score a query again where one may be missing."""
        graph, size = Graph.empty(len(queries), k), best.scores.shape[1]
        kth = np.partition(best.scores, size - k, axis=1)[:, size - k].astype(np.float64)
        least = kth - margin(queries.shape[1])
        wanted = (best.scores >= least[:, None]) & np.isfinite(best.scores)

        def measure(some: np.ndarray, pairs: Pairs) -> None:
            graph.indices[some], graph.distances[some] = self._measured(
                rows, queries[some], pairs, k
            )

        for start in _starts(queries, MEASURED):
            query, slot = np.nonzero(wanted[start : start + MEASURED])
            some = np.arange(start, min(start + MEASURED, len(queries)))
            measure(some, (query, best.rows[some[query], slot]))
        full = np.flatnonzero(wanted.sum(axis=1) >= size - (own >= 0))
        for start in range(0, len(full), CROWDED):
            some = full[start : start + CROWDED]
            measure(some, self._competing(rows, queries, own, pairs, some, least))
        return graph

    def _competing(
        self,
        rows: Rows,
        queries: np.ndarray,
        own: np.ndarray,
        pairs: Pairs,
        some: np.ndarray,
        least: np.ndarray,
    ) -> Pairs:
        """Return all positions in the lists of some queries whose score is at least `least`."""
        number = np.full(len(queries), -1)
        number[some] = np.arange(len(some))
        theirs = number[pairs[0]] >= 0
        found = []
        for asking, tile, positions in self._tiles(
            rows, queries[some], (number[pairs[0][theirs]], pairs[1][theirs])
        ):
            query, column = np.nonzero(tile >= least[some[asking], None])
            other = self.order[positions[column]] != own[some[asking[query]]]
            found.append((asking[query][other], positions[column][other]))
        return np.concatenate([q for q, _ in found]), np.concatenate([p for _, p in found])

    def _measured(
        self, rows: Rows, queries: np.ndarray, pairs: Pairs, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Measure candidates at positions in float64 and keep the `k` nearest of each query."""
        positions, where = np.unique(pairs[1], return_inverse=True)
        by_row = np.argsort(self.order[positions])
        place = np.argsort(by_row)  # ties go by row number
        X = rows.take(positions)[by_row]
        indices, distances = measured(queries, X, (pairs[0], place[where]), k)
        return np.append(self.order[positions][by_row], np.int32(-1))[indices], distances


class ListsSearch:
    """What searches lists in a worker.

    Parameters
    ----------
    lists : Lists
    probes : int
        Lists per query.
    """

    def __init__(self, lists: Lists, probes: int) -> None:
        self._lists, self._probes = lists, probes

    def __call__(
        self, queries: np.ndarray, own: np.ndarray, k: int, within: range | None, X: np.ndarray
    ) -> Graph:
        """Return about the `k` nearest rows, of all or within a slice; see :meth:`Lists.search`."""
        rows = Slice(X, within.start) if within else InMemory(X, self._lists.order)
        return self._lists.search(rows, queries, own, k, self._probes, within=within)


def enough_probes(
    lists: Lists, queries: np.ndarray, neighbors: np.ndarray, aim: float
) -> tuple[int, float]:
    """Return the smallest number of lists to probe that reaches a recall.

    Parameters
    ----------
    lists : Lists
    queries : ndarray of shape (m, dim), float32
        Unit rows.
    neighbors : ndarray of shape (m, k)
        Row numbers of their exact neighbours.
    aim : float
        Recall to reach, in [0, 1]; 1 takes all lists.

    Returns
    -------
    probes : int
        One of `PROBES`, or all lists.
    reached : float
        Share of exact neighbours whose list is probed.
    """
    home = np.empty(len(lists.order), dtype=np.int32)
    home[lists.order] = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))

    def reached(probes: int) -> float:
        query, found = lists.probed(queries, probes)
        seen = np.zeros((len(queries), len(lists)), dtype=bool)
        seen[query, found] = True
        return float(np.take_along_axis(seen, home[neighbors], axis=1).mean())

    steps = [*(probes for probes in PROBES if probes < len(lists)), len(lists)]
    place = bisect_left(steps, aim, hi=len(steps) - 1, key=reached) if aim < 1 else -1
    return steps[place], reached(steps[place])


def sort_to_disk(
    read: Reader, lists: Lists, path: Path, dtype: str = "float16", slab: int = 2**20
) -> OnDisk:
    """Write vectors sorted by list, a slab of positions at a time.

    Parameters
    ----------
    read : callable
        Yields all vectors in order, in blocks of any size; called once for each slab.
    lists : Lists
    path : Path
        File to write, without header.
    dtype : str
        Of the file.
    slab : int
        Rows in memory at once.
    """
    dim, rows = lists.centroids.shape[1], len(lists.order)
    place = np.empty(rows, dtype=np.int32)
    place[lists.order] = np.arange(rows, dtype=np.int32)
    with path.open("wb") as stream:
        for start in range(0, rows, slab):
            memory = np.empty((min(slab, rows - start), dim), dtype=dtype)
            begin = 0
            for block in read():
                at = place[begin : begin + len(block)] - start
                inside = (at >= 0) & (at < len(memory))
                memory[at[inside]] = block[inside]
                begin += len(block)
            memory.tofile(stream)
    return OnDisk(path, dim, dtype)


def _starts(queries: np.ndarray, block: int) -> range:
    return range(0, len(queries), block)


def _highest(
    scores: np.ndarray,
    count: int,
    queries: np.ndarray,
    centroids: np.ndarray,
    number: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Mark the `count` highest scores of each row, whatever the rounding of float32.

    Parameters
    ----------
    scores : ndarray of shape (m, n), float32
        Dot products of queries and centroids.
    count : int
        At most n.
    queries : ndarray of shape (m, dim), float32
    centroids : ndarray of shape (n_lists, dim), float32
    number : callable, optional
        Tells of which centroids the scores in given rows and columns are; by default, of those
        whose numbers are the columns'.

    Returns
    -------
    ndarray of shape (m, n), bool
        Scores within rounding error of the last place are compared in float64, ties go to the
        first column.
    """
    last = scores.shape[1] - count
    if not last:
        return np.isfinite(scores)
    kth = np.partition(scores, last, axis=1)[:, last : last + 1]
    error = margin(queries.shape[1])
    high = scores > kth + error
    near = (scores >= kth - error) & ~high
    free = count - high.sum(axis=1)
    high |= near
    tied = np.flatnonzero(near.sum(axis=1) > free)
    row, column = np.nonzero(near[tied])
    found = column if number is None else number(tied[row], column)
    gap = queries[tied[row]].astype(np.float64)
    exact = np.einsum("ij,ij->i", gap, centroids[found].astype(np.float64))
    order = np.lexsort((column, -exact, row))
    rank = np.arange(len(order)) - np.searchsorted(row, row)  # rows rise, before and after
    losing = order[rank >= free[tied][row]]
    high[tied[row[losing]], column[losing]] = False
    return high


def _sample(read: Reader, rows: int, size: int, seed: int) -> np.ndarray:
    """Return vectors of some rows, or of all where there are fewer."""
    wanted = np.zeros(rows, dtype=bool)
    wanted[np.random.default_rng(seed).permutation(rows)[:size]] = True
    parts, begin = [], 0
    for block in read():
        parts.append(block[wanted[begin : begin + len(block)]])
        begin += len(block)
    return np.concatenate(parts)


def _two_levels(X: np.ndarray, lists: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the centroids of cells, where each cell's lists end, and the centroids of lists."""
    cells = _chained(_centroids(X, max(1, round(lists**0.5))))
    cell = np.concatenate(
        [(X[start : start + CHUNK] @ cells.T).argmax(axis=1) for start in _starts(X, CHUNK)]
    )
    counts = np.bincount(cell, minlength=len(cells))
    shares = np.maximum(np.round(counts * (lists / len(X))).astype(int), counts > 0)
    found = np.flatnonzero(shares)
    fine = [_chained(_centroids(X[cell == number], shares[number])) for number in found]
    cells, shares = cells[found], shares[found]
    return cells, np.concatenate([[0], np.cumsum(shares)]).astype(np.int64), np.concatenate(fine)


def _centroids(X: np.ndarray, count: int) -> np.ndarray:
    """Return the centroids of spherical k-means, float32."""
    if count == 1:
        mean = X.mean(axis=0, keepdims=True, dtype=np.float64)
        return (mean / max(np.linalg.norm(mean), 1e-12)).astype(np.float32)
    means = faiss().Kmeans(
        X.shape[1],
        count,
        niter=ROUNDS,
        seed=0,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=2 * POINTS,
    )
    with threadpool_limits(1):  # for the same bytes at any number
        means.train(np.ascontiguousarray(X))
    return np.asarray(means.centroids, dtype=np.float32).reshape(count, -1)


def _chained(centroids: np.ndarray) -> np.ndarray:
    """Order centroids so that each is followed by the nearest of those left."""
    alike = centroids @ centroids.T
    order, free = [0], np.ones(len(centroids), dtype=bool)
    free[0] = False
    while free.any():
        order.append(int(np.where(free, alike[order[-1]], -np.inf).argmax()))
        free[order[-1]] = False
    return centroids[order]


def faiss() -> Any:
    """Import faiss; the wheels of faiss and torch for macOS ship two OpenMPs.

    See https://github.com/faiss-wheels/faiss-wheels/issues/73.
    """
    if sys.platform == "darwin":
        os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
    import faiss

    if sys.platform == "darwin":
        faiss.omp_set_num_threads(1)
    return faiss
