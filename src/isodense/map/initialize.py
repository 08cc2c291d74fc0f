"""Initial coordinates of a layout: a multilevel spectral embedding of the graph.

From random coordinates UMAP preserves neighbourhoods but not the global structure (Kobak and
Linderman 2021, Nature Biotechnology 39). UMAP's spectral initialisation, from eigenvectors of the
whole graph, takes 8 GB at a million rows and needs the vectors if the graph is not connected. Here
the graph is coarsened, rows to clusters and clusters to larger ones, until eigenvectors are cheap;
the coordinates of clusters are passed back to their rows and smoothed along the edges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

MAX_ROWS = 2000  # rows of a component up to which eigenvectors are computed
LANDMARKS = 0.25  # share of rows that become centres of clusters
STEPS = 4  # smoothing steps
NOISE = 0.1  # standard deviation, in units of the mean distance of rows: no two start together
GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5.0))  # places points evenly on a disc


def initial_coordinates(edges: Any, seed: int) -> np.ndarray:
    """Return coordinates to start a layout from.

    Parameters
    ----------
    edges : csr_matrix of shape (n, n)
        Symmetric, positive edge weights; every row has an edge.
    seed : int
        Seed of landmarks and noise.

    Returns
    -------
    ndarray of shape (n, 2), float32
        Connected components do not overlap; the area of each is proportional to the rows in it.
    """
    rng = np.random.default_rng(seed)
    edges = csr_matrix(edges, dtype=np.float64)
    components = connected_components(edges, directed=False)[1]
    sizes = np.bincount(components)
    levels = []
    while np.bincount(components).max() > MAX_ROWS:
        clusters = coarsen(edges, rng)
        levels.append((edges, clusters))
        edges = _between(edges, clusters)
        components = components[np.unique(clusters, return_index=True)[1]]
    coordinates = _eigenvectors(edges, components, sizes)
    for edges, clusters in reversed(levels):
        coordinates = _smoothed(edges, coordinates[clusters])
    return (coordinates + rng.normal(scale=NOISE, size=coordinates.shape)).astype(np.float32)


def coarsen(edges: csr_matrix, rng: np.random.Generator) -> np.ndarray:
    """Assign rows to clusters: each row to the adjacent landmark with the largest edge weight.

    Parameters
    ----------
    edges : csr_matrix of shape (n, n)
        Symmetric edge weights.
    rng : Generator
        Draws the landmarks.

    Returns
    -------
    ndarray of shape (n,), int64
        Cluster of each row, numbered from 0. A row without an adjacent landmark is alone.
    """
    n = edges.shape[0]
    landmark = rng.random(n) < LANDMARKS
    rows = np.repeat(np.arange(n), np.diff(edges.indptr))
    candidates = np.flatnonzero(landmark[edges.indices] & ~landmark[rows])
    order = candidates[np.argsort(edges.data[candidates], kind="stable")]
    centre = np.arange(n)
    centre[rows[order]] = edges.indices[order]  # the last assignment, the largest weight, wins
    return np.unique(centre, return_inverse=True)[1]


def _between(edges: csr_matrix, clusters: np.ndarray) -> csr_matrix:
    """Return the summed edge weights between clusters, with an empty diagonal."""
    n = len(clusters)
    member = csr_matrix((np.ones(n), (np.arange(n), clusters)))
    sums = csr_matrix(member.T @ edges @ member)
    sums.setdiag(0)
    sums.eliminate_zeros()
    return sums


def _eigenvectors(edges: csr_matrix, components: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return spectral coordinates of each component, in squares along a spiral, largest first."""
    coordinates = np.zeros((len(components), 2))
    ends = np.cumsum(np.bincount(components))[:-1]
    members = np.split(np.argsort(components, kind="stable"), ends)
    before = 0.0
    for turn, component in enumerate(np.argsort(-sizes, kind="stable")):
        rows, size = members[component], float(sizes[component])
        distance = np.sqrt((before + size / 2) / np.pi) if turn else 0.0
        angle = turn * GOLDEN_ANGLE
        centre = distance * np.array([np.cos(angle), np.sin(angle)])
        coordinates[rows] = centre + np.sqrt(size) * _square(edges, rows)
        before += size
    return coordinates


def _square(edges: csr_matrix, rows: np.ndarray) -> np.ndarray:
    """Return coordinates of a component's rows in a square of side 1 around the origin.

    They are ranks in the eigenvectors of the normalised graph Laplacian with the smallest positive
    eigenvalues. Ranks, because eigenvectors often have a few outliers and all other rows in one
    place.
    """
    n = len(rows)
    if n < 3:
        return np.linspace(-0.25, 0.25, 2 * n).reshape(n, 2) * (n > 1)
    dense = edges[rows][:, rows].toarray()
    roots = np.sqrt(dense.sum(axis=1))
    top = eigh(dense / np.outer(roots, roots), subset_by_index=[n - 3, n - 2])[1]
    ranks = np.argsort(np.argsort(top / roots[:, None], axis=0, kind="stable"), axis=0)
    return ranks / (n - 1) - 0.5


def _smoothed(edges: csr_matrix, coordinates: np.ndarray) -> np.ndarray:
    """Move every row half of the way to the weighted mean of its neighbours, `STEPS` times."""
    sums = np.asarray(edges.sum(axis=1)).reshape(-1, 1)
    isolated = sums == 0
    degrees = np.where(isolated, 1, sums)
    for _ in range(STEPS):
        moved = (coordinates + edges @ coordinates / degrees) / 2
        coordinates = np.where(isolated, coordinates, moved)
    return coordinates
