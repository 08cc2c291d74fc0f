"""A map of all prompts: UMAP on the neighbour graph that the density is estimated from.

Nothing is searched again: UMAP (McInnes, Healy and Melville 2018, arXiv 1802.03426) turns the
distances of the graph into the strengths of its edges and moves the prompts in the plane until
strong ones are short. Held-out prompts are put beside their nearest training prompts afterwards,
so that they bend nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from isodense.map.initialize import spread
from isodense.map.params import MapParams
from isodense.map.reader import COORDINATES
from isodense.neighbors.graph import Graph, load_graph, load_heldout_graph
from isodense.pipeline.artifact import content_sha256, publishing, require_same_ids, write_manifest
from isodense.pipeline.params import as_dict
from isodense.pipeline.stage import progress
from isodense.prompts.reader import Columns

EPOCHS = ((10_000, 500), (200_000, 200))  # up to so many prompts, so many epochs
EPOCHS_BEYOND = 100
NEAREST = 1e-6  # a held-out prompt is taken to be no nearer than this to another

log = logging.getLogger("isodense")


def layout(graph: Graph, params: MapParams, seed: int) -> np.ndarray:
    """Place every row of a neighbour graph in the plane.

    Parameters
    ----------
    graph : Graph
        Of n rows; more neighbours than ``params.neighbors`` are left out.
    params : MapParams
    seed : int
        Of the start and of the layout.

    Returns
    -------
    ndarray of shape (n, 2), float32
        The same bytes on any number of threads of one type of machine.
    """
    n, k = len(graph), min(params.neighbors, graph.k)
    if not k:
        return np.zeros((n, 2), dtype=np.float32)
    from umap.umap_ import find_ab_params, simplicial_set_embedding

    with _one_thread():
        a, b = find_ab_params(1.0, params.min_dist)
        edges = strengths(graph, k)
        coordinates, _ = simplicial_set_embedding(
            None,  # the vectors, which it wants for starts of its own only
            edges,
            n_components=2,
            initial_alpha=1.0,
            a=a,
            b=b,
            gamma=1.0,
            negative_sample_rate=5,
            n_epochs=params.epochs or default_epochs(n),
            init=spread(edges, seed),
            random_state=np.random.RandomState(seed),  # which umap takes
            metric="euclidean",
            metric_kwds={},
            densmap=False,
            densmap_kwds={},
            output_dens=False,
            tqdm_kwds={"unit": "epoch", "desc": "map", **progress()},
        )
    return np.asarray(coordinates, dtype=np.float32)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread for a while: sums over several would differ in their last bits."""
    import numba

    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        numba.set_num_threads(threads)


def default_epochs(rows: int) -> int:
    """Return the rounds of a layout of so many rows where ``map.epochs`` is null."""
    return next((epochs for most, epochs in EPOCHS if rows <= most), EPOCHS_BEYOND)


def strengths(graph: Graph, k: int) -> Any:
    """Return UMAP's symmetric edge strengths of a graph's `k` nearest neighbours.

    Parameters
    ----------
    graph : Graph
        Of n rows.
    k : int

    Returns
    -------
    csr_matrix of shape (n, n), float32
        In [0, 1], the strongest of every row 1.
    """
    from umap.umap_ import fuzzy_simplicial_set

    n = len(graph)
    indices, distances = np.empty((n, k + 1), np.int32), np.zeros((n, k + 1), np.float32)
    indices[:, 0] = np.arange(n)  # UMAP takes the first neighbour to be the row itself
    indices[:, 1:], distances[:, 1:] = graph.indices[:, :k], graph.distances[:, :k]
    edges, _, _ = fuzzy_simplicial_set(
        indices, k + 1, None, "euclidean", knn_indices=indices, knn_dists=distances
    )
    return edges


def beside(near: Graph, coordinates: np.ndarray, k: int) -> np.ndarray:
    """Place prompts at the mean of their nearest ones' coordinates, each weighed by 1 / distance.

    Parameters
    ----------
    near : Graph
        Of m rows, pointing into `coordinates`.
    coordinates : ndarray of shape (n, 2), float32
    k : int
        Neighbours used, at most those in the graph.

    Returns
    -------
    ndarray of shape (m, 2), float32
    """
    weights = 1 / np.maximum(near.distances[:, :k].astype(np.float64), NEAREST)
    weights /= weights.sum(axis=1, keepdims=True)
    found = np.einsum("ij,ijd->id", weights, coordinates[near.indices[:, :k]].astype(np.float64))
    return found.astype(np.float32)


def publish(prompts: Columns, neighbors: Path, params: MapParams, seed: int, out: Path) -> None:
    """Write ``data/map``.

    Parameters
    ----------
    prompts : Columns
        All prompts.
    neighbors : Path
        The neighbors artifact.
    params : MapParams
        The stage's section.
    seed : int
        Of the layout.
    out : Path
        The artifact's folder.

    Raises
    ------
    ArtifactError
        If the graph is incomplete or of other prompts.
    """
    graph, manifest = load_graph(neighbors)
    what = f"the neighbours in {neighbors}"
    require_same_ids(prompts.split("train").ids_sha256, manifest, what)
    held = manifest | {"ids_sha256": manifest["heldout_ids_sha256"]}
    require_same_ids(prompts.split("heldout").ids_sha256, held, what)
    if graph.k < min(params.neighbors, len(graph) - 1):
        log.info("the graph holds %d neighbours, fewer than map.neighbors", graph.k)
    coordinates = np.empty((len(prompts), 2), dtype=np.float32)
    train = layout(graph, params, seed)
    coordinates[prompts.positions("train")] = train
    near = load_heldout_graph(neighbors)
    coordinates[prompts.positions("heldout")] = beside(near, train, params.neighbors)
    with publishing(out) as scratch:
        np.save(scratch / COORDINATES, coordinates, allow_pickle=False)
        write_manifest(
            scratch,
            "map",
            rows=len(coordinates),
            ids_sha256=prompts.ids_sha256,
            params=as_dict(params),
            inputs={"neighbors": content_sha256(manifest)},
        )
