"""Nearest-neighbour descent against the exact search, and what recall counts."""

from __future__ import annotations

import numpy as np
import pytest

from isodense.neighbors.approximate import descent
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


def test_recall_counts_the_true_neighbours_found():
    indices = np.zeros((2, 2), np.int32)
    exact = Graph(indices, np.array([[0.1, 0.2], [0.3, 0.3]], np.float32))
    found = Graph(indices, np.array([[0.1, 0.25], [0.3, 0.3]], np.float32))
    assert recall(found, exact) == 0.75


@pytest.mark.slow
def test_descent_finds_nearly_all_and_never_a_row_itself_or_twice(exact):
    graph = descent(X, 10, 2, seed=0)
    assert recall(Graph(graph.indices[ROWS], graph.distances[ROWS]), exact) > 0.95
    assert (graph.indices != np.arange(len(X))[:, None]).all()
    assert all(len(set(row)) == 10 for row in graph.indices.tolist())
