"""The inverted file searched by matrix products, against the exact search."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from isodense.neighbors.blocks import merged
from isodense.neighbors.exact import nearest
from isodense.neighbors.graph import Graph, recall
from isodense.neighbors.lists import InMemory, Lists, Slice, enough_probes, sort_to_disk, unit
from tests.neighbors.test_exact import unit as random_rows
from tests.neighbors.vectors import clusters

K = 10
X = clusters()
ROWS = np.arange(0, len(X), 7)


def pieces(X, size=1000):
    return lambda: (X[start : start + size] for start in range(0, len(X), size))


def fitted(X, seed=0, **settings):
    return Lists.fit(pieces(X), len(X), seed, **settings)


def found(lists, X, k, probes, **settings):
    rows = InMemory(X, lists.order)
    graph = lists.search(rows, X, np.arange(len(X)), k, probes, **settings)
    return graph


def same(one, two):
    return (one.indices == two.indices).all() and (one.distances == two.distances).all()


@pytest.fixture(scope="module")
def lists():
    return fitted(X)


@pytest.fixture(scope="module")
def exact():
    return nearest(X[ROWS], X, K, own=ROWS, device="cpu")


def test_every_row_is_in_the_list_of_its_nearest_centroid(lists):
    assert len(lists) == len(X) // 16
    assert (np.sort(lists.order) == np.arange(len(X))).all()
    assert lists.offsets[[0, -1]].tolist() == [0, len(X)]
    home = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
    nearest_list = (X[lists.order] @ lists.centroids.T).argmax(axis=1)
    assert (home == nearest_list).mean() > 0.97  # others are in a cell not looked into
    for start, stop in zip(lists.offsets[:-1], lists.offsets[1:], strict=True):
        assert (np.diff(lists.order[start:stop]) > 0).all()


def test_adjacent_rows_in_the_order_are_near(lists):
    near = nearest(X[lists.order[:-1]], X, K, device="cpu")
    together = (near.indices == lists.order[1:, None]).any(axis=1).mean()
    assert together > 20 * K / len(X)


def test_all_lists_give_the_exact_neighbours_bit_by_bit(lists, exact):
    rows = InMemory(X, lists.order)
    assert same(lists.search(rows, X[ROWS], ROWS, K, len(lists)), exact)
    held = nearest(-X[ROWS], X, K, device="cpu")
    none = np.full(len(ROWS), -1)
    assert same(lists.search(rows, -X[ROWS], none, K, len(lists)), held)


@pytest.mark.parametrize("aim", [0.8, 0.95, 0.99])
def test_as_many_lists_are_probed_as_a_recall_takes(lists, exact, aim):
    probes, reached = enough_probes(lists, X[ROWS], exact.indices, aim)
    assert aim <= reached < 1
    graph = lists.search(InMemory(X, lists.order), X[ROWS], ROWS, K, probes)
    assert recall(graph, exact) == pytest.approx(reached, abs=1e-3)
    fewer = lists.search(InMemory(X, lists.order), X[ROWS], ROWS, K, int(probes / 1.3))
    assert recall(fewer, exact) < aim


def test_a_recall_of_one_takes_all_lists(lists, exact):
    assert enough_probes(lists, X[ROWS], exact.indices, 1.0) == (len(lists), 1.0)


def test_bytes_ignore_threads_blocks_and_the_order_of_queries(lists):
    graph = found(lists, X, K, 8)
    for block, threads in ((8192, 1), (77, 2), (1500, 1)):
        with threadpool_limits(threads):
            assert same(found(lists, X, K, 8, block=block), graph)
    rows, shuffled = InMemory(X, lists.order), np.random.default_rng(0).permutation(len(X))
    other = lists.search(rows, X[shuffled], shuffled, K, 8, block=900)
    assert (other.indices == graph.indices[shuffled]).all()
    assert (other.distances == graph.distances[shuffled]).all()


def test_lists_ignore_threads_and_the_size_of_pieces_read(tmp_path):
    stored = []
    for number, (threads, size) in enumerate(((1, 6000), (2, 6000), (2, 999))):
        with threadpool_limits(threads):
            Lists.fit(pieces(X, size), len(X), 3).save(tmp_path / f"{number}")
        stored.append((tmp_path / f"{number}").read_bytes())
    assert stored[0] == stored[1] == stored[2]
    loaded = Lists.load(tmp_path / "0")
    assert same(found(loaded, X, K, 8), found(fitted(X, 3), X, K, 8))


def test_vectors_on_disk_give_the_graph_of_those_in_memory(tmp_path):
    half = X.astype(np.float16)
    whole = unit(half)
    lists = fitted(whole)
    rows = sort_to_disk(pieces(half), lists, tmp_path / "rows", slab=1700)
    assert (tmp_path / "rows").stat().st_size == half.nbytes
    graph = lists.search(rows, whole, np.arange(len(X)), K, 8, block=1000)
    assert same(graph, found(lists, whole, K, 8))
    some = np.array([0, 1, 2, 50, 51, 5999])
    assert (rows.take(some) == whole[lists.order[some]]).all()


def test_ties_go_by_row_number_and_copies_are_neighbours():
    many = np.repeat(random_rows(40, 8), 25, axis=0)[np.random.default_rng(0).permutation(1000)]
    lists = fitted(many)
    graph = found(lists, many, K, 2)
    exact = nearest(many, many, K, own=np.arange(1000), device="cpu")
    assert same(graph, exact)
    assert (graph.distances == 0).all()
    assert (np.diff(graph.indices, axis=1) > 0).all()


def test_a_query_whose_lists_hold_too_few_rows_looks_into_all():
    crowd = np.eye(24)[0] + 0.05 * np.random.default_rng(0).normal(size=(800, 24))
    lonely = unit(np.concatenate([crowd, np.eye(24)[1:4]]))
    lists = fitted(lonely)
    graph = found(lists, lonely, 12, 1)
    exact = nearest(lonely, lonely, 12, own=np.arange(len(lonely)), device="cpu")
    assert (graph.indices[-3:] == exact.indices[-3:]).all()
    assert (graph.indices != np.arange(len(lonely))[:, None]).all()


@pytest.mark.parametrize("count", [2, 3, 15, 33])
def test_few_rows_are_in_one_list_or_two(count):
    few = random_rows(count, 8)
    lists = fitted(few)
    assert len(lists) <= 2
    exact = nearest(few, few, count - 1, own=np.arange(count), device="cpu")
    assert same(found(lists, few, count - 1, 1), exact)
    assert same(found(lists, few, 1, len(lists)), nearest(few, few, 1, own=np.arange(count)))


def test_no_queries_and_no_neighbours_are_an_empty_graph(lists):
    rows = InMemory(X, lists.order)
    assert lists.search(rows, X[:0], ROWS[:0], K, 3).indices.shape == (0, K)
    assert lists.search(rows, X[:5], ROWS[:5], 0, 3).indices.shape == (5, 0)


@pytest.mark.parametrize("most", [1, 40, 700, len(X) - 1])
@pytest.mark.parametrize("probes", [1, 4])
def test_slices_together_find_what_all_rows_give(lists, most, probes):
    slices = lists.slices(most)
    assert [place for part in slices for place in part] == list(range(len(X)))
    assert all(len(part) <= max(most, np.diff(lists.offsets).max()) for part in slices)
    assert all({part.start, part.stop} <= set(lists.offsets.tolist()) for part in slices)
    asked, own = X[ROWS], np.where(ROWS % 2, ROWS, -1)
    whole = lists.search(InMemory(X, lists.order), asked, own, K, probes)
    graph = None
    for part in slices if most > 1 else slices[::9]:
        rows = Slice(X[lists.order[part.start : part.stop]], part.start)
        one = lists.search(rows, asked, own, K, probes, within=part)
        assert np.array_equal(one.indices < 0, np.isinf(one.distances))
        assert np.isin(one.indices[one.indices >= 0], lists.order[part.start : part.stop]).all()
        graph = merged(graph, one) if graph else one
    if most > 1:
        assert same(graph, whole)


def test_more_copies_than_candidates_are_all_compared():
    """Float32 cannot rank 300 rows within its rounding error of each other, float64 can."""
    rng = np.random.default_rng(1)
    X = unit(rng.normal(size=(1, 24)) + 1e-6 * rng.normal(size=(300, 24)))
    X = np.concatenate([X, random_rows(700, 24)])
    lists = fitted(X)
    exact = nearest(X, X, K, own=np.arange(1000), device="cpu")
    assert same(found(lists, X, K, len(lists)), exact)
    part = found(lists, X, K, 2)
    assert same(part, found(lists, X, K, 2, block=64))


def test_recall_counts_the_true_neighbours_found():
    indices = np.zeros((2, 2), np.int32)
    exact = Graph(indices, np.array([[0.1, 0.2], [0.3, 0.3]], np.float32))
    found = Graph(indices, np.array([[0.1, 0.25], [0.3, 0.3]], np.float32))
    assert recall(found, exact) == 0.75
