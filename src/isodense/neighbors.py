"""Nearest neighbours of unit vectors: exact by blocked matrix products, or audited approximate.

The exact search scores blocks of rows in float32, keeps a few candidates more than asked, and
measures those again in float64. A float32 dot product of unit vectors is off by at most
dim · 2⁻²⁴ whatever the order of its sums (Higham, *Accuracy and Stability of Numerical
Algorithms*, 2002, §3.1), so wherever the k-th neighbour does not clear the weakest candidate by
that margin the row is searched again among all that could compete. The result is therefore the
true one, ties by row number, at any block size and thread count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from isodense.artifacts import publishing, write_manifest
from isodense.base import resolve_device
from isodense.errors import IsodenseError
from isodense.graph import DISTANCES, HELDOUT, HELDOUT_DISTANCES, HELDOUT_INDICES, INDICES, Graph
from isodense.params import as_dict, param
from isodense.promptset import PromptSet
from isodense.stage import progress

Method = Literal["auto", "exact", "pynndescent"]

EXACT_LIMIT = 100_000  # rows; about where pynndescent with its compilation overtakes on 2 cores
SPARE = 16  # candidates beyond k
TIE = 1e-6  # distances that differ by less are equal


@dataclass(frozen=True)
class NeighborsParams:
    """Section ``neighbors`` of ``params.yaml``.

    Attributes
    ----------
    k_max : int
        Neighbours kept per prompt; ``density.k`` may be any number up to it.
    method : {"auto", "exact", "pynndescent"}
        ``auto`` is exact up to 100,000 prompts, and beyond that where there is a GPU.
    recall_sample, recall_floor : int, float
        The approximate method is compared with the exact one on this many prompts and fails below
        the floor.
    n_jobs : int
        Threads of pynndescent, whose graph depends on it.
    """

    k_max: int = param(minimum=1, maximum=1000)
    method: Method = param()
    recall_sample: int = param(minimum=1)
    recall_floor: float = param(minimum=0.0, maximum=1.0)
    n_jobs: int = param(minimum=1)


def knn_graph(
    X: np.ndarray,
    k: int = 50,
    method: Method = "auto",
    *,
    device: str = "auto",
    block: int = 1024,
    n_jobs: int = 2,
    seed: int = 0,
) -> Graph:
    """Find the `k` nearest other rows of every row.

    Parameters
    ----------
    X : ndarray of shape (n, dim), float32
        Unit rows.
    k : int
        Neighbours; n - 1 where that is fewer.
    method : {"auto", "exact", "pynndescent"}
    device : {"auto", "cpu", "cuda"}
        Of the exact search.
    block : int
        Rows scored at once; changes speed and memory, not the result.
    n_jobs : int
        Threads of pynndescent.
    seed : int
        Of pynndescent.

    Returns
    -------
    Graph

    Raises
    ------
    IsodenseError
        If `X` has rows that are not unit vectors, or `k` is not positive.
    """
    X = _checked(X)
    if k < 1:
        raise IsodenseError(f"k = {k}; expected at least 1")
    k = min(k, len(X) - 1)
    if k <= 0:
        return Graph(np.empty((len(X), 0), np.int32), np.empty((len(X), 0), np.float32))
    if resolve_method(method, len(X), device) == "exact":
        return nearest(X, X, k, device=device, block=block, own=np.arange(len(X)))
    return _approximate(X, k, n_jobs, seed)


def resolve_method(method: Method, rows: int, device: str) -> Method:
    """Return ``"exact"`` or ``"pynndescent"`` for the param ``method``."""
    if method != "auto":
        return method
    return "exact" if rows <= EXACT_LIMIT or resolve_device(device) == "cuda" else "pynndescent"


def nearest(
    queries: np.ndarray,
    X: np.ndarray,
    k: int,
    *,
    own: np.ndarray | None = None,
    device: str = "auto",
    block: int = 1024,
) -> Graph:
    """Find the exact `k` nearest rows of `X` for every query.

    Parameters
    ----------
    queries : ndarray of shape (m, dim), float32
        Unit rows.
    X : ndarray of shape (n, dim), float32
        Unit rows.
    k : int
        At most n, or n - 1 with `own`.
    own : ndarray of shape (m,), optional
        The row of `X` that each query is itself, to be left out.
    device, block
        See :func:`knn_graph`.

    Returns
    -------
    Graph
        Of m rows, pointing into `X`.
    """
    indices = np.empty((len(queries), k), dtype=np.int32)
    distances = np.empty((len(queries), k), dtype=np.float32)
    with tqdm(total=len(queries), unit="row", desc="neighbours", **progress()) as bar:
        for rows, candidates, floor in _candidates(queries, X, k, own, device, block):
            found, measured = _measured(queries[rows], X, candidates)
            margin = 2 * X.shape[1] * 2.0**-24 + 1e-6  # and the norms' own rounding
            kth = 1 - measured[:, k - 1].astype(np.float64) ** 2 / 2
            for row in np.flatnonzero(kth <= floor + margin):  # a tie may reach past the candidates
                mine = None if own is None else own[rows][row]
                found[row], measured[row] = _rescued(
                    queries[rows][row], X, kth[row] - margin, mine, found.shape[1]
                )
            indices[rows], distances[rows] = found[:, :k], measured[:, :k]
            bar.update(len(found))
    return Graph(indices, distances)


def recall(graph: Graph, exact: Graph, rows: np.ndarray) -> float:
    """Return the share of the true neighbours of `rows` that `graph` holds.

    A neighbour counts when it is no farther than the true k-th one: among copies any will do.

    Parameters
    ----------
    graph : Graph
        The graph to audit.
    exact : Graph
        Exact neighbours of `rows`, one row each.
    rows : ndarray of shape (m,)
        Row numbers in `graph`.
    """
    return float((graph.distances[rows] <= exact.distances[:, -1:] + TIE).mean())


def publish(
    vectors: np.ndarray,
    prompts: PromptSet,
    params: NeighborsParams,
    device: str,
    rng: np.random.Generator,
    embeddings_sha256: str,
    out: Path,
) -> dict[str, Any]:
    """Write ``data/neighbors`` and return what the metrics report.

    Parameters
    ----------
    vectors : ndarray of shape (n_prompts, dim), float32
        Of all prompts.
    prompts : PromptSet
        In the same order.
    params : NeighborsParams
        The stage's section.
    device : str
        Param ``base.device``.
    rng : numpy.random.Generator
        Draws the audit sample and seeds pynndescent.
    embeddings_sha256 : str
        Hash of the embeddings' content.
    out : Path
        The artifact's folder.

    Raises
    ------
    IsodenseError
        If the audited recall is below the floor.
    """
    train = _checked(vectors[prompts.positions("train")])
    heldout = _checked(vectors[prompts.positions("heldout")])
    seed = int(rng.integers(2**31))
    method = resolve_method(params.method, len(train), device)
    graph = knn_graph(train, params.k_max, method, device=device, n_jobs=params.n_jobs, seed=seed)
    exact = method == "exact" or not graph.k
    audited = 1.0 if exact else _audit(train, graph, params, device, rng)
    near = nearest(heldout, train, min(params.k_max, len(train)), device=device)
    arrays = {
        INDICES: graph.indices,
        DISTANCES: graph.distances,
        HELDOUT: near.distances[:, 0],
        HELDOUT_INDICES: near.indices,
        HELDOUT_DISTANCES: near.distances,
    }
    with publishing(out) as scratch:
        for name, array in arrays.items():
            np.save(scratch / name, array, allow_pickle=False)
        write_manifest(
            scratch,
            "neighbors",
            rows=len(train),
            k=graph.k,
            dim=train.shape[1],
            method=method,
            ids_sha256=prompts.split("train").ids_sha256,
            heldout_ids_sha256=prompts.split("heldout").ids_sha256,
            params=as_dict(params),
            inputs={"embeddings": embeddings_sha256},
        )
    return {"method": method, "rows": len(train), "k_max": graph.k, "recall": round(audited, 6)}


def _checked(X: np.ndarray) -> np.ndarray:
    X = np.ascontiguousarray(X, dtype=np.float32)
    norms = np.linalg.norm(X.astype(np.float64), axis=1) if X.ndim == 2 else np.empty(0)
    if X.ndim != 2:
        raise IsodenseError(f"vectors have shape {X.shape}; expected (n, dim)")
    for name, wrong in (
        ("not finite", ~np.isfinite(norms)),
        ("zero", norms == 0),
        ("not of unit length", np.abs(norms - 1) > 1e-3),
    ):
        if wrong.any():
            message = f"{wrong.sum()} of {len(X)} rows are {name}, first row {wrong.argmax()}"
            raise IsodenseError(message, "divide each row by its L2 norm; drop rows without one")
    return (X / norms[:, None]).astype(np.float32)  # float16 shards are unit to 1e-4 only


def _candidates(
    queries: np.ndarray, X: np.ndarray, k: int, own: np.ndarray | None, device: str, block: int
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield (rows, row numbers of candidates, score of the weakest candidate) for each block.

    The weakest score is -inf where the candidates are all there are.
    """
    import torch

    where = resolve_device(device)
    base = torch.from_numpy(X).to(where)
    size = min(k + SPARE, len(X) - (own is not None))
    width = block * 4
    for start in range(0, len(queries), block):
        rows = slice(start, min(start + block, len(queries)))
        part = torch.from_numpy(queries[rows]).to(where)
        best = torch.empty((len(part), 0), device=where)
        index = torch.empty((len(part), 0), dtype=torch.long, device=where)
        for left in range(0, len(X), width):
            scores = part @ base[left : left + width].T
            if own is not None:
                _mask_own(scores, own[rows], left)
            top = torch.topk(scores, min(size, scores.shape[1]))
            best, index = (
                torch.cat([best, top.values], 1),
                torch.cat([index, top.indices + left], 1),
            )
            keep = torch.topk(best, min(size, best.shape[1]))
            best, index = keep.values, index.gather(1, keep.indices)
        floor = best[:, -1] if size < len(X) - (own is not None) else best[:, -1] - torch.inf
        yield rows, index.cpu().numpy(), floor.double().cpu().numpy()


def _mask_own(scores: Any, own: np.ndarray, left: int) -> None:
    inside = np.flatnonzero((own >= left) & (own < left + scores.shape[1]))
    scores[inside, own[inside] - left] = -np.inf


def _measured(
    queries: np.ndarray, X: np.ndarray, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return candidates and their distances, measured in float64, by rising (distance, index).

    Distances that round to the same float32 are equal, so that the order is that of what is stored.
    """
    candidates = np.sort(candidates, axis=1)
    distances = np.empty(candidates.shape, dtype=np.float32)
    for start in range(0, len(queries), 64):
        rows = slice(start, start + 64)
        gap = X[candidates[rows]].astype(np.float64) - queries[rows, None].astype(np.float64)
        distances[rows] = np.sqrt(np.einsum("ijk,ijk->ij", gap, gap))
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(candidates, order, 1), np.take_along_axis(distances, order, 1)


def _rescued(
    query: np.ndarray, X: np.ndarray, floor: float, own: int | None, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Search one row among all rows whose score may reach `floor`."""
    scores = X @ query
    margin = X.shape[1] * 2.0**-24
    competing = np.flatnonzero(scores >= floor - 2 * margin)
    if own is not None:
        competing = competing[competing != own]
    found, measured = _measured(query[None], X, competing[None])
    return found[0, :size], measured[0, :size]


def _approximate(X: np.ndarray, k: int, n_jobs: int, seed: int) -> Graph:
    from pynndescent import NNDescent

    index = NNDescent(
        X, metric="dot", n_neighbors=k + 1, random_state=seed, n_jobs=n_jobs, low_memory=True
    )
    found = np.asarray(index.neighbor_graph[0], dtype=np.int64)
    found = np.where(found == np.arange(len(X))[:, None], -1, found)
    return Graph(*_first_k(X, found, k))


def _first_k(X: np.ndarray, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Measure the candidates of an approximate graph and keep k of each row; -1 means none."""
    indices = np.empty((len(X), k), dtype=np.int32)
    distances = np.empty((len(X), k), dtype=np.float32)
    for row, candidates in enumerate(found):
        candidates = np.unique(candidates[candidates >= 0])
        if len(candidates) < k:  # pynndescent could not reach k others from here
            candidates = np.delete(np.arange(len(X)), row)
        ordered, measured = _measured(X[row : row + 1], X, candidates[None])
        indices[row], distances[row] = ordered[0, :k], measured[0, :k]
    return indices, distances


def _audit(
    X: np.ndarray, graph: Graph, params: NeighborsParams, device: str, rng: np.random.Generator
) -> float:
    rows = np.sort(rng.choice(len(X), size=min(params.recall_sample, len(X)), replace=False))
    exact = nearest(X[rows], X, graph.k, own=rows, device=device)
    share = recall(graph, exact, rows)
    if share < params.recall_floor:
        message = (
            f"pynndescent found {share:.3f} of the true neighbours, below {params.recall_floor}"
        )
        raise IsodenseError(message, "raise neighbors.k_max, or set neighbors.method: exact")
    return share
