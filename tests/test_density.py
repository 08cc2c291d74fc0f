"""Density rises with crowding and weight falls, on data whose density is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from isodense.density import (
    DensityParams,
    density_weights,
    effective_sample_size,
    estimate,
    heldout_density,
    intrinsic_dimension,
    label_statistics,
    publish,
    statistics,
)
from isodense.errors import IsodenseError
from isodense.graph import Graph
from isodense.neighbors import knn_graph, nearest

PARAMS = DensityParams(20, "soft_count", 0.8, 0.4, 0.15, 4.0)
METHODS = ["soft_count", "knn", "balance"]


def unit(X):
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)


def circle(angles):
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def lopsided(seed=0):
    """Return unit vectors in 5 dimensions and the density they were drawn from.

    Density exp(2 x) of the first coordinate (von Mises-Fisher), by rejection from the uniform.
    """
    rng = np.random.default_rng(seed)
    X = unit(rng.normal(size=(20000, 5)))
    X = X[rng.random(len(X)) < np.exp(2 * (X[:, 0] - 1))][:3000]
    assert len(X) == 3000
    return X, np.exp(2 * X[:, 0].astype(float))


@pytest.mark.parametrize("method", METHODS)
def test_the_sign_on_a_known_density(method):
    X, truth = lopsided()
    found = estimate(knn_graph(X, 50), DensityParams(50, method, 0.7, 0.4, 0.15, 4.0))
    assert spearmanr(found.density, truth)[0] > 0.8
    assert spearmanr(found.weights, truth)[0] < -0.8
    sparse, dense = truth < np.quantile(truth, 0.2), truth > np.quantile(truth, 0.8)
    assert found.weights[sparse].mean() > 2 * found.weights[dense].mean()


@pytest.mark.parametrize("method", METHODS)
def test_a_small_cluster_gains_and_a_large_one_loses(method):
    rng = np.random.default_rng(1)
    centres = unit(rng.normal(size=(2, 16)))
    sizes = (400, 40)
    X = unit(np.repeat(centres, sizes, axis=0) + 0.15 * rng.normal(size=(440, 16)))
    weights = density_weights(knn_graph(X, 20), method=method, ess=0.6)
    assert weights[400:].sum() > 1.15 * 40 / 440


def test_more_exponent_where_the_target_asks_for_it():
    X, _ = lopsided()
    graph = knn_graph(X, 20)
    sizes = [effective_sample_size(density_weights(graph, ess=ess)) for ess in (0.75, 0.6, 0.4)]
    assert sizes[0] > sizes[1] > sizes[2]
    for ess, size in zip((0.75, 0.6, 0.4), sizes, strict=True):
        assert size / len(X) == pytest.approx(ess, abs=0.03)


def test_copies_share_one_weight_and_stay_known():
    rng = np.random.default_rng(2)
    X = unit(rng.normal(size=(300, 8)))
    alone = density_weights(knn_graph(X, 20))
    copied = np.concatenate([X, np.repeat(X[:1], 9, axis=0)])
    weights = density_weights(knn_graph(copied, 20))
    group = [0, *range(300, 309)]
    assert 0.8 * alone[0] < weights[group].sum() < 2 * alone[0]  # ten times it, uncorrected
    assert np.ptp(weights[group]) < 1e-9
    report = statistics(estimate(knn_graph(copied, 20), PARAMS), knn_graph(copied, 20))
    assert (report["copy_groups"], report["prompts_in_copy_groups"]) == (1, 10)
    assert report["copies_mass"] < report["copies_mass_uniform"] / 5


def test_garbage_far_from_everything_is_bounded():
    rng = np.random.default_rng(3)
    crowd = unit(np.eye(32)[0] + 0.1 * rng.normal(size=(500, 32)))
    weights = density_weights(knn_graph(np.concatenate([crowd, unit(-np.eye(32)[:1])]), 20))
    assert 1 < weights[-1] * len(weights) < 10


def test_one_two_and_identical_prompts_weigh_alike():
    for X in (circle(np.zeros(1)), circle(np.array([0.0, 1.0])), circle(np.zeros(30))):
        weights = density_weights(knn_graph(X, 20))
        np.testing.assert_allclose(weights, 1 / len(X))


def test_weights_stay_positive_in_float32_at_extreme_settings():
    rng = np.random.default_rng(5)
    crowd = unit(np.eye(6)[0] + 1e-5 * rng.normal(size=(200, 6)))
    X = np.concatenate([crowd, unit(rng.normal(size=(200, 6)))])
    weights = density_weights(knn_graph(X, 20), method="knn", ess=0.05, alpha_max=20)
    assert (weights.astype(np.float32) > 0).all()


def test_two_different_prompts_are_no_copies():
    graph = knn_graph(circle(np.array([0.0, 1.0])), 5)
    assert statistics(estimate(graph, PARAMS), graph)["copy_groups"] == 0
    graph = knn_graph(circle(np.zeros(9)), 20)
    assert statistics(estimate(graph, PARAMS), graph)["prompts_in_copy_groups"] == 9


def test_k_beyond_the_graph_is_refused_and_beyond_the_rows_is_not():
    graph = knn_graph(circle(np.linspace(0, 2, 30)), 5)
    with pytest.raises(IsodenseError, match=r"raise neighbors\.k_max"):
        density_weights(graph, k=6)
    assert len(density_weights(knn_graph(circle(np.linspace(0, 2, 4)), 20), k=20)) == 4


def test_unusable_graphs_are_refused():
    good = knn_graph(circle(np.linspace(0, 2, 10)), 3)
    bad = good.distances.copy()
    bad[4, 1] = np.nan
    with pytest.raises(IsodenseError, match="not finite"):
        density_weights(Graph(good.indices, bad), k=3)
    with pytest.raises(IsodenseError, match="do not exist"):
        density_weights(Graph(good.indices - 5, good.distances), k=3)
    with pytest.raises(IsodenseError, match="no rows"):
        density_weights(Graph(good.indices[:0], good.distances[:0]), k=3)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(3, 80),
    method=st.sampled_from([*METHODS, "uniform"]),
    copies=st.integers(0, 10),
)
def test_weights_are_finite_positive_and_sum_to_one(seed, n, method, copies):
    rng = np.random.default_rng(seed)
    X = unit(rng.normal(size=(n, 5)))
    X = np.concatenate([X, X[rng.integers(n, size=copies)]])
    weights = density_weights(knn_graph(X, 20), method=method)
    assert np.isfinite(weights).all()
    assert (weights > 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), method=st.sampled_from(METHODS))
def test_the_order_of_prompts_and_a_rotation_change_nothing(seed, method):
    rng = np.random.default_rng(seed)
    X = unit(rng.normal(size=(150, 6)))
    order = rng.permutation(150)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    weights = density_weights(knn_graph(X, 20), method=method)
    other = density_weights(knn_graph(unit(X[order] @ turn), 20), method=method)
    np.testing.assert_allclose(other, weights[order], rtol=1e-3)


def test_held_out_density_is_what_the_prompt_would_find():
    X, truth = lopsided()
    train, other = X[::2], X[1::2]
    found = estimate(knn_graph(train, 20), PARAMS)
    density = heldout_density(found, nearest(other, train, 20), PARAMS)
    assert spearmanr(density, truth[1::2])[0] > 0.8
    copies = heldout_density(found, nearest(train, train, 20), PARAMS)
    assert np.abs(copies - found.density).max() < 0.2  # its own group is not counted twice


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_intrinsic_dimension_of_a_sphere(dim):
    X = unit(np.random.default_rng(4).normal(size=(3000, dim + 1)))
    assert intrinsic_dimension(knn_graph(X, 20)) == pytest.approx(dim, rel=0.15)


def test_effective_sample_size_by_hand():
    assert effective_sample_size(np.ones(7)) == pytest.approx(7)
    assert effective_sample_size(np.array([1.0, 0, 0])) == pytest.approx(1)


def test_label_statistics_by_hand():
    labels = ["a"] * 6 + ["b"] * 2
    even = np.array([1 / 12] * 6 + [1 / 4] * 2)
    report = label_statistics(even, labels)
    assert report["entropy"] == pytest.approx(1)
    assert report["gap"] == pytest.approx(1)
    assert report["rarest_quarter_uniform"] == pytest.approx(0.25)
    assert report["rarest_quarter"] == pytest.approx(0.5)
    assert label_statistics(np.full(8, 1 / 8), labels)["gap"] == pytest.approx(0)
    worse = np.array([1 / 6.5] * 6 + [0.25 / 6.5] * 2)
    assert label_statistics(worse, labels)["gap"] < 0
    assert label_statistics(np.full(3, 1 / 3), ["a"] * 3)["entropy"] == 1.0


def test_the_artifact_has_the_documented_fields(tmp_path):
    X, _ = lopsided()
    graph = knn_graph(X, 20)
    found = estimate(graph, PARAMS)
    ids = [f"{i:032x}" for i in range(len(X))]
    facts = {"dim": 2, "ids_sha256": "x", "heldout_ids_sha256": "y"}
    publish(found, np.zeros(3), ids, PARAMS, facts, "0", tmp_path / "d")
    weights = np.load(tmp_path / "d" / "density_weights.npy")
    assert weights.dtype == np.float32
    assert abs(weights.sum(dtype=np.float64) - 1) < 1e-6
    assert np.load(tmp_path / "d" / "prompt_ids.npy").dtype == np.dtype("S32")
    from isodense.artifacts import read_manifest

    manifest = read_manifest(tmp_path / "d", "density")
    for key in ("weights_min", "weights_max", "weights_mean", "weights_std", "n_prompts"):
        assert manifest[key] > 0
    assert manifest["weights_max"] == weights.max()
