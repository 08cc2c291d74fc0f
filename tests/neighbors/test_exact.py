"""Exact neighbours against scikit-learn's and brute force, whatever the tiles and threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from isodense.neighbors import exact
from isodense.neighbors.exact import Exact, nearest


def unit(n, dim=24, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def every(X, k, **settings):
    return nearest(X, X, k, own=np.arange(len(X)), device="cpu", **settings)


def brute(queries, X, k, own):
    """Order all rows by (distance as stored, row), the query's own left out."""
    gap = queries[:, None].astype(np.float64) - X[None].astype(np.float64)
    distances = np.sqrt((gap**2).sum(axis=2)).astype(np.float32)
    distances[np.flatnonzero(own >= 0), own[own >= 0]] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, axis=1)


def test_neighbours_are_scikit_learns():
    X = unit(3000)
    graph = every(X, 15)
    search = NearestNeighbors(n_neighbors=16, algorithm="brute").fit(X.astype(float))
    distances, indices = search.kneighbors(X.astype(float))
    assert (np.sort(graph.indices, axis=1) == np.sort(indices[:, 1:], axis=1)).all()
    np.testing.assert_allclose(graph.distances, distances[:, 1:], atol=1e-6)
    assert graph.indices.dtype == np.int32
    assert graph.distances.dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(2, 40),
    copies=st.integers(1, 4),
    dim=st.integers(1, 5),
    k=st.integers(1, 60),
    tile=st.sampled_from([8, 16, 2048]),
    seed=st.integers(0, 1000),
)
def test_any_set_gives_the_neighbours_of_brute_force(rows, copies, dim, k, tile, seed):
    X = np.repeat(unit(rows, dim, seed), copies, axis=0)
    k = min(k, len(X) - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "TILE", tile)
        graph = every(X, k, block=7)
    indices, distances = brute(X, X, k, np.arange(len(X)))
    np.testing.assert_array_equal(graph.distances, distances)
    np.testing.assert_array_equal(graph.indices, indices)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(2, 60),
    dim=st.integers(1, 4),
    k=st.sampled_from([1, 2, 5, 8, 40, 58, 60]),
    tile=st.sampled_from([2, 8, 16, 32]),
    block=st.sampled_from([1, 7, 1024]),
    seed=st.integers(0, 1000),
)
def test_many_equal_scores_and_queries_with_and_without_a_row_of_their_own(
    rows, dim, k, tile, block, seed
):
    rng = np.random.default_rng(seed)
    X = np.zeros((rows, dim), dtype=np.float32)  # scores are -1, 0 (of both signs) and 1 only
    X[np.arange(rows), rng.integers(0, dim, rows)] = rng.choice([-1, 1], rows)
    X[(X == 0) & (rng.random(X.shape) < 0.5)] = -0.0
    asked = rng.integers(0, rows, 20)
    own = np.where(rng.random(20) < 0.5, asked, -1)
    k = min(k, rows - bool((own >= 0).any()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "TILE", tile)
        graph = nearest(X[asked], X, k, own=own, device="cpu", block=block)
    indices, distances = brute(X[asked], X, k, own)
    np.testing.assert_array_equal(graph.distances, distances)
    np.testing.assert_array_equal(graph.indices, indices)


@pytest.mark.parametrize("k", [1, 3, 37, 38, 39, 46, 47])
def test_queries_from_elsewhere_leave_no_row_out(k):
    X, queries = unit(47, 6), unit(9, 6, seed=1)
    graph = nearest(queries, X, k, device="cpu")
    assert (graph.indices == brute(queries, X, k, np.full(9, -1))[0]).all()
    own = np.array([4, -1, -1, 0, 46, -1, -1, -1, -1])
    graph = nearest(queries, X, min(k, 46), own=own, device="cpu")
    assert (graph.indices == brute(queries, X, min(k, 46), own)[0]).all()


def test_copies_beyond_the_candidates_are_ordered_by_row():
    X = unit(300)
    X[50:150] = X[50]  # a hundred identical rows, more than any candidate list of k = 5
    graph = every(X, 5)
    assert graph.indices[60].tolist() == [50, 51, 52, 53, 54]
    assert graph.indices[50].tolist() == [51, 52, 53, 54, 55]
    assert (graph.distances[50:150] == 0).all()


def test_a_crowd_nearer_than_float32_can_tell_is_measured_in_full():
    rng = np.random.default_rng(0)
    X = unit(2500, 48)
    crowd = X[0] + 3e-5 * rng.normal(size=(400, 48))  # scores differ by less than their rounding
    X[1000:1400] = crowd / np.linalg.norm(crowd, axis=1, keepdims=True)
    graph = every(X, 10)
    rows = np.arange(1000, 1400, 20)
    indices, distances = brute(X[rows], X, 10, rows)
    np.testing.assert_array_equal(graph.indices[rows], indices)
    np.testing.assert_array_equal(graph.distances[rows], distances)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("asked", [600, 599])  # all rows, which are scored among each other, or not
def test_scores_as_wrong_as_float32_allows_change_nothing(monkeypatch, sign, asked):
    X = unit(600, 256)
    X[100:160] = X[100] + 1e-4 * unit(60, 256, seed=2)
    X[100:160] /= np.linalg.norm(X[100:160], axis=1, keepdims=True)
    real, worst = exact._product, np.float32(sign * 256 * 2.0**-24)

    def wrong(queries, rows, memory):
        tile = real(queries, rows, memory)
        tile[::2, ::2] += worst
        tile[1::2, 1::2] += worst
        tile[::2, 1::2] -= worst
        tile[1::2, ::2] -= worst
        return tile

    monkeypatch.setattr(exact, "_product", wrong)
    found = nearest(X[:asked], X, 10, own=np.arange(asked), device="cpu", block=77)
    indices, distances = brute(X[:asked], X, 10, np.arange(asked))
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.distances, distances)


@pytest.mark.parametrize("blocks", range(1, 8))
def test_rows_among_each_other_meet_once(monkeypatch, blocks):
    X, seen = unit(10 * blocks - 3), []
    real = exact._product

    def watched(queries, rows, memory):
        seen.append((len(queries), len(rows)))
        return real(queries, rows, memory)

    monkeypatch.setattr(exact, "_product", watched)
    graph = every(X, 5, block=10)
    assert (graph.indices == brute(X, X, 5, np.arange(len(X)))[0]).all()
    assert len(seen) == blocks * (blocks + 1) // 2


def test_bytes_ignore_tiles_and_threads(monkeypatch):
    X = unit(5000)
    X[100:140], X[300:340] = X[100], X[200:240]
    whole = every(X, 12)
    for threads, block, tile in ((1, 7, 2048), (2, 64, 64), (1, 4096, 512)):
        monkeypatch.setattr(exact, "TILE", tile)
        with threadpool_limits(threads, user_api="blas"):
            other = every(X[:2000] if block == 7 else X, 12, block=block)
        expected = every(X[:2000], 12) if block == 7 else whole
        assert other.indices.tobytes() == expected.indices.tobytes()
        assert other.distances.tobytes() == expected.distances.tobytes()


def test_rows_sorted_towards_a_query_do_not_swamp_the_merge():
    angles = np.linspace(3, 0, 9000)  # each tile beats the last one
    X = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    graph = every(X, 4)
    assert graph.indices[-1].tolist() == [8998, 8997, 8996, 8995]
    assert sorted(graph.indices[4000].tolist()) == [3998, 3999, 4001, 4002]


def test_rows_are_sorted_by_the_stored_distance_and_then_the_row():
    X = unit(400, dim=3, seed=5)
    graph = every(np.repeat(X, 2, axis=0), 60)
    rising = np.diff(graph.distances, axis=1)
    assert (rising >= 0).all()
    assert (np.diff(graph.indices, axis=1)[rising == 0] > 0).all()
    assert (rising == 0).sum() > 1000


def test_a_row_is_never_its_own_neighbour():
    graph = every(np.repeat(unit(1), 30, axis=0), 29)
    for row, found in enumerate(graph.indices):
        assert sorted([row, *found.tolist()]) == list(range(30))


def test_finished_queries_are_reported_as_they_come():
    done, X = [], unit(50)
    nearest(unit(25, seed=1), X, 3, device="cpu", block=10, done=done.append)
    assert done == [10, 10, 5]
    done[:] = []
    every(X, 3, block=20, done=done.append)
    assert done == [20, 20, 10]


def test_an_interrupt_drops_what_is_not_begun():
    def stop(_):
        raise KeyboardInterrupt

    begun = []
    X = unit(64)
    searching = Exact(X, "cpu")
    score = searching._scorer
    searching._scorer = lambda X, size: lambda q, own: begun.append(1) or score(X, size)(q, own)
    with pytest.raises(KeyboardInterrupt):
        searching.nearest(np.repeat(X, 50, axis=0), 3, block=4, done=stop)
    assert len(begun) < 400


@pytest.mark.gpu
def test_a_gpu_gives_the_bytes_of_a_cpu():
    X = unit(20_000, 64)
    X[100:300] = X[100]
    one, two = every(X, 20), nearest(X, X, 20, own=np.arange(len(X)), device="cuda")
    assert one.indices.tobytes() == two.indices.tobytes()
    assert one.distances.tobytes() == two.distances.tobytes()
