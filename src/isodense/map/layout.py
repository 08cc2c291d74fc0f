"""A map of all prompts: UMAP on the neighbour graph that the density is estimated from.

UMAP (McInnes, Healy and Melville 2018, arXiv 1802.03426) turns the distances of the graph into edge
weights and optimises coordinates in the plane so that edges with large weights are short. No
neighbours are searched again. Held-out prompts are placed afterwards, near their nearest training
prompts, so that they do not change the layout.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from isodense.map.initialize import initial_coordinates
from isodense.map.params import MapParams
from isodense.map.reader import COORDINATES
from isodense.neighbors.graph import Graph, load_graph, load_heldout_graph
from isodense.pipeline.artifact import content_sha256, publishing, require_same_ids, write_manifest
from isodense.pipeline.params import as_dict
from isodense.pipeline.runtime import let_numba_compile
from isodense.pipeline.stage import progress
from isodense.prompts.reader import Columns

EPOCHS = ((10_000, 500), (200_000, 200))  # (most prompts, epochs)
EPOCHS_BEYOND = 100
MIN_DISTANCE = 1e-6  # lower bound of distances, so that their inverses are finite

log = logging.getLogger("isodense")


def layout(graph: Graph, params: MapParams, seed: int) -> np.ndarray:
    """Return UMAP coordinates for every row of a neighbour graph.

    Parameters
    ----------
    graph : Graph
        Graph of n rows; neighbours beyond ``params.neighbors`` are not used.
    params : MapParams
        The stage's section.
    seed : int
        Seed of the initial coordinates and of the optimisation.

    Returns
    -------
    ndarray of shape (n, 2), float32
        Coordinates, with the same bytes at any number of threads on one type of machine.
    """
    n, k = len(graph), min(params.neighbors, graph.k)
    if not k:
        return np.zeros((n, 2), dtype=np.float32)
    let_numba_compile()
    from umap.umap_ import find_ab_params, simplicial_set_embedding

    with _one_thread():
        a, b = find_ab_params(1.0, params.min_dist)
        edges = edge_weights(graph, k)
        coordinates, _ = simplicial_set_embedding(
            None,  # the vectors, which only UMAP's built-in initialisations use
            edges,
            n_components=2,
            initial_alpha=1.0,
            a=a,
            b=b,
            gamma=1.0,
            negative_sample_rate=5,
            n_epochs=params.epochs or default_epochs(n),
            init=initial_coordinates(edges, seed),
            random_state=np.random.RandomState(seed),  # umap takes no Generator
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
    """Use one thread inside the block: sums over several would differ in the last bits."""
    import numba

    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        numba.set_num_threads(threads)


def default_epochs(rows: int) -> int:
    """Return the number of epochs for a number of rows, where ``map.epochs`` is null."""
    return next((epochs for most, epochs in EPOCHS if rows <= most), EPOCHS_BEYOND)


def edge_weights(graph: Graph, k: int) -> Any:
    """Return UMAP's symmetric edge weights, the fuzzy simplicial set of a neighbour graph.

    Parameters
    ----------
    graph : Graph
        Graph of n rows.
    k : int
        Nearest neighbours to use, at most ``graph.k``.

    Returns
    -------
    csr_matrix of shape (n, n), float32
        Weights in [0, 1]; the largest in every row is 1.
    """
    let_numba_compile()
    from umap.umap_ import fuzzy_simplicial_set

    n = len(graph)
    indices, distances = np.empty((n, k + 1), np.int32), np.zeros((n, k + 1), np.float32)
    indices[:, 0] = np.arange(n)  # UMAP takes the first neighbour to be the row itself
    indices[:, 1:], distances[:, 1:] = graph.indices[:, :k], graph.distances[:, :k]
    edges, _, _ = fuzzy_simplicial_set(
        indices, k + 1, None, "euclidean", knn_indices=indices, knn_dists=distances
    )
    return edges


def interpolate(near: Graph, coordinates: np.ndarray, k: int) -> np.ndarray:
    """Return the mean of the neighbours' coordinates, weighted by 1 / distance.

    Parameters
    ----------
    near : Graph
        Graph of m rows whose indices are row numbers of `coordinates`.
    coordinates : ndarray of shape (n, 2), float32
        Coordinates of the neighbours.
    k : int
        Neighbours to use; all of the graph if it has fewer.

    Returns
    -------
    ndarray of shape (m, 2), float32
    """
    weights = 1 / np.maximum(near.distances[:, :k].astype(np.float64), MIN_DISTANCE)
    weights /= weights.sum(axis=1, keepdims=True)
    means = np.einsum("ij,ijd->id", weights, coordinates[near.indices[:, :k]].astype(np.float64))
    return means.astype(np.float32)


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
        Seed of the layout.
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
    heldout = prompts.split("heldout").ids_sha256
    require_same_ids(heldout, manifest, what, "heldout_ids_sha256")
    if graph.k < min(params.neighbors, len(graph) - 1):
        log.info("the graph holds %d neighbours, fewer than map.neighbors", graph.k)
    coordinates = np.empty((len(prompts), 2), dtype=np.float32)
    train = layout(graph, params, seed)
    coordinates[prompts.positions("train")] = train
    near = load_heldout_graph(neighbors)
    coordinates[prompts.positions("heldout")] = interpolate(near, train, params.neighbors)
    with publishing(out) as folder:
        np.save(folder / COORDINATES, coordinates, allow_pickle=False)
        write_manifest(
            folder,
            "map",
            rows=len(coordinates),
            ids_sha256=prompts.ids_sha256,
            params=as_dict(params),
            inputs={"neighbors": content_sha256(manifest)},
        )
