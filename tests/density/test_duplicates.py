"""Near-duplicates are found, ordinary prompts are not taken for them, and lengths are right."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.stats import spearmanr, vonmises_fisher

from isodense.density.artifact import statistics
from isodense.density.duplicates import (
    IDENTICAL,
    STRAY,
    Scales,
    connected,
    find_duplicates,
    intrinsic_dimension,
    largest_clusters,
)
from isodense.density.estimate import estimate
from isodense.neighbors.build import knn_graph
from isodense.neighbors.graph import Graph
from tests.density.vectors import (
    PARAMS,
    circle,
    unit,
    with_groups,
)


def test_two_different_prompts_are_no_copies():
    graph = knn_graph(circle(np.array([0.0, 1.0])), 5)
    assert statistics(estimate(graph, PARAMS), graph, PARAMS)["duplicate_clusters"] == 0
    assert estimate(graph, PARAMS).scales == Scales(0.0, 0.0, 0.0, 0.0)
    graph = knn_graph(circle(np.zeros(9)), 50)
    assert estimate(graph, PARAMS).scales == Scales(0.0, 0.0, 0.0, 0.0)
    assert statistics(estimate(graph, PARAMS), graph, PARAMS)["prompts_in_duplicate_clusters"] == 9


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_intrinsic_dimension_of_a_sphere(dim):
    X = unit(np.random.default_rng(4).normal(size=(3000, dim + 1)))
    assert intrinsic_dimension(knn_graph(X, 50)) == pytest.approx(dim, rel=0.05)


@pytest.mark.parametrize(("dim", "n"), [(2, 2000), (4, 2000), (8, 4000)])
def test_intrinsic_dimension_has_no_bias(dim, n):
    """On a flat torus, which has neither edges nor curvature."""
    X = np.random.default_rng(dim).random((n, dim))
    distances, indices = cKDTree(X, boxsize=1).query(X, 21)
    assert distances.max() < 0.5  # a ball does not meet itself
    graph = Graph(indices[:, 1:].astype(np.int32), distances[:, 1:].astype(np.float32))
    assert intrinsic_dimension(graph) == pytest.approx(dim, rel=0.03)
    found = estimate(graph, PARAMS.model_copy(update={"k": 20}))
    assert found.scales.dimension == pytest.approx(dim, rel=0.05)


@pytest.mark.parametrize("kappa", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("dim", [1, 2])
def test_ordinary_prompts_do_not_chain_in_few_dimensions(dim, kappa):
    rng = np.random.default_rng(dim)
    if dim == 1:
        X = circle(rng.vonmises(0, kappa, 2000))
    else:
        X = unit(vonmises_fisher(np.eye(3)[0], kappa).rvs(2000, random_state=rng))
    found = estimate(knn_graph(X, 50), PARAMS)
    assert len(np.unique(found.clusters)) > 0.9 * len(X)
    assert spearmanr(found.density, X[:, 0])[0] > 0.7  # log density is kappa times the cosine


@pytest.mark.parametrize("noise", [0.0, 1e-4])
@pytest.mark.parametrize("size", [5, 15])
@pytest.mark.parametrize("share", [0.7, 0.8, 0.9])
def test_groups_are_found_where_most_rows_are_copies(share, size, noise):
    groups = round(1000 * share / size)
    X, group = with_groups(1, groups, size, 1000 - groups * size, noise)
    found = estimate(knn_graph(X, 50), PARAMS)
    assert len(np.unique(found.clusters)) == group[-1] + 1
    assert (np.ptp(found.clusters[: groups * size].reshape(groups, size), axis=1) == 0).all()
    mass = np.bincount(group, weights=found.weights)
    assert 0.75 < mass[:groups].mean() / mass[groups:].mean() < 1.33
    assert mass.max() < 5 * mass.mean()


@pytest.mark.parametrize("size", [5, 30, 100])
def test_copies_of_others_do_not_raise_the_dimension(size):
    """A neighbour that is there thirty times is one neighbour."""
    X, group = with_groups(3, 700 // size, size, 300, 0.0)
    found = estimate(knn_graph(X, 50), PARAMS)
    distinct = X[np.unique(group, return_index=True)[1]]
    alone = estimate(knn_graph(distinct, 50), PARAMS)
    assert found.scales.dimension == pytest.approx(alone.scales.dimension, rel=0.15)


@pytest.mark.parametrize("dim", [1, 2, 6])
def test_the_radius_is_that_of_the_groups(dim):
    X = unit(np.random.default_rng(dim).normal(size=(600, dim + 1)))
    graph = knn_graph(X, 50)
    found = estimate(graph, PARAMS)
    near = graph.distances <= np.float64(found.scales.radius)
    edges = np.repeat(np.arange(600), 50)[near.ravel()], graph.indices[near]
    square = coo_array((np.ones(near.sum()), edges), shape=(600, 600))
    assert connected_components(square, directed=False)[0] == len(np.unique(found.clusters))


def test_the_largest_clusters_come_first_and_single_prompts_not_at_all():
    clusters = np.array([0, 1, 2, 1, 3, 2, 1], dtype=np.int32)
    assert [members.tolist() for members in largest_clusters(clusters, 5)] == [[1, 3, 6], [2, 5]]
    assert [members.tolist() for members in largest_clusters(clusters, 1)] == [[1, 3, 6]]


def test_of_clusters_of_one_size_the_first_comes_first_with_rising_rows():
    n = 40  # enough for a sort that is not stable
    clusters = np.concatenate([np.tile(np.arange(n), 2), np.arange(0, n, 2)]).astype(np.int32)
    found = [members.tolist() for members in largest_clusters(clusters, n)]
    three = [[one, one + n, 2 * n + one // 2] for one in range(0, n, 2)]
    assert found == [*three, *([one, one + n] for one in range(1, n, 2))]


def test_three_prompts_are_enough_for_lengths_and_two_equal_ones_for_a_cluster():
    assert connected(knn_graph(circle(np.zeros(2)), 1), IDENTICAL).tolist() == [0, 0]
    clusters, scales = find_duplicates(knn_graph(circle(np.zeros(2)), 1), 0.15, 1.0)
    assert (clusters.tolist(), scales.scale) == ([0, 0], 0)
    graph = knn_graph(circle(np.array([0.0, 0.1, 0.4])), 2)
    assert find_duplicates(graph, 0.15, 1.0)[1].scale == pytest.approx(2 * np.sin(0.3 / 2 + 0.05))


@pytest.mark.parametrize(
    "angles", [[0.0, 0.1, 0.3, 0.7, 1.5], [0.0, 0.2, 0.3, 0.35, 0.9, 1.6, 2.5]]
)
def test_the_scale_is_the_median_distance_to_the_last_neighbour(angles):
    graph = knn_graph(circle(np.array(angles)), 2)
    scale = find_duplicates(graph, 0.15, 1.0)[1].scale
    assert scale == np.median(graph.distances[:, -1])


def test_copies_do_not_draw_the_scale_to_their_side():
    """Forty clusters of five in a crowd count as forty, beside sixty prompts that are far apart."""
    crowd, rest = np.linspace(0, 0.4, 40), np.linspace(0.8, 5.5, 60)
    alone = find_duplicates(knn_graph(circle(np.r_[crowd, rest]), 20), 0.15, 1.0)
    copied = find_duplicates(knn_graph(circle(np.r_[np.repeat(crowd, 5), rest]), 20), 0.15, 1.0)
    assert len(np.unique(copied[0])) == len(np.unique(alone[0])) == 100
    assert copied[1].scale == pytest.approx(alone[1].scale, rel=0.02)


@pytest.mark.parametrize("dim", [1, 2])
def test_as_many_ordinary_neighbours_lie_within_the_radius_as_may_stray(dim):
    """In few dimensions the radius shrinks, so that of 20 neighbours 0.05 lie within it."""
    X = unit(np.random.default_rng(7).normal(size=(8000, dim + 1)))
    graph = knn_graph(X, 20)
    _, scales = find_duplicates(graph, 0.15, 1.0)
    within = (graph.distances <= np.float64(scales.radius)).sum(axis=1).mean()
    assert within == pytest.approx(STRAY, rel=0.25)
