"""A layout starts with the large shape of the graph in place, connected or in pieces."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.spatial import cKDTree

from isodense.map.initialize import MAX_ROWS, coarsen, initial_coordinates


def nearest_edges(X, k=10):
    """Return strengths 1 between every row and its nearest ones."""
    found = cKDTree(X).query(X, k + 1)[1][:, 1:]
    rows = np.repeat(np.arange(len(X)), k)
    edges = coo_matrix((np.ones(rows.size), (rows, found.ravel())), shape=(len(X),) * 2).tocsr()
    return edges.maximum(edges.T)


def agreement(coordinates, truth, seed=0):
    """Return the share of triples of which the same one of two is nearer to the third."""
    triples = np.random.default_rng(seed).integers(len(coordinates), size=(20_000, 3))

    def first_is_nearer(X):
        one, other = (np.linalg.norm(X[triples[:, 0]] - X[triples[:, i]], axis=1) for i in (1, 2))
        return one < other

    return (first_is_nearer(coordinates) == first_is_nearer(truth)).mean()


@pytest.mark.parametrize("rows", [MAX_ROWS // 2, 3 * MAX_ROWS])
def test_a_sheet_comes_out_flat(rows):
    """Of so many rows at once, and of more by coarsening."""
    sheet = np.random.default_rng(1).uniform(size=(rows, 2))
    coordinates = initial_coordinates(nearest_edges(sheet), 0)
    assert agreement(coordinates, sheet) > 0.85
    assert agreement(np.random.default_rng(2).permutation(coordinates), sheet) < 0.55


def test_a_long_chain_is_not_folded():
    n = 3 * MAX_ROWS
    chain = np.random.default_rng(0).permutation(n)
    edges = coo_matrix((np.ones(n - 1), (chain[:-1], chain[1:])), shape=(n, n)).tocsr()
    coordinates = initial_coordinates(edges + edges.T, 0)[chain]
    steps = np.linalg.norm(np.diff(coordinates, axis=0), axis=1)
    ends = np.linalg.norm(coordinates[0] - coordinates[-1])
    assert ends > 100 * np.median(steps)


def test_pieces_lie_side_by_side_each_as_large_as_it_has_rows():
    rng = np.random.default_rng(0)
    sizes = [3000, 800, 800, 400]
    pieces = np.repeat(np.arange(4), sizes)
    X = rng.uniform(size=(len(pieces), 2)) + 5 * pieces[:, None]
    coordinates = initial_coordinates(nearest_edges(X), 0)
    found = cKDTree(coordinates).query(coordinates, 6)[1][:, 1:]
    assert (pieces[found] == pieces[:, None]).mean() > 0.8
    widths = [np.ptp(coordinates[pieces == piece], axis=0).mean() for piece in range(4)]
    assert widths[0] > widths[1] > widths[3]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [2, 3, 4, 5])
@pytest.mark.parametrize("pieces", [1, 2, 100])
def test_small_pieces_start_apart(rows, pieces):
    """All with all within a piece, none beyond."""
    block = np.ones((rows, rows)) - np.eye(rows)
    edges = coo_matrix(np.kron(np.eye(pieces), block)).tocsr()
    coordinates = initial_coordinates(edges, 0)
    assert coordinates.dtype == np.float32
    assert np.isfinite(coordinates).all()
    assert len(np.unique(coordinates, axis=0)) == len(coordinates)
    assert (np.ptp(coordinates, axis=0) > 0).all()


def test_rows_join_only_rows_that_they_are_connected_with():
    X = np.random.default_rng(0).uniform(size=(1000, 2))
    edges = nearest_edges(X)
    clusters = coarsen(edges, np.random.default_rng(0))
    assert 1 < len(np.unique(clusters)) < 400
    assert clusters.max() == len(np.unique(clusters)) - 1
    for cluster in range(0, clusters.max(), 20):
        members = np.flatnonzero(clusters == cluster)
        within = edges[members][:, members]
        assert len(members) == 1 or within.sum(axis=1).min() > 0


def test_the_seed_decides():
    edges = nearest_edges(np.random.default_rng(0).uniform(size=(3000, 2)))
    assert initial_coordinates(edges, 0).tobytes() == initial_coordinates(edges, 0).tobytes()
    assert initial_coordinates(edges, 1).tobytes() != initial_coordinates(edges, 0).tobytes()
