"""Density rises with crowding and weight falls, on data whose density is known."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import linregress, spearmanr, vonmises_fisher

from isodense.density.artifact import statistics
from isodense.density.balance import effective_sample_size
from isodense.density.estimate import density_weights, estimate, heldout_density, reached_ess
from isodense.density.params import DensityParams
from isodense.neighbors.build import knn_graph, nearest
from isodense.neighbors.graph import Graph
from isodense.pipeline.errors import IsodenseError
from tests.density.vectors import (
    METHODS,
    PARAMS,
    circle,
    lopsided,
    reordered,
    unit,
    with_copies,
    with_groups,
)


@pytest.mark.parametrize("method", METHODS)
def test_the_sign_on_a_known_density(method):
    X, truth = lopsided()
    found = estimate(knn_graph(X, 50), PARAMS.model_copy(update={"method": method, "ess": 0.7}))
    assert spearmanr(found.density, truth)[0] > 0.8
    assert spearmanr(found.weights, truth)[0] < -0.8
    sparse, dense = truth < np.quantile(truth, 0.2), truth > np.quantile(truth, 0.8)
    assert found.weights[sparse].mean() > 2 * found.weights[dense].mean()


@pytest.mark.parametrize("dim", [4, 8])
def test_density_follows_a_mixture_of_von_mises_fisher(dim):
    rng = np.random.default_rng(0)
    parts = [(vonmises_fisher(np.eye(dim)[i], 20 / 3**i), (800, 600, 600)[i]) for i in range(3)]
    X = np.concatenate([part.rvs(size, random_state=rng) for part, size in parts])
    truth = sum(size / 2000 * part.pdf(X) for part, size in parts)
    found = estimate(knn_graph(unit(X), 50), PARAMS)
    assert spearmanr(found.density, truth)[0] > 0.9
    assert spearmanr(found.weights, truth)[0] < -0.9
    assert -1.2 < linregress(np.log(truth), np.log(found.weights)).slope < -0.2


@pytest.mark.parametrize("method", METHODS)
def test_density_follows_a_projected_gaussian(method):
    X = np.random.default_rng(0).normal(size=(2000, 8)) + 2 * np.eye(8)[0]
    X = unit(X)  # its density rises with the cosine to the mean (Mardia and Jupp 2000, section 9.3)
    found = estimate(knn_graph(X, 50), PARAMS.model_copy(update={"k": 50, "method": method}))
    assert spearmanr(found.density, X[:, 0])[0] > 0.9
    assert spearmanr(found.weights, X[:, 0])[0] < -0.9


@pytest.mark.parametrize("method", METHODS)
def test_a_small_cluster_gains_and_a_large_one_loses(method):
    rng = np.random.default_rng(1)
    centres = unit(rng.normal(size=(2, 16)))
    sizes = (400, 40)
    X = unit(np.repeat(centres, sizes, axis=0) + 0.15 * rng.normal(size=(440, 16)))
    weights = density_weights(knn_graph(X, 50), method=method, ess=0.6)
    assert weights[400:].sum() > 1.15 * 40 / 440


def test_more_exponent_where_the_target_asks_for_it():
    X, _ = lopsided()
    graph = knn_graph(X, 50)
    sizes = [
        effective_sample_size(density_weights(graph, ess=ess, alpha_max=4))
        for ess in (0.75, 0.6, 0.4)
    ]
    assert sizes[0] > sizes[1] > sizes[2]
    for ess, size in zip((0.75, 0.6, 0.4), sizes, strict=True):
        assert size / len(X) == pytest.approx(ess, abs=0.03)
    assert estimate(graph, PARAMS.model_copy(update={"ess": 0.05})).exponent == PARAMS.alpha_max
    assert estimate(graph, PARAMS.model_copy(update={"ess": 1.0})).exponent == 0


@pytest.mark.parametrize("method", ["soft_count", "knn"])
@pytest.mark.parametrize("ess", [0.999, 0.97, 0.9, 0.8, 0.5])
def test_the_target_is_reached_exactly_wherever_it_lies(method, ess):
    X, _ = lopsided()
    params = PARAMS.model_copy(update={"method": method, "ess": ess, "alpha_max": 20.0})
    found = estimate(knn_graph(np.concatenate([X, X[:50]]), 50), params)
    units = found.clusters if method == "soft_count" else np.arange(len(found.weights))
    masses = np.bincount(units, weights=found.weights)
    assert effective_sample_size(masses) / len(masses) == pytest.approx(ess, abs=1e-9)
    assert 0 < found.exponent < 20


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), copies=st.integers(0, 30), first=st.floats(0.3, 1))
def test_a_lower_target_never_asks_for_less_exponent(seed, copies, first):
    rng = np.random.default_rng(seed)
    X = unit(rng.normal(size=(150, 5)) + 2 * rng.random() * np.eye(5)[0])
    graph = knn_graph(np.concatenate([X, np.repeat(X[:1], copies, axis=0)]), 50)
    targets = (1.0, first, 0.9 * first, 0.5 * first)
    found = [estimate(graph, PARAMS.model_copy(update={"ess": ess})) for ess in targets]
    exponents = [one.exponent for one in found]
    assert exponents == sorted(exponents)
    assert exponents[0] == 0
    masses = np.bincount(found[0].clusters, weights=found[0].weights)
    np.testing.assert_allclose(masses, 1 / len(masses))  # distinct prompts alike: no density


def test_densities_that_are_all_alike_give_uniform_weights_whatever_the_target():
    graph = knn_graph(circle(np.arange(64) * 2 * np.pi / 64), 20)
    for ess, exponent in ((0.8, PARAMS.alpha_max), (1.0, 0)):
        found = estimate(graph, PARAMS.model_copy(update={"k": 20, "ess": ess}))
        assert found.exponent == exponent
        np.testing.assert_allclose(found.weights, 1 / 64, rtol=1e-6)


def test_the_target_is_a_share_of_the_duplicate_clusters():
    X, _ = lopsided()
    copied = np.concatenate([X, np.repeat(X[:40], 20, axis=0)])
    params = PARAMS.model_copy(update={"ess": 0.7, "alpha_max": 4.0})
    found = estimate(knn_graph(copied, 50), params)
    assert 0 < found.exponent < 4
    masses = np.bincount(found.clusters, weights=found.weights)
    assert effective_sample_size(masses) / len(masses) == pytest.approx(0.7, abs=1e-6)


def test_what_is_reached_is_compared_with_the_target_before_counts_and_kinds_enter():
    X, _ = lopsided()
    graph = knn_graph(np.concatenate([X, np.repeat(X[:40], 20, axis=0)]), 50)
    params = PARAMS.model_copy(update={"ess": 0.7, "alpha_max": 4.0})
    assert reached_ess(estimate(graph, params), params) == pytest.approx(0.7, abs=1e-6)
    kinds = ["ab"[row % 7 == 0] for row in range(len(graph))]
    more = params.model_copy(update={"balance_by": "kind", "count_power": 1.0})
    changed = estimate(graph, more, np.arange(1, len(graph) + 1), None, kinds)
    assert reached_ess(changed, more) == pytest.approx(0.7, abs=1e-6)
    bounded = PARAMS.model_copy(update={"ess": 0.05})
    found = estimate(graph, bounded)
    masses = np.bincount(found.clusters, found.weights)
    assert reached_ess(found, bounded) == pytest.approx(
        effective_sample_size(masses) / len(masses), abs=1e-9
    )
    single = params.model_copy(update={"method": "knn"})
    assert reached_ess(estimate(graph, single), single) == pytest.approx(0.7, abs=1e-6)
    for other in ("uniform", "balance"):
        without = params.model_copy(update={"method": other})
        assert reached_ess(estimate(graph, without), without) is None


def test_knn_weighs_single_prompts_by_their_mean_distance():
    X, _ = lopsided()
    graph = knn_graph(np.concatenate([X, np.repeat(X[:40], 2, axis=0)]), 50)
    found = estimate(graph, PARAMS.model_copy(update={"method": "knn", "ess": 0.97}))
    assert effective_sample_size(found.weights) / len(graph) == pytest.approx(0.97, abs=1e-6)
    fit = linregress(np.log(graph.distances.mean(axis=1, dtype=np.float64)), np.log(found.weights))
    assert fit.rvalue > 1 - 1e-9
    assert fit.slope == pytest.approx(found.exponent * found.scales.dimension)


def test_copies_share_one_weight_and_stay_known():
    rng = np.random.default_rng(2)
    X = unit(rng.normal(size=(300, 8)))
    alone = density_weights(knn_graph(X, 50))
    copied = np.concatenate([X, np.repeat(X[:1], 9, axis=0)])
    weights = density_weights(knn_graph(copied, 50))
    group = [0, *range(300, 309)]
    assert 0.8 * alone[0] < weights[group].sum() < 2 * alone[0]  # ten times it, uncorrected
    assert np.ptp(weights[group]) < 1e-9
    graph = knn_graph(copied, 50)
    report = statistics(estimate(graph, PARAMS), graph, PARAMS)
    assert (report["duplicate_clusters"], report["prompts_in_duplicate_clusters"]) == (1, 10)
    assert report["duplicates_mass"] < report["duplicates_mass_uniform"] / 5


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), copies=st.integers(2, 10), dim=st.integers(4, 16))
def test_ten_copies_weigh_like_one_prompt_or_a_few(seed, copies, dim):
    rng = np.random.default_rng(seed)
    X = unit(rng.normal(size=(200, dim)))
    alone = density_weights(knn_graph(X, 50))[0]
    copied = np.concatenate([X, np.repeat(X[:1], copies - 1, axis=0)])
    weights = density_weights(knn_graph(copied, 50))
    assert 0.7 * alone < weights[0] + weights[200:].sum() < 4 * alone


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    copies=st.integers(0, 60),
    ess=st.floats(0.3, 1),
    alpha_max=st.floats(0, 6),
)
def test_no_group_outweighs_another_beyond_the_documented_bound(seed, copies, ess, alpha_max):
    rng = np.random.default_rng(seed)
    X = unit(rng.normal(size=(80, 5)))
    X = np.concatenate([X, np.repeat(X[:1], copies, axis=0), unit(-10 * X[:1])])
    params = PARAMS.model_copy(update={"ess": ess, "alpha_max": alpha_max})
    found = estimate(knn_graph(X, 50), params)
    groups = np.bincount(found.clusters, weights=found.weights)
    assert 0 <= found.exponent <= alpha_max
    bound = (len(X) + 1) ** found.exponent
    assert groups.max() <= bound * groups.min() * (1 + 1e-9)


def test_garbage_far_from_everything_is_bounded():
    rng = np.random.default_rng(3)
    crowd = unit(np.eye(32)[0] + 0.1 * rng.normal(size=(500, 32)))
    weights = density_weights(knn_graph(np.concatenate([crowd, unit(-np.eye(32)[:1])]), 50))
    assert 1 < weights[-1] * len(weights) < 10


def test_a_hundredth_of_garbage_gets_a_few_hundredths_of_the_draws():
    rng = np.random.default_rng(3)
    share = 1 / np.arange(1, 21)
    topics = unit(rng.normal(size=(20, 32)))[rng.choice(20, 990, p=share / share.sum())]
    X = unit(np.concatenate([topics + 0.1 * rng.normal(size=(990, 32)), rng.normal(size=(10, 32))]))
    assert 0.01 < density_weights(knn_graph(X, 50))[990:].sum() < 0.04


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(25, 120), factor=st.floats(1, 5))
def test_a_prompt_moved_away_from_its_neighbours_never_loses(seed, n, factor):
    rng = np.random.default_rng(seed)
    graph = knn_graph(unit(rng.normal(size=(n, 5))), 50)
    reach = graph.distances[:, 19]
    row = rng.choice(np.argsort(reach)[3 * n // 4 + 1 :])  # r₀ is a median: it stays
    distances = graph.distances.copy()
    distances[row] *= np.float32(factor)
    # the exponent is found from all prompts together, so its bound is made to hold
    fixed = PARAMS.model_copy(update={"alpha_max": 0.5, "ess": 0.05})
    near, far = estimate(graph, fixed), estimate(Graph(graph.indices, distances), fixed)
    assume(near.scales.scale == far.scales.scale and (near.clusters == far.clusters).all())
    assume((near.clusters == near.clusters[row]).sum() == 1)
    odds = [found.weights[row] / np.delete(found.weights, row).sum() for found in (near, far)]
    assert odds[1] >= odds[0] * (1 - 1e-5)
    assert far.density[row] <= near.density[row] + 1e-5
    others = np.delete(far.density, row), np.delete(near.density, row)
    np.testing.assert_allclose(*others, atol=1e-5)  # the dimension is that of float32 logs


@pytest.mark.parametrize("method", METHODS)
def test_only_ratios_of_distances_matter(method):
    graph = with_copies(0)
    weights = density_weights(graph, method=method)
    other = density_weights(Graph(graph.indices, graph.distances / 2), method=method)
    np.testing.assert_allclose(other, weights, rtol=1e-6)  # logs of float32


def test_one_two_and_identical_prompts_weigh_alike():
    for X in (circle(np.zeros(1)), circle(np.array([0.0, 1.0])), circle(np.zeros(30))):
        weights = density_weights(knn_graph(X, 50))
        np.testing.assert_allclose(weights, 1 / len(X))


def test_weights_stay_positive_in_float32_at_extreme_settings():
    rng = np.random.default_rng(5)
    crowd = unit(np.eye(6)[0] + 1e-5 * rng.normal(size=(200, 6)))
    X = np.concatenate([crowd, unit(rng.normal(size=(200, 6)))])
    weights = density_weights(knn_graph(X, 50), method="knn", ess=0.05, alpha_max=20)
    assert (weights.astype(np.float32) > 0).all()


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
    weights = density_weights(knn_graph(X, 50), method=method)
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
    weights = density_weights(knn_graph(X, 50), method=method)
    other = density_weights(knn_graph(unit(X[order] @ turn), 50), method=method)
    np.testing.assert_allclose(other, weights[order], rtol=1e-3)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), method=st.sampled_from(METHODS), power=st.floats(0, 1))
def test_a_reordered_graph_gives_reordered_weights(seed, method, power):
    graph = with_copies(seed)
    rng = np.random.default_rng(seed)
    order, counts = rng.permutation(len(graph)), rng.integers(1, 50, size=len(graph))
    params = PARAMS.model_copy(update={"method": method, "count_power": power})
    found = estimate(graph, params, counts)
    other = estimate(reordered(graph, order), params, counts[order])
    np.testing.assert_allclose(other.weights, found.weights[order], rtol=1e-9)
    np.testing.assert_allclose(other.density, found.density[order], rtol=1e-9, atol=1e-12)


def test_held_out_density_is_what_the_prompt_would_find():
    X, truth = lopsided()
    train, other = X[::2], X[1::2]
    found = estimate(knn_graph(train, 50), PARAMS)
    density = heldout_density(found, nearest(other, train, 50), PARAMS)
    assert spearmanr(density, truth[1::2])[0] > 0.8
    copies = heldout_density(found, nearest(train, train, 50), PARAMS)
    assert np.abs(copies - found.density).max() < 0.2  # its own group is not counted twice
    assert np.abs(copies - found.density).mean() < 0.05


def test_held_out_density_uses_k_neighbours_however_many_there_are():
    X, _ = lopsided()
    params = PARAMS.model_copy(update={"k": 20})
    found = estimate(knn_graph(X[:1500], 50), params)
    more, fewer = (heldout_density(found, nearest(X[1500:], X[:1500], k), params) for k in (50, 20))
    np.testing.assert_allclose(more, fewer, rtol=1e-6)


def test_a_held_out_prompt_at_the_very_radius_is_a_near_duplicate():
    found = estimate(knn_graph(lopsided()[0][:300], 50), PARAMS)
    radius = np.float32(0.25)
    found = dataclasses.replace(
        found, scales=dataclasses.replace(found.scales, radius=float(radius))
    )
    for distance, near in ((radius, True), (np.nextafter(radius, np.float32(1)), False)):
        graph = Graph(np.array([[7, 8]]), np.array([[distance, 0.3]], dtype=np.float32))
        density = heldout_density(found, graph, PARAMS)
        assert (density[0] == found.density[7]) == near


def test_two_close_prompts_and_a_third_are_enough_for_weights():
    weights = estimate(knn_graph(circle(np.array([0.0, 0.01, 2.0])), 5), PARAMS).weights
    np.testing.assert_allclose(weights, [0.25, 0.25, 0.5], atol=0.01)


@pytest.mark.parametrize("size", [3, 80])
def test_a_held_out_copy_has_the_density_of_its_group(size):
    X, _ = with_groups(0, 1, size, 420, 1e-4)
    found = estimate(knn_graph(X, 50), PARAMS)
    other = unit(X[:5] + 1e-4)
    density = heldout_density(found, nearest(other, X, 50), PARAMS)
    assert density[:3] == pytest.approx(found.density[0], abs=0.2)  # 0 would be all alone


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), method=st.sampled_from([*METHODS, "uniform"]))
def test_counts_multiply_weights_and_nothing_else(seed, method):
    graph = with_copies(seed)
    counts = np.random.default_rng(seed).integers(1, 1000, size=len(graph))
    params = PARAMS.model_copy(update={"method": method})
    plain = estimate(graph, params)
    for power in (0.0, 0.5, 1.0):
        found = estimate(graph, params.model_copy(update={"count_power": power}), counts)
        ratio = found.weights / plain.weights
        np.testing.assert_allclose(ratio / ratio[0], (counts / counts[0]) ** power, rtol=1e-9)
        assert found.weights.sum() == pytest.approx(1, abs=1e-9)
        assert (found.density == plain.density).all()
        assert found.exponent == plain.exponent


def test_counts_weigh_identical_prompts_and_one_prompt_too():
    graph = knn_graph(circle(np.zeros(4)), 50)
    weights = density_weights(graph, counts=np.array([1, 1, 1, 1000]), count_power=1.0)
    assert weights[3] == pytest.approx(1000 / 1003)
    one = knn_graph(circle(np.zeros(1)), 50)
    assert density_weights(one, counts=np.array([7]), count_power=1.0).tolist() == [1.0]


@pytest.mark.parametrize(
    ("counts", "fault"),
    [
        (None, r"count_power = 0\.5 needs the counts"),
        (np.ones(9), r"counts of shape \(9,\) for 10 prompts"),
        (np.ones((10, 1)), r"counts of shape \(10, 1\)"),
        (np.arange(10), "1 counts are not finite and >= 1, first in row 0"),
        (np.r_[np.ones(8), np.nan, np.inf], "2 counts are not finite and >= 1, first in row 8"),
    ],
)
def test_unusable_counts_are_refused(counts, fault):
    graph = knn_graph(circle(np.linspace(0, 2, 10)), 3)
    with pytest.raises(IsodenseError, match=fault) as caught:
        density_weights(graph, k=3, counts=counts, count_power=0.5)
    assert caught.value.hint
    assert len(density_weights(graph, k=3)) == 10


def test_k_barely_matters():
    rng = np.random.default_rng(3)
    share = 1 / np.arange(1, 21)
    topic = rng.choice(20, 3000, p=share / share.sum())
    X = unit(unit(rng.normal(size=(20, 16)))[topic] + 0.15 * rng.normal(size=(3000, 16)))
    graph = knn_graph(X, 50)
    half, full = density_weights(graph, k=25), density_weights(graph, k=50)
    assert spearmanr(half, full)[0] > 0.9
    assert effective_sample_size(half) == pytest.approx(effective_sample_size(full), rel=0.02)


@pytest.mark.parametrize("noise", [0.0, 1e-4, 3e-3])
def test_a_group_larger_than_k_weighs_like_one_prompt(noise):
    X, group = with_groups(0, 1, 80, 420, noise)
    found = estimate(knn_graph(X, 50), PARAMS)
    alone = density_weights(knn_graph(np.delete(X, range(1, 80), axis=0), 50))
    assert len(np.unique(found.clusters)) == 421
    assert 0.3 < found.weights[group == 0].sum() / alone[0] < 2


@pytest.mark.parametrize("size", [51, 100])
def test_nothing_but_groups_of_copies_larger_than_k(size):
    X, group = with_groups(2, 6, size, 0, 0.0)
    X, group = np.append(X, X[:40], axis=0), np.append(group, group[:40])
    found = estimate(knn_graph(X, 50), PARAMS)
    np.testing.assert_allclose(np.bincount(group, weights=found.weights), 1 / 6)
    assert (found.density == 0).all()
    assert np.isfinite(heldout_density(found, nearest(X[:9], X, 50), PARAMS)).all()
    uniform = density_weights(knn_graph(X, 50), method="uniform")
    np.testing.assert_allclose(uniform, 1 / len(X))


EXTREMES = np.array([0, 1e-7, 1e-6, 1.1e-6, 1e-4, 1e-2, 1, 1.99, 2], dtype=np.float32)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 40),
    k=st.integers(1, 50),
    kind=st.sampled_from(["any", "few", "alike", "narrow", "shells"]),
    method=st.sampled_from([*METHODS, "uniform"]),
    bandwidth=st.sampled_from([0.01, 1.0, 10.0]),
    dup=st.sampled_from([0.0, 0.15, 1.0]),
    paraphrases=st.sampled_from([0.0, 0.5, 0.99]),
    alpha_max=st.sampled_from([0.0, 0.5, 1.25, 20.0]),
)
def test_any_distances_give_finite_density_and_weights(
    seed, n, k, kind, method, bandwidth, dup, paraphrases, alpha_max
):
    rng = np.random.default_rng(seed)
    shape = n, min(k, n - 1)
    distances = {
        "any": lambda: 10 ** rng.uniform(-7, np.log10(2), shape),
        "few": lambda: rng.choice(EXTREMES, shape),
        "alike": lambda: np.full(shape, rng.choice(EXTREMES)),  # dimension 0
        "narrow": lambda: 1 + 1e-7 * rng.integers(0, 3, shape),  # dimension a million
        "shells": lambda: np.repeat(10 ** rng.uniform(-5, 0, (n, 1)), shape[1], axis=1),
    }[kind]()
    if kind == "shells":  # dimension a million, and crowds that overflow any power of it
        distances *= 1 + 3e-7 * rng.random(shape)
    others = np.array([rng.permutation(np.delete(np.arange(n), row)) for row in range(n)])
    indices = others[:, : shape[1]].astype(np.int32)
    graph = Graph(indices, np.sort(distances.astype(np.float32), axis=1))
    params = DensityParams(
        k=k,
        method=method,
        ess=0.5,
        bandwidth=bandwidth,
        dup=dup,
        paraphrases=paraphrases,
        alpha_max=alpha_max,
        count_power=0.0,
        semdedup=0.05,
        clusters=None,
        balance_by=None,
        balance_power=1.0,
        quotas=None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimate(graph, params)
        heldout = heldout_density(found, graph, params)
    for log_count in (found.density, heldout):
        assert (log_count >= 0).all()
        assert (log_count <= np.log(n + 1) + 1e-9).all()
    assert (found.weights.astype(np.float32) > 0).all()
    assert found.weights.sum() == pytest.approx(1, abs=1e-9)
    assert np.isfinite([*dataclasses.asdict(found.scales).values(), found.exponent]).all()


def test_noise_of_many_dimensions_is_even():
    X = unit(np.random.default_rng(0).normal(size=(600, 384)))
    found = estimate(knn_graph(X, 50), PARAMS)
    assert found.scales.dimension > 30
    assert 0.3 < found.weights.min() * 600 < found.weights.max() * 600 < 3


def test_wrong_keywords_are_one_clear_error():
    graph = knn_graph(circle(np.linspace(0, 2, 6)), 5)
    with pytest.raises(IsodenseError) as caught:
        density_weights(graph, k=5, ess=1.5, method="soft")
    assert str(caught.value) == (
        "density_weights has 2 faults:\n"
        "  method: 'soft' is not one of 'soft_count', 'knn', 'balance', 'uniform', 'semdedup', "
        "'clusters'\n"
        "  ess: 1.5 is above the maximum, 1.0\n"
        "  -> correct them and call it again"
    )


def test_numbers_of_numpy_are_numbers():
    graph = knn_graph(circle(np.linspace(0, 2, 6)), 5)
    given = density_weights(graph, k=np.int64(4), ess=np.float32(0.5))
    assert np.array_equal(given, density_weights(graph, k=4, ess=0.5))
