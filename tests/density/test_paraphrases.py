"""Paraphrases share a weight by how close they are; off, nothing is different."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from isodense.density import estimate as module
from isodense.density.artifact import publish, statistics, stored
from isodense.density.estimate import (
    density_weights,
    estimate,
    heldout_density,
    heldout_niches,
    inverse_weights,
)
from isodense.density.kernel import niche_counts
from isodense.neighbors.build import knn_graph, nearest
from isodense.neighbors.graph import Graph
from isodense.pipeline.artifact import ids_sha256, read_manifest
from isodense.pipeline.errors import IsodenseError
from isodense.sampling.weights import PARAPHRASES, load_weights
from tests.density.vectors import PARAMS, circle, lopsided, reordered, unit, with_copies

ON = PARAMS.model_copy(update={"paraphrases": 0.6})
FIXED = {"dup": 0.0, "alpha_max": 1.0, "ess": 0.05}  # out of reach, so the exponent is 1


def reworded(seed, size, closeness, lone=300, dim=8):
    """Return `lone` vectors, the last at right angles to all, and `size` like the first.

    These are `closeness` r₀ apart, on average.
    """
    rng = np.random.default_rng(seed)
    X = unit(rng.normal(size=(lone, dim + 1)) * (np.arange(dim + 1) < dim))
    X[-1] = np.eye(dim + 1)[-1]
    scale = estimate(knn_graph(X, 50), PARAMS).scales.scale
    noise = closeness * scale / (2 * dim) ** 0.5 * rng.normal(size=(size, dim + 1))
    return np.concatenate([X, unit(X[:1] + noise)])


def test_off_is_what_it_always_was(monkeypatch):
    graph = with_copies(0)
    off = estimate(graph, PARAMS)
    known = [0.008335485313, 0.005105167340, 0.008698038070, 0.009769786743]
    np.testing.assert_allclose(off.weights[[0, 1, 2, 30]], known, rtol=1e-6)
    out_of_reach = estimate(graph, PARAMS.model_copy(update={"paraphrases": 1e-6}))
    assert off.weights.tobytes() == out_of_reach.weights.tobytes()
    assert off.density.tobytes() == out_of_reach.density.tobytes()
    assert (off.niches, out_of_reach.niches.tolist()) == (None, [1.0] * len(graph))
    monkeypatch.delattr(module, "niche_counts")
    assert estimate(graph, PARAMS).weights.tobytes() == off.weights.tobytes()
    heldout_density(off, graph, PARAMS)
    assert heldout_niches(off, graph, PARAMS).tolist() == [1.0] * len(graph)


def test_the_niches_of_four_prompts_by_hand():
    """Rows 0 and 1 are one cluster; row 2 lies at half the reach of 0, row 3 at the reach of it."""
    indices = np.array([[1, 2], [0, 2], [0, 3], [2, 0]], dtype=np.int32)
    distances = np.array([[0.01, 0.2], [0.01, 0.3], [0.2, 0.4], [0.4, 0.5]], dtype=np.float32)
    clusters, sizes = np.array([0, 0, 1, 2]), np.array([2, 2, 1, 1])
    found = niche_counts(Graph(indices, distances), clusters, sizes, 0.4)
    near, farther = (1 - 0.5**4) ** 2, (1 - 0.75**4) ** 2
    pair = 1 + (near + farther) / 2
    np.testing.assert_allclose(found, [pair, pair, 1 + near / 2, 1], rtol=1e-6)
    alone = niche_counts(Graph(indices[:1], distances[:1]), None, sizes, 0.4)
    np.testing.assert_allclose(alone, [1 + (1 - 0.025**4) ** 2 / 2 + near], rtol=1e-6)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(3, 20), closeness=st.floats(0.2, 0.5))
def test_a_larger_reach_lowers_the_mass_of_a_group_and_leaves_it_that_of_a_prompt(
    seed, size, closeness
):
    X = reworded(seed, size, closeness)
    graph, group, masses = knn_graph(X, 50), [0, *range(300, 300 + size)], []
    for reach in (0.0, 0.3, 0.4, 0.5, 0.6):
        weights = density_weights(graph, paraphrases=reach, **FIXED)
        masses.append(weights[group].sum() / weights[299])
        one = density_weights(knn_graph(X[:300], 50), paraphrases=reach, **FIXED)
        assert masses[-1] > 0.7 * one[0] / one[299]
    # where a group shares all it can already, that its neighbours share more gives a little back
    assert all(later < before * 1.05 for before, later in itertools.pairwise(masses))
    assert masses[-1] < masses[0]


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), closeness=st.floats(0.2, 0.5), reach=st.floats(0.3, 0.9))
def test_more_paraphrases_lower_the_weight_of_each(seed, closeness, reach):
    X = reworded(seed, 16, closeness)
    shares = []
    for size in (0, 4, 8, 16):
        weights = density_weights(knn_graph(X[: 300 + size], 50), paraphrases=reach, **FIXED)
        shares.append(weights[0] / weights[299])
    assert all(later < before for before, later in itertools.pairwise(shares))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), copies=st.integers(2, 20))
def test_copies_are_one_prompt_as_without(seed, copies):
    rng = np.random.default_rng(seed)
    X = unit(rng.normal(size=(250, 6)))
    copied = np.concatenate([X, np.repeat(X[:1], copies, axis=0)])
    found, alone = estimate(knn_graph(copied, 50), ON), estimate(knn_graph(X, 50), ON)
    assume((alone.clusters == alone.clusters[0]).sum() == 1)
    group = [0, *range(250, 250 + copies)]
    assert np.ptp(found.weights[group]) == np.ptp(found.niches[group]) == 0
    assert 0.6 * alone.weights[0] < found.weights[group].sum() < 2 * alone.weights[0]
    clusters = np.r_[np.arange(250), np.zeros(copies, dtype=int)]
    sizes, reach = np.bincount(clusters)[clusters], 0.6 * alone.scales.scale
    several = niche_counts(knn_graph(copied, 50), clusters, sizes, reach)
    single = niche_counts(knn_graph(X, 50), np.arange(250), np.ones(250), reach)
    np.testing.assert_allclose(several[:250], single, rtol=1e-5)


def test_the_sign_holds_on_a_known_density():
    X, truth = lopsided()
    for reach, least in ((0.3, 0.9), (0.6, 0.7), (0.99, 0.8)):
        found = estimate(knn_graph(X, 50), PARAMS.model_copy(update={"paraphrases": reach}))
        assert spearmanr(found.density, truth)[0] > 0.75
        assert spearmanr(found.weights, truth)[0] < -least
        shared = found.niches > 1
        assert truth[shared].mean() > truth[~shared].mean()
        assert found.niches.min() == 1


def test_density_and_weight_are_of_niches_and_the_target_of_clusters():
    graph = knn_graph(reworded(1, 12, 0.35), 50)
    found = estimate(graph, ON)
    assert found.niches[300:].min() > 3
    expected = inverse_weights(found.density, found.exponent, found.sharers)
    assert found.weights.tobytes() == expected.tobytes()
    masses = np.bincount(found.clusters, weights=found.weights)
    share = masses.sum() ** 2 / np.square(masses).sum() / len(masses)
    assert share == pytest.approx(0.8, abs=1e-6) or found.exponent in (0, ON.alpha_max)
    assert found.density[300:].mean() < estimate(graph, PARAMS).density[300:].mean()


def test_the_order_of_prompts_changes_nothing_and_other_methods_do_not_share():
    graph = knn_graph(reworded(2, 10, 0.3), 50)
    order = np.random.default_rng(0).permutation(len(graph))
    found, other = estimate(graph, ON), estimate(reordered(graph, order), ON)
    np.testing.assert_allclose(other.weights, found.weights[order], rtol=1e-6)
    np.testing.assert_allclose(other.niches, found.niches[order], rtol=1e-9)
    for method in ("knn", "balance", "uniform"):
        given = {"method": method}
        plain = estimate(graph, PARAMS.model_copy(update=given)).weights
        assert (estimate(graph, ON.model_copy(update=given)).weights == plain).all()


def test_prompts_that_are_not_in_the_set_share_as_those_that_are():
    X = reworded(3, 10, 0.35)
    train, other = X[:-3], X[-3:]
    found, whole = estimate(knn_graph(train, 50), ON), estimate(knn_graph(X[:-2], 50), ON)
    near = nearest(other, train, 50)
    niches = heldout_niches(found, near, ON)
    assert niches[0] == pytest.approx(whole.niches[-1], rel=0.05)
    assert heldout_density(found, near, ON)[0] == pytest.approx(whole.density[-1], abs=0.2)
    copies = heldout_niches(found, nearest(train, train, 50), ON)
    np.testing.assert_array_equal(copies, found.niches)


def test_the_artifact_holds_niches_where_they_are_shared_and_no_file_where_not(tmp_path):
    X = reworded(4, 10, 0.35)
    graph, ids = knn_graph(X, 50), [f"{i:032x}" for i in range(len(X))]
    facts = {"dim": 8, "ids_sha256": ids_sha256(ids), "heldout_ids_sha256": "y"}
    for params, name in ((ON, "on"), (PARAMS, "off")):
        found = estimate(graph, params)
        publish(found, np.zeros(0), np.zeros(0), ids, params, {}, facts, "0", tmp_path / name)
        assert (PARAPHRASES in read_manifest(tmp_path / name, "density")["files"]) == (name == "on")
        loaded = stored(load_weights(tmp_path / name))
        assert (loaded.niches is None) == (name == "off")
        again = heldout_density(loaded, graph, params)
        np.testing.assert_allclose(again, heldout_density(found, graph, params), rtol=1e-6)
        again = heldout_niches(loaded, graph, params)
        np.testing.assert_allclose(again, heldout_niches(found, graph, params), rtol=1e-6)
        assert 0 < statistics(found, graph, params)["rank_stability"] < 1


def test_the_keyword_is_the_param_and_its_bounds_are_told():
    graph = knn_graph(reworded(5, 10, 0.35), 50)
    weights = density_weights(graph, paraphrases=0.6)
    assert weights.tobytes() == estimate(graph, ON).weights.tobytes()
    for wrong, said in ((1.0, r"1\.0 is not below 1\.0"), (-0.1, "below the minimum, 0")):
        with pytest.raises(IsodenseError, match=f"paraphrases: .*{said}"):
            density_weights(graph, paraphrases=wrong)


@pytest.mark.parametrize("angles", [np.zeros(1), np.arange(2.0), np.arange(3.0), np.zeros(30)])
def test_few_or_equal_prompts_are_uniform(angles):
    graph = knn_graph(circle(angles), 50)
    np.testing.assert_allclose(estimate(graph, ON).weights, 1 / len(angles), rtol=0.2)
