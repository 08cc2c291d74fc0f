"""Neighbours stay together in the plane, whatever the graph is like."""

from __future__ import annotations

import numpy as np
import pytest
import umap.umap_  # noqa: F401 - here, as it warns once that Tensorflow is missing
from scipy.spatial import cKDTree

from isodense.map.layout import interpolate, layout
from isodense.map.params import MapParams
from isodense.neighbors.build import knn_graph
from isodense.neighbors.graph import Graph

CLUSTERS, SIZE = 6, 60
PARAMS = MapParams(neighbors=15, min_dist=0.1, epochs=60)


def unit(X):
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)


def clusters(seed=0):
    """Return unit vectors far apart by cluster, shuffled, and the cluster of each."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(CLUSTERS), SIZE))
    X = rng.normal(size=(CLUSTERS, 16))[labels] + 0.1 * rng.normal(size=(len(labels), 16))
    return unit(X), labels


def graph_of(X, k=15):
    return knn_graph(X, k, "exact", device="cpu")


def purity(coordinates, labels, k=5):
    """Return the share of the `k` nearest in the plane that are of the row's own cluster."""
    found = cKDTree(coordinates).query(coordinates, k + 1)[1][:, 1:]
    return (labels[found] == labels[:, None]).mean()


@pytest.fixture(scope="module")
def made():
    X, labels = clusters()
    graph = graph_of(X)
    return X, labels, graph, layout(graph, PARAMS, 0)


def test_clusters_stay_together(made):
    _, labels, _, coordinates = made
    assert coordinates.dtype == np.float32
    assert coordinates.shape == (CLUSTERS * SIZE, 2)
    assert purity(coordinates, labels) > 0.98
    assert purity(coordinates, np.random.default_rng(0).permutation(labels)) < 0.3


def test_clusters_stay_together_in_any_order_of_the_rows(made):
    X, labels, _, _ = made
    order = np.random.default_rng(1).permutation(len(X))
    assert purity(layout(graph_of(X[order]), PARAMS, 0), labels[order]) > 0.98


def test_a_curve_is_laid_out_as_a_curve():
    """On an arc, each point's nearest in the plane are the nearest on the arc, not just near."""
    angles = np.random.default_rng(0).permutation(np.linspace(0, 3, 300))
    X = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    coordinates = layout(graph_of(X), MapParams(neighbors=15, min_dist=0.1, epochs=200), 0)
    found = cKDTree(coordinates).query(coordinates, 6)[1][:, 1:]
    steps = np.abs(angles[found] - angles[:, None]) / (3 / 299)
    assert np.quantile(steps, 0.9) < 8
    order = np.argsort(angles)
    ends = np.linalg.norm(coordinates[order[0]] - coordinates[order[-1]])
    assert ends > 5 * np.linalg.norm(np.diff(coordinates[order], axis=0), axis=1).mean()


def test_the_seed_decides_and_nothing_else(made):
    _, _, graph, coordinates = made
    assert layout(graph, PARAMS, 0).tobytes() == coordinates.tobytes()
    assert layout(graph, PARAMS, 1).tobytes() != coordinates.tobytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [1, 2, 3, 4, 10])
def test_few_prompts_get_places_of_their_own(n):
    X = unit(np.random.default_rng(0).normal(size=(n, 4)))
    coordinates = layout(graph_of(X), PARAMS, 0)
    assert coordinates.shape == (n, 2)
    assert np.isfinite(coordinates).all()
    assert len(np.unique(coordinates, axis=0)) == n


def copied(count, others):
    """Return a vector `count` times, and others."""
    rng = np.random.default_rng(0)
    return unit(np.concatenate([np.ones((count, 4)), rng.normal(size=(others, 4))]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("count", "others"), [(2, 0), (40, 0), (2, 30), (40, 30), (40, 1)])
def test_copies_get_places(count, others):
    """Whole lists of neighbours at distance 0, crowds larger than k, and nothing but copies."""
    coordinates = layout(graph_of(copied(count, others)), PARAMS, 0)
    assert coordinates.shape == (count + others, 2)
    assert np.isfinite(coordinates).all()


def test_copies_lie_together():
    coordinates = layout(graph_of(copied(40, 200)), PARAMS, 0)
    assert purity(coordinates, np.arange(240) < 40, k=1) > 0.95


def test_a_graph_of_few_neighbours_is_enough(made):
    X, labels, _, _ = made
    assert purity(layout(graph_of(X, k=3), PARAMS, 0), labels) > 0.95


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "params",
    [
        MapParams(neighbors=1, min_dist=0.0, epochs=1),
        MapParams(neighbors=1, min_dist=1.0, epochs=12),
    ],
)
def test_the_ends_of_the_params_ranges_give_places(made, params):
    _, _, graph, _ = made
    coordinates = layout(graph, params, 0)
    assert np.isfinite(coordinates).all()
    assert len(np.unique(coordinates, axis=0)) == len(coordinates)


def test_more_neighbours_than_asked_for_change_nothing(made):
    X, _, _, coordinates = made
    assert layout(graph_of(X, k=30), PARAMS, 0).tobytes() == coordinates.tobytes()


def near(indices, distances):
    return Graph(np.array(indices, dtype=np.int32), np.array(distances, dtype=np.float32))


CORNERS = np.array([[0, 0], [4, 0], [0, 8]], dtype=np.float32)


def test_a_held_out_copy_falls_on_its_original():
    found = interpolate(near([[1, 0, 2]], [[0.0, 0.5, 1.0]]), CORNERS, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[4, 0]], atol=1e-4)


def test_a_held_out_prompt_lies_between_its_neighbours_nearer_to_the_nearer():
    np.testing.assert_allclose(interpolate(near([[0, 1]], [[0.5, 0.5]]), CORNERS, 2), [[2, 0]])
    np.testing.assert_allclose(interpolate(near([[0, 1]], [[0.5, 1.5]]), CORNERS, 2), [[1, 0]])


def test_a_held_out_prompt_is_placed_by_as_many_neighbours_as_the_others():
    np.testing.assert_array_equal(interpolate(near([[2, 1]], [[0.5, 0.6]]), CORNERS, 1), [[0, 8]])


def test_no_held_out_prompts_are_no_places():
    assert interpolate(Graph.empty(0, 2), CORNERS, 15).shape == (0, 2)


def test_held_out_prompts_fall_into_their_cluster(made):
    X, labels, _, coordinates = made
    rng = np.random.default_rng(5)
    own = rng.integers(len(X), size=50)
    queries = unit(X[own] + 0.02 * rng.normal(size=(50, 16)))
    distances, indices = cKDTree(X).query(queries, 15)
    found = interpolate(near(indices, distances), coordinates, 15)
    nearest = cKDTree(coordinates).query(found)[1]
    assert (labels[nearest] == labels[own]).mean() > 0.95
