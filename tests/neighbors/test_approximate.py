"""The inverted file against the exact search."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from isodense.neighbors.approximate import PROBES, InvertedFile, centroids
from isodense.neighbors.exact import nearest
from isodense.neighbors.graph import Graph, recall
from tests.neighbors.test_exact import unit


def clusters(n=6000, dim=24, count=60, seed=0):
    rng = np.random.default_rng(seed)
    X = unit(count, dim, seed)[rng.integers(count, size=n)] + 0.15 * rng.normal(size=(n, dim))
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)


X = clusters()
ROWS = np.arange(0, len(X), 7)


@pytest.fixture(scope="module")
def exact():
    return nearest(X[ROWS], X, 10, own=ROWS, device="cpu")


@pytest.fixture(scope="module")
def index():
    return InvertedFile(X, centroids(X, seed=0))


def test_recall_counts_the_true_neighbours_found():
    indices = np.zeros((2, 2), np.int32)
    exact = Graph(indices, np.array([[0.1, 0.2], [0.3, 0.3]], np.float32))
    found = Graph(indices, np.array([[0.1, 0.25], [0.3, 0.3]], np.float32))
    assert recall(found, exact) == 0.75


@pytest.mark.parametrize("aim", [0.8, 0.99])
def test_the_inverted_file_looks_as_far_as_it_takes(index, exact, aim):
    reached = index.tune(ROWS, exact, aim)
    assert reached == recall(index.search(X[ROWS], ROWS, 10), exact) >= aim
    before = index.probes
    index.probes = PROBES[max(PROBES.index(before) - 1, 0)]
    assert before == PROBES[0] or recall(index.search(X[ROWS], ROWS, 10), exact) < aim


def test_all_lists_give_the_exact_neighbours(index, exact):
    index.tune(ROWS, exact, 1.1)
    found = index.search(X[ROWS], ROWS, 10)
    assert recall(found, exact) == 1
    assert (found.indices == exact.indices).mean() > 0.9999
    assert (found.indices != ROWS[:, None]).all()
    held = nearest(X[ROWS] * -1, X, 10, device="cpu")
    assert recall(index.search(X[ROWS] * -1, np.full(len(ROWS), -1), 10), held) == 1


def test_the_order_is_a_permutation_that_keeps_lists_together(index):
    order = index.order()
    assert (np.sort(order) == np.arange(len(X))).all()
    near = nearest(X[order[:-1]], X, 10, device="cpu")
    together = (near.indices == order[1:, None]).any(axis=1).mean()
    assert together > 20 * 10 / len(X)


def test_bytes_ignore_threads():
    threads = faiss.omp_get_max_threads()
    found = []
    try:
        for count in (1, 2):
            faiss.omp_set_num_threads(count)
            index = InvertedFile(X, centroids(X, seed=3), probes=8)
            graph = index.search(X[:2000], np.arange(2000), 10)
            found.append((graph.indices.tobytes(), graph.distances.tobytes(), index.order()))
    finally:
        faiss.omp_set_num_threads(threads)
    assert found[0][:2] == found[1][:2]
    assert (found[0][2] == found[1][2]).all()


def test_a_list_too_short_for_k_is_searched_exactly():
    crowd = np.eye(24)[0] + 0.05 * np.random.default_rng(0).normal(size=(800, 24))
    alone = np.eye(24)[1:4]
    lonely = np.concatenate([crowd / np.linalg.norm(crowd, axis=1, keepdims=True), alone])
    lonely = lonely.astype(np.float32)
    index = InvertedFile(lonely, np.eye(24, dtype=np.float32)[:4], probes=1)
    own = np.arange(len(lonely))
    graph = index.search(lonely, own, 12)
    exact = nearest(lonely, lonely, 12, own=own, device="cpu")
    assert (graph.indices[-3:] == exact.indices[-3:]).all()
    assert (graph.indices >= 0).all()
    assert (graph.indices != own[:, None]).all()


def test_few_rows_and_copies_are_no_trouble():
    few = np.repeat(unit(3, 8), 5, axis=0)
    index = InvertedFile(few, centroids(few, seed=0))
    graph = index.search(few, np.arange(15), 14)
    assert [sorted({*row, i}) for i, row in enumerate(graph.indices.tolist())] == [
        [*range(15)]
    ] * 15
    assert (graph.distances[:, :4] == 0).all()
