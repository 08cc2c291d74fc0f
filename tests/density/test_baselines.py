"""Weights to compare with: what is pruned, and what each cluster of the embeddings gets."""

from __future__ import annotations

import numpy as np
import pytest

from isodense.density.balance import effective_sample_size
from isodense.density.baselines import evened_clusters, pruned
from isodense.density.estimate import density_weights, estimate
from isodense.neighbors.build import knn_graph
from isodense.pipeline.errors import IsodenseError
from tests.density.vectors import PARAMS, circle, unit


def three_crowds(sizes=(80, 15, 5), seed=0):
    """Return unit vectors around three axes, and the crowd of each."""
    crowd = np.repeat(np.arange(3), sizes)
    noise = np.random.default_rng(seed).normal(scale=0.05, size=(len(crowd), 3))
    order = np.random.default_rng(seed).permutation(len(crowd))
    return unit(np.eye(3)[crowd] + noise)[order], crowd[order]


def test_an_earlier_prompt_that_is_too_similar_bars_one():
    # cosines to the first: 0.999, 0.96, 0.92; of the second to the third 0.97, of the last two 0.99
    X = circle(np.arccos([1.0, 0.999, 0.96, 0.92]))
    kept = {0.05: [0], 0.02: [0, 2], 0.0: [0, 1, 2, 3]}
    for epsilon, rows in kept.items():
        weights = pruned(knn_graph(X, 3), epsilon)
        assert np.flatnonzero(weights > 1e-3).tolist() == rows
        assert weights[rows] == pytest.approx(1 / len(rows))
        assert (weights.astype(np.float32) > 0).all()


def test_what_is_pruned_does_not_depend_on_whose_list_names_the_pair():
    X = circle(np.array([0.0, 0.05, 0.06, 2.0]))
    assert np.flatnonzero(pruned(knn_graph(X, 1), 0.01) > 1e-3).tolist() == [0, 3]


def test_each_cluster_is_drawn_as_often_as_any_other():
    X, crowd = three_crowds()
    weights = evened_clusters(X, 3)
    assert np.bincount(crowd, weights) == pytest.approx([1 / 3] * 3)
    assert all(len(set(weights[crowd == one])) == 1 for one in range(3))
    assert np.array_equal(weights, evened_clusters(X, 3))


def test_the_number_of_clusters_follows_the_number_of_prompts():
    X = unit(np.random.default_rng(0).normal(size=(400, 8)))
    weights = evened_clusters(X, None)
    assert (1 / weights / 20).round().min() >= 1  # 20 clusters: a weight is 1 / (20 · size)
    assert weights * 20 == pytest.approx(1 / (1 / (weights * 20)).round())
    assert evened_clusters(X[:1], None).tolist() == [1.0]
    assert evened_clusters(X[:3], 50) == pytest.approx([1 / 3] * 3)


def test_the_density_is_the_same_whatever_decides_the_weights():
    X, crowd = three_crowds()
    graph = knn_graph(X, 50)
    plain = estimate(graph, PARAMS)
    for method in ("semdedup", "clusters"):
        params = PARAMS.model_copy(update={"method": method, "clusters": 3})
        found = estimate(graph, params, vectors=X)
        assert np.array_equal(found.density, plain.density)
        assert np.array_equal(found.clusters, plain.clusters)
        assert found.exponent == 0
        assert np.bincount(crowd, found.weights)[2] > 2 * (crowd == 2).mean()  # the rarest gains
        assert effective_sample_size(found.weights) < len(X)


def test_clusters_need_vectors():
    X, _ = three_crowds()
    graph = knn_graph(X, 50)
    assert density_weights(graph, method="clusters", vectors=X).sum() == pytest.approx(1)
    with pytest.raises(IsodenseError, match="needs the vectors of 100 prompts, and there are none"):
        density_weights(graph, method="clusters")
    with pytest.raises(IsodenseError, match="and there are 99"):
        density_weights(graph, method="clusters", vectors=X[1:])
