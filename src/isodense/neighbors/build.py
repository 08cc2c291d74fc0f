"""Nearest neighbours of all prompts: exact, or approximate and audited against the exact ones."""

from __future__ import annotations

import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from isodense.embeddings.reader import load_vectors
from isodense.neighbors.blocks import (
    ROWS,
    Search,
    Side,
    exact_search,
    fingerprint,
    finish,
    load_last,
    search_blocks,
)
from isodense.neighbors.descent import descend
from isodense.neighbors.exact import Exact, nearest
from isodense.neighbors.graph import (
    DISTANCES,
    HELDOUT_DISTANCES,
    HELDOUT_INDICES,
    INDICES,
    Graph,
    graph_bytes,
    recall,
)
from isodense.neighbors.lists import InMemory, Lists, ListsSearch, enough_probes
from isodense.neighbors.params import Method, NeighborsParams
from isodense.pipeline.artifact import (
    content_sha256,
    publishing,
    read_manifest,
    require_same_ids,
    write_json,
    write_manifest,
)
from isodense.pipeline.cache import Entry, Store, cache_key
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.executor import alone, device_of_workers
from isodense.pipeline.params import as_dict
from isodense.pipeline.runtime import resolve_device
from isodense.pipeline.storage import require_space
from isodense.pipeline.tasks import Job
from isodense.prompts.reader import Columns

EXACT_LIMIT = 80_000  # rows; some twenty seconds on 2 cores, and as long as a descent there
HIGHEST = 0.98  # recall_floor up to which descent is faster than the inverted file
RECIPE = 1  # to be raised with any change to a graph's bytes; see tests/recipes.py
RECIPES = {"ivf": 2, "pynndescent": 2}  # of methods whose graphs changed alone
LIBRARIES = {
    "exact": ("numpy",),
    "ivf": ("faiss-cpu", "numpy"),
    "pynndescent": ("pynndescent", "numba", "faiss-cpu"),
}
LISTS, PROBES = "lists.safetensors", "probes.json"  # of the inverted file, in the cache

log = logging.getLogger("isodense")


def knn_graph(
    X: np.ndarray,
    k: int = 50,
    method: Method = "auto",
    *,
    device: str = "auto",
    block: int = 1024,
    n_jobs: int = 2,
    seed: int = 0,
    recall_floor: float = 0.95,
) -> Graph:
    """Find the `k` nearest other rows of every row.

    Parameters
    ----------
    X : ndarray of shape (n, dim), float32
        Unit rows.
    k : int
        Neighbours; n - 1 where that is fewer.
    method : {"auto", "exact", "ivf", "pynndescent"}
        ``auto`` is exact up to 80,000 rows, or where there is a GPU, else ``pynndescent``; with a
        `recall_floor` above 0.98 ``ivf``.
    device : {"auto", "cpu", "cuda"}
        Where the exact search computes.
    block : int
        Queries scored at once by the exact search; changes speed and memory, not the result.
    n_jobs : int
        Threads of ``pynndescent``; they change speed, not the result.
    seed : int
        Seed of the approximate methods.
    recall_floor : float
        An approximate method looks as far as it takes to get a third of the way from here to 1, on
        a sample.

    Returns
    -------
    Graph

    Raises
    ------
    IsodenseError
        If `X` has rows that are not unit vectors, `k` is not positive, or the recall on the sample
        stays below `recall_floor`.

    Examples
    --------
    >>> import isodense
    >>> graph = isodense.knn_graph(np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), k=1)
    >>> graph.indices.ravel().tolist()
    [1, 0, 1]
    >>> [round(float(distance), 3) for distance in graph.distances.ravel()]
    [0.632, 0.632, 0.894]
    """
    X = unit_rows(np.array(X, dtype=np.float32))
    if k < 1:
        raise IsodenseError(f"k = {k}; expected at least 1")
    k = min(k, len(X) - 1)
    if k <= 0:
        return Graph.empty(len(X), 0)
    method = resolve_method(method, len(X), resolve_device(device), recall_floor)
    if method == "exact":
        return nearest(X, X, k, own=np.arange(len(X)), device=device, block=block)
    rows = sample(len(X), 1000, seed)
    exact = nearest(X[rows], X, k, own=rows, device=device)
    if method == "pynndescent":
        graph = descend(X, k, rows, exact, _aim(recall_floor), n_jobs=n_jobs, seed=seed)
        found = Graph(graph.indices[rows], graph.distances[rows])
        _require(recall(found, exact), recall_floor, method)
        return graph
    lists = _lists(X, seed)
    probes = _probes(lists, X[rows], exact, recall_floor)
    graph, vectors = Graph.empty(len(X), k), InMemory(X, lists.order)
    for start in range(0, len(X), ROWS):
        part = lists.order[start : start + ROWS]
        found = lists.search(vectors, X[part], part, k, probes)
        graph.indices[part], graph.distances[part] = found.indices, found.distances
    return graph


def resolve_method(method: Method, rows: int, device: str, floor: float) -> Method:
    """Return the method that the param ``method`` stands for."""
    if method != "auto":
        return method
    if rows <= EXACT_LIMIT or device == "cuda":
        return "exact"
    return "pynndescent" if floor <= HIGHEST else "ivf"


def unit_rows(X: np.ndarray, ids: list[str] | None = None) -> np.ndarray:
    """Scale rows that are unit vectors to float16's precision to float32's, in place.

    Parameters
    ----------
    X : ndarray of shape (n, dim), float32
    ids : list of str, optional
        What an error calls the rows; their numbers by default.

    Raises
    ------
    IsodenseError
        If a row is no unit vector.
    """
    if X.ndim != 2:
        raise IsodenseError(f"vectors have shape {X.shape}; expected (n, dim)")
    blocks = [slice(start, start + ROWS) for start in range(0, len(X), ROWS)]
    norms = np.empty(len(X))
    for rows in blocks:
        norms[rows] = np.linalg.norm(X[rows].astype(np.float64), axis=1)
    for name, wrong in (
        ("not finite", ~np.isfinite(norms)),
        ("zero", norms == 0),
        ("not of unit length", np.abs(norms - 1) > 1e-3),
    ):
        if wrong.any():
            first = f"prompt {ids[wrong.argmax()]}" if ids else f"row {wrong.argmax()}"
            message = f"{wrong.sum()} of {len(X)} rows are {name}, first {first}"
            raise IsodenseError(message, "divide each row by its L2 norm; drop rows without one")
    for rows in blocks:
        X[rows] = X[rows] / norms[rows, None]
    return X


def _lists(X: np.ndarray, seed: int) -> Lists:
    return Lists.fit(lambda: (X[i : i + ROWS] for i in range(0, len(X), ROWS)), len(X), seed)


def _probes(lists: Lists, queries: np.ndarray, exact: Graph, floor: float) -> int:
    probes, reached = enough_probes(lists, queries, exact.indices, _aim(floor))
    log.info("%d of %d lists give recall %.3f", probes, len(lists), reached)
    return probes


def _aim(floor: float) -> float:
    """Return a recall that, reached on one sample, stays above `floor` on another."""
    return floor + (1 - floor) / 3


def sample(rows: int, size: int, seed: int) -> np.ndarray:
    """Return rising numbers of `size` rows, or of all where there are fewer."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(rows, size=min(size, rows), replace=False))


def publish(
    embeddings: Path,
    prompts: Columns,
    params: NeighborsParams,
    device: str,
    seed: int,
    cache: Path,
    out: Path,
) -> dict[str, Any]:
    """Write ``data/neighbors`` and return what the metrics report.

    Parameters
    ----------
    embeddings : Path
        The embeddings artifact.
    prompts : Columns
        The prompts, in the same rows.
    params : NeighborsParams
        The stage's section.
    device : str
        Param ``base.device``.
    seed : int
        Seed of the audit's sample and the approximate methods.
    cache : Path
        Where finished blocks and the last graph are kept.
    out : Path
        The artifact's folder.

    Raises
    ------
    IsodenseError
        If a vector is unusable, the embeddings are of other prompts, or the audited recall is
        below the floor.
    """
    sides, manifest = _sides(embeddings, prompts, params.k_max)
    train, where = sides[0], device_of_workers(device)
    floor, rows = params.recall_floor, len(train.vectors)
    method = resolve_method(params.method, rows, where, floor) if train.k else "exact"
    prints = [fingerprint(side.vectors) for side in sides]
    recipe, key = (_key(params, method, where, seed, vectors) for vectors in ([], prints))
    store = Store(cache, "neighbors")
    entry = store.entry(key)

    def prepare() -> Search:
        if method == "exact":
            last = load_last(store, recipe, sides)
            return exact_search(train, last, device, params.rows_per_slice)
        if method == "pynndescent":
            return _descent_search(sides, params, device, seed, entry)
        return _ivf_search(train, params, device, seed, entry)

    needed = sum(graph_bytes(len(side.vectors), side.k) for side in sides)
    require_space("neighbors", {store.folder: needed, out: needed})
    small = method == "exact" and rows <= EXACT_LIMIT and alone(where)
    size = max(rows, ROWS) if small or method == "pynndescent" else ROWS
    graphs = search_blocks(sides, prepare, entry, size)
    report = {"method": method, "rows": len(train.vectors), "k_max": train.k, "recall": 1.0}
    if method != "exact":
        audits = [
            _audited(side, graph, train, params, method, device, seed + 1)
            for side, graph in zip(sides, graphs, strict=True)
        ]
        report["recall"] = audits[0]
    _write(graphs, prompts, train, params, report, manifest, out)
    finish(entry, recipe, sides, prints, size)
    store.clean()
    return report


def _sides(embeddings: Path, prompts: Columns, k: int) -> tuple[list[Side], dict[str, Any]]:
    manifest = read_manifest(embeddings, "embeddings")
    require_same_ids(prompts.ids_sha256, manifest, f"the embeddings in {embeddings}")
    train, heldout = prompts.split("train"), prompts.split("heldout")
    if not len(train):
        message = f"all {len(prompts)} prompts are held out"
        raise IsodenseError(message, "lower prompts.heldout, or add prompts")
    rows = [prompts.positions("train"), prompts.positions("heldout")]
    vectors = [load_vectors(embeddings, found)[0] for found in rows]
    try:
        for part, found in zip((train, heldout), vectors, strict=True):
            unit_rows(found, part.ids)
    except IsodenseError as error:
        message = f"the embeddings in {embeddings}: {error.message}"
        hint = "the encoder made them so: see models.encoder and section embeddings"
        raise IsodenseError(message, hint) from None
    sides = [
        Side("train", vectors[0], min(k, len(train) - 1)),
        Side("heldout", vectors[1], min(k, len(train))),
    ]
    return sides, manifest


def _key(
    params: NeighborsParams, method: Method, device: str, seed: int, vectors: list[str]
) -> str:
    """Return the key of a graph of the vectors with these hashes, or of any with none."""
    shaping: dict[str, Any] = {"method": method, "k_max": params.k_max}
    if method != "exact":
        shaping |= {"seed": seed, "recall_floor": params.recall_floor}
        shaping |= {"recall_sample": params.recall_sample}
    return cache_key(
        inputs={"vectors": vectors},
        params=shaping,
        code=RECIPES.get(method, RECIPE),
        libraries=LIBRARIES[method],
        device=device,
    )


def _ivf_search(
    train: Side, params: NeighborsParams, device: str, seed: int, entry: Entry
) -> Search:
    """Return the search in lists, which workers may share."""
    lists, probes = _known_lists(train, params, device, seed, entry)
    most = len(train.vectors) if alone("cpu") else params.rows_per_slice  # this process holds all
    slices = lists.slices(most)

    @lru_cache(1)  # tasks come slice by slice
    def vectors(part: range) -> np.ndarray:
        return train.vectors[lists.order[part.start : part.stop]]

    def task(side: Side, rows: np.ndarray, part: range) -> tuple[tuple[Any, ...], dict[str, Any]]:
        asked = (side.vectors[rows], side.own(rows), side.k)
        if len(slices) == 1:
            return (*asked, None), {"rows": train.vectors}
        return (*asked, part), {f"rows-{part.start}-{part.stop}": vectors(part)}

    job = Job(ListsSearch, settings={"lists": lists, "probes": probes})
    return Search(lists.order, job, task, slices)


def _known_lists(
    train: Side, params: NeighborsParams, device: str, seed: int, entry: Entry
) -> tuple[Lists, int]:
    """Return the lists and how many to probe, which stay in the cache."""
    if not (entry.holds(LISTS) and entry.holds(PROBES)):
        lists = _lists(train.vectors, seed)
        with entry.writing(LISTS) as path:
            lists.save(path)
        rows = sample(len(train.vectors), params.recall_sample, seed)
        exact = _exact(train, train, rows, device)
        found = _probes(lists, train.vectors[rows], exact, params.recall_floor)
        with entry.writing(PROBES) as path:
            write_json(path, {"probes": found})
    probes: int = json.loads(entry.path(PROBES).read_text(encoding="utf-8"))["probes"]
    return Lists.load(entry.path(LISTS)), probes


def _descent_search(
    sides: list[Side], params: NeighborsParams, device: str, seed: int, entry: Entry
) -> Search:
    """Return nearest-neighbour descent; held-out rows, not being in its graph, are searched for.

    Exactly, or in lists where that would take longer than the largest exact graph.
    """
    train, heldout = sides
    few = len(train.vectors) * len(heldout.vectors) <= EXACT_LIMIT**2

    def find(queries: np.ndarray, own: np.ndarray, k: int) -> Graph:
        if (own >= 0).all():
            rows = sample(len(train.vectors), params.recall_sample, seed)
            exact, aim = _exact(train, train, rows, device), _aim(params.recall_floor)
            jobs = params.n_jobs
            return descend(queries, k, rows, exact, aim, n_jobs=jobs, seed=seed, entry=entry)
        if few:
            return Exact(train.vectors, device).nearest(queries, k, done=lambda _: None)
        lists, probes = _known_lists(train, params, device, seed, entry)
        return lists.search(InMemory(train.vectors, lists.order), queries, own, k, probes)

    def task(side: Side, rows: np.ndarray, _: range) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (side.vectors[rows], side.own(rows), side.k), {}

    count = len(train.vectors)
    return Search(np.arange(count), Job(lambda: find), task, [range(count)], here=True)


def _exact(side: Side, train: Side, rows: np.ndarray, device: str) -> Graph:
    own = side.own(rows)
    return nearest(side.vectors[rows], train.vectors, side.k, own=own, device=device)


def _audited(
    side: Side,
    graph: Graph,
    train: Side,
    params: NeighborsParams,
    method: str,
    device: str,
    seed: int,
) -> float:
    """Return the recall on a sample of rows."""
    if not len(graph):
        return 1.0
    rows = sample(len(graph), params.recall_sample, seed)
    found = Graph(graph.indices[rows], graph.distances[rows])
    share = recall(found, _exact(side, train, rows, device))
    _require(share, params.recall_floor, method)
    return round(share, 6)


def _require(share: float, floor: float, method: str) -> None:
    """Raise if a recall is below the floor."""
    if share >= floor:
        return
    message = f"{method} found {share:.3f} of the true neighbours"
    hint = "raise neighbors.recall_sample" if method == "ivf" else "set neighbors.method: ivf"
    hint = f"{hint}, or set neighbors.method: exact"
    raise IsodenseError(f"{message}, below neighbors.recall_floor = {floor}", hint)


def _write(
    graphs: list[Graph],
    prompts: Columns,
    train: Side,
    params: NeighborsParams,
    report: dict[str, Any],
    embeddings: dict[str, Any],
    out: Path,
) -> None:
    graph, near = graphs
    arrays = {
        INDICES: graph.indices,
        DISTANCES: graph.distances,
        HELDOUT_INDICES: near.indices,
        HELDOUT_DISTANCES: near.distances,
    }
    with publishing(out) as staging:
        for name, array in arrays.items():
            np.save(staging / name, array, allow_pickle=False)
        write_manifest(
            staging,
            "neighbors",
            rows=len(graph),
            k=graph.k,
            dim=train.vectors.shape[1],
            method=report["method"],
            recall=report["recall"],
            ids_sha256=prompts.split("train").ids_sha256,
            heldout_ids_sha256=prompts.split("heldout").ids_sha256,
            params=as_dict(params),
            inputs={"embeddings": content_sha256(embeddings)},
        )
