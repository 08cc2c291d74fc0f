"""The soft count is the sum over all pairs, whatever k, blocks and threads."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import gamma

from isodense.density import kernel
from isodense.density.duplicates import Scales
from isodense.density.estimate import estimate
from isodense.density.kernel import balanced, soft_counts
from isodense.neighbors.build import knn_graph
from isodense.neighbors.graph import Graph
from tests.density.vectors import (
    PARAMS,
    reordered,
    thousands,
    unit,
    with_copies,
    with_groups,
)


def test_blocks_strides_and_memory_maps_change_no_byte(tmp_path, monkeypatch):
    graph = with_copies(1)
    expected = estimate(graph.first(15), PARAMS.model_copy(update={"k": 15}))
    for name in ("indices", "distances"):
        np.save(tmp_path / name, np.ascontiguousarray(getattr(graph, name)[:, :15]))
    mapped = Graph(
        *(np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in ("indices", "distances"))
    )
    for block in (1, 7, 10**6):
        monkeypatch.setattr(kernel, "BLOCK", block)
        found = estimate(mapped, PARAMS.model_copy(update={"k": 15}))
        assert found.weights.tobytes() == expected.weights.tobytes()
        assert found.density.tobytes() == expected.density.tobytes()


def all_pairs(X, rows, dim):
    """Return the Gaussian kernel of the documented width summed over all of `X`, by brute force."""
    distances = cdist(X[rows].astype(np.float64), X.astype(np.float64))
    r0 = np.median(np.partition(distances, 20, axis=1)[:, 20])  # the nearest is the row itself
    # (2π)^(dim/2) h^dim, what the kernel weighs, is the volume of a ball of radius r₀
    h = (np.pi ** (dim / 2) / gamma(dim / 2 + 1)) ** (1 / dim) * r0 / np.sqrt(2 * np.pi)
    return np.exp(-(distances**2) / (2 * h**2)).sum(axis=1)


@pytest.mark.parametrize(("dim", "n"), [(3, 3000), (4, 4000), (5, 6000), (6, 12000)])
def test_the_count_beyond_k_is_that_of_all_pairs(dim, n):
    X = unit(np.random.default_rng(dim).normal(size=(n, dim + 1)))
    graph, rows = knn_graph(X, 50), np.arange(400)
    expected = all_pairs(X, rows, dim)
    for k in (20, 50):
        ratio = np.exp(estimate(graph, PARAMS.model_copy(update={"k": k})).density[rows]) / expected
        assert np.median(ratio) == pytest.approx(1, abs=0.15)
        assert np.median(np.abs(ratio / np.median(ratio) - 1)) < 0.15


@pytest.mark.parametrize("dim", [3, 6])
def test_with_every_prompt_listed_nothing_is_added(dim):
    X = unit(np.random.default_rng(dim).normal(size=(300, dim + 1)))
    found = estimate(knn_graph(X, 299), PARAMS.model_copy(update={"k": 299, "dup": 0.0}))
    distances = cdist(X.astype(np.float64), X.astype(np.float64))
    expected = np.exp(-(distances**2) / (2 * found.scales.width**2)).sum(axis=1)
    np.testing.assert_allclose(np.exp(found.density), expected, rtol=1e-5)
    cut = estimate(knn_graph(X, 298), PARAMS.model_copy(update={"k": 298, "dup": 0.0}))
    assert (cut.density > found.density - 1e-5).mean() > 0.9  # something is, with one left out


@pytest.mark.parametrize("k", [20, 50])
def test_crowds_larger_than_k_are_told_apart(k):
    rng = np.random.default_rng(0)
    sizes = [100, 200, 400, 800, 1600]  # of one width, so density follows size
    centres = np.eye(12)[:5]
    X = unit(np.repeat(centres, sizes, axis=0) + 0.1 * rng.normal(size=(sum(sizes), 12)))
    crowd = np.repeat(np.arange(5), sizes)
    found = estimate(knn_graph(X, k), PARAMS.model_copy(update={"k": k}))
    typical = [np.median(found.density[crowd == number]) for number in range(5)]
    assert (np.diff(typical) > 0.25).all()  # log 2 each, were the tails of the kernel not wide
    mean = [found.weights[crowd == number].mean() for number in range(5)]
    assert (np.diff(mean) < 0).all()


@pytest.mark.parametrize(("groups", "size"), [(40, 15), (300, 2)])
def test_a_group_counts_as_one_neighbour(groups, size):
    X, group = with_groups(5, groups, size, 200, 0.0, dim=4)
    found = estimate(knn_graph(X, 799), PARAMS.model_copy(update={"k": 799, "dup": 0.0}))
    distinct = X[np.unique(group, return_index=True)[1]].astype(np.float64)
    width = found.scales.width
    expected = np.exp(-(cdist(X.astype(np.float64), distinct) ** 2) / (2 * width**2)).sum(axis=1)
    np.testing.assert_allclose(np.exp(found.density), expected, rtol=1e-4)


@pytest.mark.parametrize("n", [80, 150, 500])
def test_in_a_small_set_of_many_dimensions_no_more_is_counted_than_there_is(n):
    """The nearest fifty are most of the set, and the integral over all space counts many more."""
    X = unit(np.random.default_rng(n).normal(size=(n, 40)))
    graph, one, clusters = knn_graph(X, n - 1), np.ones(n), np.arange(n)
    scales = estimate(graph.first(50), PARAMS).scales
    near, _ = soft_counts(graph.first(50), clusters, one, scales, n)
    exact, _ = soft_counts(graph, clusters, one, scales, n)
    values = np.exp(-(graph.distances.astype(float) ** 2) / (2 * scales.width**2))
    listed = values[:, :50].sum(axis=1)
    assert (near >= listed).all()
    assert (near <= listed + (n - 50) * values[:, 49] + 1e-9).all()
    assert 1 <= np.median(near / exact) < 3  # without the bound 9 to 19


def test_a_group_counts_as_one_neighbour_beyond_k_too():
    X, group = with_groups(5, 300, 10, 600, 0.0, dim=4)
    found = estimate(knn_graph(X, 100), PARAMS.model_copy(update={"k": 100, "dup": 0.0}))
    distinct = X[np.unique(group, return_index=True)[1]].astype(np.float64)
    width = found.scales.width
    expected = np.exp(-(cdist(X.astype(np.float64), distinct) ** 2) / (2 * width**2)).sum(axis=1)
    ratio = np.exp(found.density) / expected
    assert np.median(ratio) == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("cores", [1, 2, 16])
def test_blocks_and_threads_change_no_byte(cores, monkeypatch):
    graph = thousands()
    expected = estimate(graph, PARAMS)
    monkeypatch.setattr(kernel.os, "cpu_count", lambda: cores)
    for block in (64, 1024, 10**6):
        monkeypatch.setattr(kernel, "BLOCK", block)
        found = estimate(graph, PARAMS)
        assert found.scales == expected.scales
        assert found.weights.tobytes() == expected.weights.tobytes()
        assert found.density.tobytes() == expected.density.tobytes()


def test_the_order_of_thousands_of_rows_changes_nothing():
    graph = thousands()
    order = np.random.default_rng(0).permutation(len(graph))
    found, other = estimate(graph, PARAMS), estimate(reordered(graph, order), PARAMS)
    np.testing.assert_allclose(other.weights, found.weights[order], rtol=1e-6)
    np.testing.assert_allclose(other.density, found.density[order], rtol=1e-6)


def test_the_count_of_one_row_by_hand():
    """Two of nine others are listed, at 0.6 and 1.0; of two dimensions, e^(-t)/t lies beyond."""
    near = Graph(np.array([[4, 7]], dtype=np.int32), np.array([[0.6, 1.0]], dtype=np.float32))
    scales = Scales(scale=1.0, radius=0.1, width=1.0, dimension=2.0)
    sizes = np.where(np.arange(10) == 7, 2, 1)  # row 7 has a near-duplicate: it counts half
    counts, seen = soft_counts(near, None, sizes, scales, 10)
    listed = np.exp(-0.18) + np.exp(-0.5) / 2
    assert counts[0] == pytest.approx(listed + 1.5 * np.exp(-0.5) / 0.5, rel=1e-6)
    assert seen.tolist() == [True]


def test_one_neighbour_outside_the_cluster_is_seen_and_none_is_not():
    """Rows 0 and 1 list each other and row 2, or each other only."""
    clusters, sizes = np.array([0, 0, 1], dtype=np.int32), np.array([2, 2, 1])
    scales = Scales(1.0, 0.1, 1.0, 0.0)
    indices = np.array([[1, 2], [0, 2], [0, 1]], dtype=np.int32)
    graph = Graph(indices, np.array([[0, 1], [0, 1], [1, 1]], dtype=np.float32))
    counts, seen = soft_counts(graph, clusters, sizes, scales, 3)
    np.testing.assert_allclose(counts, np.exp(-0.5), rtol=1e-6)  # the two count as one
    assert seen.all()
    counts, seen = soft_counts(graph.first(1), clusters, sizes, scales, 3)
    assert seen.tolist() == [False, False, True]
    np.testing.assert_allclose(counts, [0, 0, np.exp(-0.5) / 2], rtol=1e-6)


def test_balance_of_a_pair_and_a_prompt_alone_by_hand():
    """Three steps of w / mass^0.7 from 1 lead to (1 + v)^-0.973 for a pair of kernel value v."""
    indices = np.array([[1], [0], [0]], dtype=np.int32)
    graph = Graph(indices, np.array([[0.5], [0.5], [90.0]], dtype=np.float32))
    weights = balanced(graph, np.arange(3, dtype=np.int32), 0.5)
    v = np.exp(-0.5)
    expected = (1 + v) ** -(0.7 * (1 + 0.3 + 0.3**2))
    np.testing.assert_allclose(weights[:2] / weights[2], expected, rtol=1e-6)
    assert weights.sum() == pytest.approx(1)


def test_balance_takes_a_cluster_for_one_prompt():
    """Whatever the distance, a pair of near-duplicates weighs as much as the prompt beside it."""
    indices = np.array([[1, 2], [0, 2], [0, 1]], dtype=np.int32)
    graph = Graph(indices, np.array([[0, 0.7], [0, 0.7], [0.7, 0.7]], dtype=np.float32))
    weights = balanced(graph, np.array([0, 0, 1], dtype=np.int32), 0.5)
    np.testing.assert_allclose(weights, [0.25, 0.25, 0.5], rtol=1e-6)
