"""Where a layout starts from: coordinates that already follow the large shape of a graph.

From random coordinates UMAP finds which prompts are neighbours, but folds and tears what is large
(Kobak and Linderman 2021, Nature Biotechnology 39). Its own start, from eigenvectors of the whole
graph, takes 8 GB at a million rows and wants their vectors where the graph is in pieces. Here rows
are joined to groups, groups to larger ones, until eigenvectors are cheap; their coordinates are
handed down the way back and smoothed along the edges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

FEW = 2000  # rows of a connected piece that eigenvectors are found for
LANDMARKS = 0.25  # share of rows that others join
STEPS = 4  # of smoothing
NOISE = 0.1  # of coordinates, in distances between rows at equal steps: all start apart
GOLDEN = np.pi * (3 - np.sqrt(5.0))  # angle that spreads points evenly over a disc


def spread(edges: Any, seed: int) -> np.ndarray:
    """Return coordinates to start a layout from.

    Parameters
    ----------
    edges : csr_matrix of shape (n, n)
        Symmetric strengths, positive; every row has one.
    seed : int

    Returns
    -------
    ndarray of shape (n, 2), float32
        Separate pieces of the graph lie side by side, each as large as it has rows.
    """
    rng = np.random.default_rng(seed)
    edges = csr_matrix(edges, dtype=np.float64)
    pieces = connected_components(edges, directed=False)[1]
    shares = np.bincount(pieces)
    levels = []
    while np.bincount(pieces).max() > FEW:
        groups = joined(edges, rng)
        levels.append((edges, groups))
        edges = _between(edges, groups)
        pieces = pieces[np.unique(groups, return_index=True)[1]]
    coordinates = _eigenvectors(edges, pieces, shares)
    for edges, groups in reversed(levels):
        coordinates = _smoothed(edges, coordinates[groups])
    return (coordinates + rng.normal(scale=NOISE, size=coordinates.shape)).astype(np.float32)


def joined(edges: csr_matrix, rng: np.random.Generator) -> np.ndarray:
    """Join most rows to the landmark that they hold strongest to.

    Parameters
    ----------
    edges : csr_matrix of shape (n, n)
    rng : Generator
        Of the landmarks.

    Returns
    -------
    ndarray of shape (n,), int64
        Group of each row, numbered from 0; only connected rows are in one.
    """
    n = edges.shape[0]
    landmark = rng.random(n) < LANDMARKS
    rows = np.repeat(np.arange(n), np.diff(edges.indptr))
    wanted = np.flatnonzero(landmark[edges.indices] & ~landmark[rows])
    order = wanted[np.argsort(edges.data[wanted], kind="stable")]
    leader = np.arange(n)
    leader[rows[order]] = edges.indices[order]  # the last one stays, the strongest
    return np.unique(leader, return_inverse=True)[1]


def _between(edges: csr_matrix, groups: np.ndarray) -> csr_matrix:
    """Return the summed strengths between groups, none within."""
    n = len(groups)
    member = csr_matrix((np.ones(n), (np.arange(n), groups)))
    made = csr_matrix(member.T @ edges @ member)
    made.setdiag(0)
    made.eliminate_zeros()
    return made


def _eigenvectors(edges: csr_matrix, pieces: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Place each piece by its eigenvectors, in squares along a spiral, the largest first."""
    coordinates = np.zeros((len(pieces), 2))
    members = np.split(np.argsort(pieces, kind="stable"), np.cumsum(np.bincount(pieces))[:-1])
    before = 0.0
    for turn, piece in enumerate(np.argsort(-shares, kind="stable")):
        rows, share = members[piece], float(shares[piece])
        distance = np.sqrt((before + share / 2) / np.pi) if turn else 0.0
        centre = distance * np.array([np.cos(turn * GOLDEN), np.sin(turn * GOLDEN)])
        coordinates[rows] = centre + np.sqrt(share) * _square(edges, rows)
        before += share
    return coordinates


def _square(edges: csr_matrix, rows: np.ndarray) -> np.ndarray:
    """Return coordinates of a piece's rows in a square of side 1 around 0.

    They are the ranks in the eigenvectors that vary least along the edges, because the vectors
    themselves often hold a few rows far out and all others in one spot.
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
    """Move every row half of the way to the mean of its neighbours, a few times."""
    sums = np.asarray(edges.sum(axis=1)).reshape(-1, 1)
    alone = sums == 0
    for _ in range(STEPS):
        coordinates = np.where(
            alone, coordinates, (coordinates + edges @ coordinates / np.where(alone, 1, sums)) / 2
        )
    return coordinates
