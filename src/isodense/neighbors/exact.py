"""Exact nearest neighbours of unit vectors by blocked matrix products.

Blocks of queries are scored in float32 against tiles of rows, and each query keeps `SPARE` more
candidates than k. The rounding error of a float32 dot product of unit vectors is at most
dim · 2⁻²⁴, whatever the order of the sum (Higham, *Accuracy and Stability of Numerical Algorithms*,
2002, §3.1). So the distances of all candidates within that margin of the k-th are computed again
in float64, and a query whose candidates all lie within the margin is scored again against all rows.
The result is therefore exact, with ties by row number, at any block size and thread count, up to
some 8,000 dimensions.

Most of the time on a CPU goes into the products. Where all rows ask for their neighbours among all
rows, the product of two blocks serves the queries of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits
from tqdm import tqdm

from isodense.neighbors.graph import Graph
from isodense.pipeline.runtime import resolve_device
from isodense.pipeline.stage import progress

SPARE = 8  # candidates beyond k
TILE = 2048  # rows scored at once on a CPU; 16 times as many on a GPU
CHUNK = 128  # float64 distances computed at once; they fit a core's cache
MERGED = 1024  # queries whose buffers are merged at once
CROWDED = 16  # queries scored again at once: each may have very many candidates

Pairs = tuple[np.ndarray, np.ndarray]  # numbers of queries and of rows
Arrays = tuple[np.ndarray, np.ndarray]
Scorer = Callable[[np.ndarray, np.ndarray], Arrays]


class Exact:
    """Exact search in fixed rows, on a CPU or a GPU.

    Parameters
    ----------
    X : ndarray of shape (n, dim), float32
        Rows of unit length.
    device : {"auto", "cpu", "cuda"}
        On a CPU, as many blocks are searched in parallel as BLAS has threads.
    """

    def __init__(self, X: np.ndarray, device: str = "auto") -> None:
        self.X = X
        self._scorer = _on_gpu if resolve_device(device) == "cuda" else _on_cpu
        self._uploaded = _uploaded(X) if self._scorer is _on_gpu else X

    def nearest(
        self,
        queries: np.ndarray,
        k: int,
        own: np.ndarray | None = None,
        *,
        block: int = 1024,
        done: Callable[[int], object] | None = None,
    ) -> Graph:
        """Find the exact `k` nearest rows for every query; for parameters see :func:`nearest`."""
        if not k:
            return Graph.empty(len(queries), 0)
        own = np.full(len(queries), -1) if own is None else own
        size = min(k + SPARE, len(self.X) - bool((own >= 0).any()))
        score, graph = self._scorer(self._uploaded, size), Graph.empty(len(queries), k)
        mutual = self._scorer is _on_cpu and np.array_equal(own, np.arange(len(self.X)))
        block = min(block, TILE) if mutual else block  # tiles are square
        starts = range(0, len(queries), block)

        def keep(start: int, candidates: np.ndarray, scores: np.ndarray) -> int:
            rows = slice(start, start + block)
            graph.indices[rows], graph.distances[rows] = _kept(
                queries[rows], self.X, own[rows], candidates, scores, k
            )
            return len(candidates)

        def search(start: int) -> int:
            rows = slice(start, start + block)
            return keep(start, *score(queries[rows], own[rows]))

        settings = progress() | ({} if done is None else {"disable": True})
        with tqdm(total=len(queries), unit="row", desc="neighbours", **settings) as bar:
            report = done or bar.update
            if mutual:
                best = _among(self.X, size, block, report)
                for _ in in_threads(lambda start: keep(start, *best.pop(start).found()), starts):
                    pass
            else:
                for rows in in_threads(search, starts):
                    report(rows)
        return graph


def nearest(
    queries: np.ndarray,
    X: np.ndarray,
    k: int,
    *,
    own: np.ndarray | None = None,
    device: str = "auto",
    block: int = 1024,
    done: Callable[[int], object] | None = None,
) -> Graph:
    """Find the exact `k` nearest rows of `X` for every query.

    Parameters
    ----------
    queries : ndarray of shape (m, dim), float32
        Rows of unit length.
    X : ndarray of shape (n, dim), float32
        Rows of unit length.
    k : int
        Number of neighbours, at most n, or n - 1 with `own`.
    own : ndarray of shape (m,), optional
        Number of the row of `X` that is the query itself and is excluded; -1 for none.
    device : {"auto", "cpu", "cuda"}
        See :class:`Exact`.
    block : int
        Queries scored at once; changes speed and memory, not the result.
    done : callable, optional
        Called after each block with the number of queries in it; by default a progress bar.

    Returns
    -------
    Graph
        Graph of m rows whose indices are row numbers of `X`.
    """
    return Exact(X, device).nearest(queries, k, own, block=block, done=done)


def measured(queries: np.ndarray, X: np.ndarray, pairs: Pairs, k: int) -> Arrays:
    """Compute the distances of candidates in float64 and keep the `k` nearest of each query.

    Parameters
    ----------
    queries : ndarray of shape (m, dim), float32
        Rows of unit length.
    X : ndarray of shape (n, dim), float32
        Rows of unit length.
    pairs : tuple of two ndarrays of shape (p,)
        Query number and row number of each candidate.
    k : int
        Neighbours to keep.

    Returns
    -------
    indices : ndarray of shape (m, k), int32
        Row numbers of `X`, by rising (distance, index); -1 where a query has fewer candidates.
    distances : ndarray of shape (m, k), float32
        Euclidean distances, infinite for -1. Ties are decided after rounding to float32, so that
        the order can be checked on what is stored.
    """
    query, row = pairs
    distances = np.empty(len(row), dtype=np.float32)
    for start in range(0, len(row), CHUNK):
        part = slice(start, start + CHUNK)
        gap = X[row[part]].astype(np.float64)
        gap -= queries[query[part]]
        distances[part] = np.sqrt(np.einsum("ij,ij->i", gap, gap))
    order = np.lexsort((row, distances, query))
    ends = np.searchsorted(query[order], np.arange(len(queries) + 1))
    place = ends[:-1, None] + np.arange(k)
    place[place >= ends[1:, None]] = len(order)  # none
    return (
        np.append(row[order], -1)[place].astype(np.int32),
        np.append(distances[order], np.float32(np.inf))[place],
    )


def margin(dim: int) -> float:
    """Return by how much float32 scores may differ although the order after rounding may not."""
    return 2 * dim * 2.0**-24 + 1e-6  # errors of two scores, and ties after rounding


def in_threads(work: Callable[[int], int], starts: Iterable[int]) -> Iterator[int]:
    """Yield the results of `work`, run in as many threads as BLAS has, each with one BLAS thread.

    NumPy releases the interpreter lock while it computes. After Ctrl-C no further block begins.

    Parameters
    ----------
    work : callable
        Takes the first query of a block and returns the number of queries in it.
    starts : iterable of int
        First query of each block; results come in the same order.
    """
    count = threads()
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(count) as pool:
        yield from pool.map(work, starts)


def threads() -> int:
    """Return how many threads BLAS has."""
    blas = [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]
    return max(blas, default=1)


def _kept(
    queries: np.ndarray,
    X: np.ndarray,
    own: np.ndarray,
    candidates: np.ndarray,
    scores: np.ndarray,
    k: int,
) -> Arrays:
    """Keep the `k` nearest candidates; score a query again where a candidate may be missing."""
    size = scores.shape[1]
    kth = np.partition(scores, size - k, axis=1)[:, size - k].astype(np.float64)
    least = kth - margin(X.shape[1])
    query, slot = np.nonzero(scores >= least[:, None])
    indices, distances = measured(queries, X, (query, candidates[query, slot]), k)
    incomplete = (scores.min(axis=1) >= least) & (size < len(X) - (own >= 0))
    again = np.flatnonzero(incomplete)
    for start in range(0, len(again), CROWDED):
        part = again[start : start + CROWDED]
        pairs = _competing(queries[part], X, own[part], least[part])
        indices[part], distances[part] = measured(queries[part], X, pairs, k)
    return indices, distances


def _competing(queries: np.ndarray, X: np.ndarray, own: np.ndarray, least: np.ndarray) -> Pairs:
    """Return all pairs of query and row whose score is at least `least` of the query."""
    found = []
    for start in range(0, len(X), TILE):
        tile = queries @ X[start : start + TILE].T
        _exclude(tile, own, start)
        query, column = np.nonzero(tile >= least[:, None])
        found.append((query, column + start))
    return np.concatenate([q for q, _ in found]), np.concatenate([r for _, r in found])


def _on_cpu(X: np.ndarray, size: int) -> Scorer:
    """Return a function that finds the `size` best rows of a block of queries with NumPy."""
    widest = max(TILE, size)

    def score(queries: np.ndarray, own: np.ndarray) -> Arrays:
        best, memory = Best(len(queries), size), np.empty(len(queries) * widest, dtype=np.float32)
        start, width = 0, max(TILE // 2, size)
        while start < len(X):
            tile = _product(queries, X[start : start + width], memory)
            _exclude(tile, own, start)
            if not start:
                best.expect(tile)
            best.add(tile, np.arange(start, start + tile.shape[1]))
            start, width = start + width, min(2 * width, widest)
        return best.found()

    return score


def _among(X: np.ndarray, size: int, block: int, done: Callable[[int], object]) -> dict[int, Best]:
    """Return the best other rows of every row, by the first row of its block.

    A block is scored with itself and with the half of the other blocks that follow it on a circle,
    each of which takes the same scores, by column. Parameters are those of :meth:`Exact.nearest`,
    and the number of rows to keep of each.
    """
    blocks = [slice(start, min(start + block, len(X))) for start in range(0, len(X), block)]
    rows = [np.arange(part.start, part.stop) for part in blocks]
    best = [Best(len(part), size) for part in rows]

    def itself(number: int) -> int:
        part = X[blocks[number]]
        tile = _product(part, part, np.empty(len(part) ** 2, dtype=np.float32))
        np.fill_diagonal(tile, -np.inf)
        if len(part) > size:
            best[number].expect(tile)
        best[number].add(tile, rows[number])
        return len(part)

    def others(number: int) -> int:
        memory = np.empty(len(rows[number]) * block, dtype=np.float32)
        for step in range(1, len(blocks) // 2 + 1):
            other = (number + step) % len(blocks)
            if 2 * step == len(blocks) and other < number:
                break  # which has that pair itself
            tile = _product(X[blocks[number]], X[blocks[other]], memory)
            best[number].add(tile, rows[other])
            best[other].add_columns(tile, rows[number])
        return len(rows[number])

    for _ in in_threads(itself, range(len(blocks))):
        pass
    for count in in_threads(others, range(len(blocks))):
        done(count)
    return {part.start: found for part, found in zip(blocks, best, strict=True)}


def _product(queries: np.ndarray, rows: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """Return the scores of queries and rows, written into the beginning of `memory`."""
    tile = memory[: len(queries) * len(rows)].reshape(len(queries), len(rows))
    return np.matmul(queries, rows.T, out=tile)


class Best:
    """The best rows of each query so far, and a buffer of better ones that are not merged yet.

    Parameters
    ----------
    queries : int
        Number of queries.
    size : int
        Rows to keep of each query.
    """

    def __init__(self, queries: int, size: int) -> None:
        self.rows = np.zeros((queries, size), dtype=np.int64)
        self.scores = np.full((queries, size), -np.inf, dtype=np.float32)
        self._threshold = np.full(queries, -np.inf, dtype=np.float32)
        self._buffer: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._counts = np.zeros(queries, dtype=np.int64)
        self._held = 0  # their sum
        self._lock = Lock()

    def expect(self, tile: np.ndarray) -> None:
        """Keep out what a first tile has enough better rows to fill the places with.

        Parameters
        ----------
        tile : ndarray of shape (m, n), float32
            Scores of all queries, of as many rows as are kept or more; not kept.
        """
        place = tile.shape[1] - self.rows.shape[1]
        kth = np.partition(tile, place, axis=1)[:, place]
        self._threshold = np.nextafter(kth, np.float32(-np.inf))

    def add(self, tile: np.ndarray, rows: np.ndarray, queries: np.ndarray | None = None) -> None:
        """Add scores.

        Parameters
        ----------
        tile : ndarray of shape (m, n), float32
            Scores; not kept.
        rows : ndarray of shape (n,)
            Which rows they are of.
        queries : ndarray of shape (m,), optional
            Which queries they are of; all by default.
        """
        least = self._threshold if queries is None else self._threshold[queries]
        flat = np.flatnonzero(tile > least[:, None])
        query, column = np.divmod(flat, tile.shape[1])
        self._put(query, rows[column], tile.ravel()[flat], queries)

    def add_columns(self, tile: np.ndarray, rows: np.ndarray) -> None:
        """Add scores of all queries from a tile of shape (n, m); see :meth:`add`."""
        flat = np.flatnonzero(tile > self._threshold)
        row, query = np.divmod(flat, tile.shape[1])
        self._put(query, rows[row], tile.ravel()[flat], None)

    def _put(
        self, query: np.ndarray, row: np.ndarray, score: np.ndarray, queries: np.ndarray | None
    ) -> None:
        """Buffer scores of queries by their place in `queries`, which has each once."""
        some = slice(None) if queries is None else queries
        with self._lock:
            counts = self._counts[some]
            counts += np.bincount(query, minlength=len(counts))
            self._counts[some] = counts
            self._buffer.append((query if queries is None else queries[query], row, score))
            self._held += len(query)
            if self._held >= self.rows.size or counts.max() >= TILE:
                self.merge()

    def merge(self) -> None:
        """Merge the buffer into the best rows."""
        if not self._buffer:
            return
        query, row, score = (np.concatenate(arrays) for arrays in zip(*self._buffer, strict=True))
        order = np.argsort(query.astype(np.min_scalar_type(len(self.rows))), kind="stable")
        row, score, ends = row[order], score[order], np.cumsum(self._counts)
        busy = np.argsort(self._counts, kind="stable")  # alike counts together, to pad little
        busy = busy[np.searchsorted(self._counts[busy], 1) :]
        for start in range(0, len(busy), MERGED):
            self._merge(busy[start : start + MERGED], ends, row, score)
        self._buffer, self._counts, self._held = [], np.zeros_like(self._counts), 0

    def found(self) -> Arrays:
        """Return the best rows of each query and their scores, in no order."""
        self.merge()
        return self.rows, self.scores

    def _merge(
        self, some: np.ndarray, ends: np.ndarray, row: np.ndarray, score: np.ndarray
    ) -> None:
        """Merge the buffered rows of some queries; those of query q end at ``ends[q]``."""
        counts, size = self._counts[some], self.rows.shape[1]
        most = int(counts.max())
        query = np.repeat(np.arange(len(some)), counts)
        place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        found = np.repeat(ends[some] - counts, counts) + place
        scores = np.full((len(some), size + most), -np.inf, dtype=np.float32)
        rows = np.zeros((len(some), size + most), dtype=self.rows.dtype)
        scores[:, :size], rows[:, :size] = self.scores[some], self.rows[some]
        scores[query, size + place], rows[query, size + place] = score[found], row[found]
        top = np.argpartition(scores, most, axis=1)[:, most:]
        self.scores[some] = np.take_along_axis(scores, top, axis=1)
        self.rows[some] = np.take_along_axis(rows, top, axis=1)
        self._threshold[some] = self.scores[some].min(axis=1)


def _uploaded(X: np.ndarray) -> Any:
    """Return the rows on the GPU, with matrix products in float32, not TF32."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.from_numpy(X).to("cuda")


def _on_gpu(X: Any, size: int) -> Scorer:
    """Return a function that finds the `size` best rows of a block of queries with torch."""
    import torch

    width = max(16 * TILE, size)

    def score(queries: np.ndarray, own: np.ndarray) -> Arrays:
        part = torch.from_numpy(queries).to(X.device)
        best = torch.empty((len(part), 0), device=X.device)
        rows = torch.empty((len(part), 0), dtype=torch.long, device=X.device)
        for start in range(0, len(X), width):
            tile = part @ X[start : start + width].T
            _exclude(tile, own, start)
            top = torch.topk(tile, min(size, tile.shape[1]))
            best = torch.cat([best, top.values], 1)
            rows = torch.cat([rows, top.indices + start], 1)
            keep = torch.topk(best, min(size, best.shape[1]))
            best, rows = keep.values, rows.gather(1, keep.indices)
        return rows.cpu().numpy(), best.cpu().numpy()

    return score


def _exclude(tile: Any, own: np.ndarray, start: int) -> None:
    """Set the score of each query with itself to -inf, in a tile that begins at row `start`."""
    inside = np.flatnonzero((own >= start) & (own < start + tile.shape[1]))
    tile[inside, own[inside] - start] = -np.inf
