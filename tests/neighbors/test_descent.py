"""Nearest-neighbour descent against the exact search.

What numba compiles is kept beside the source, so that only the first run compiles, half a minute.
"""

from __future__ import annotations

import numba
import numpy as np
import pytest

from isodense.neighbors import build as neighbors
from isodense.neighbors import descent
from isodense.neighbors.build import knn_graph
from isodense.neighbors.descent import STATE, Descent, descend
from isodense.neighbors.exact import nearest
from isodense.neighbors.graph import Graph, recall
from isodense.pipeline.cache import Store
from isodense.pipeline.errors import IsodenseError
from tests.neighbors.test_exact import unit
from tests.neighbors.vectors import clusters

X = clusters(8000, dim=48, count=40)
ROWS = np.arange(0, len(X), 7)
K = 10


@pytest.fixture(scope="module")
def exact():
    return nearest(X[ROWS], X, K, own=ROWS, device="cpu")


def searched(exact, aim, n_jobs=2, seed=0, entry=None):
    return descend(X, K, ROWS, exact, aim, n_jobs=n_jobs, seed=seed, entry=entry)


def of(graph, rows):
    return Graph(graph.indices[rows], graph.distances[rows])


def content(graph):
    return graph.indices.tobytes(), graph.distances.tobytes()


@pytest.mark.parametrize("aim", [0.8, 0.99])
def test_rounds_go_on_until_the_recall_is_reached(exact, aim, monkeypatch):
    rounds, real = [], Descent.round
    monkeypatch.setattr(Descent, "round", lambda self: rounds.append(1) or real(self))
    assert recall(of(searched(exact, aim), ROWS), exact) >= aim
    made = Descent(X, K, 0)
    for _ in rounds[1:]:
        real(made)
    assert recall(descent._of(made, X, ROWS, K), exact) < aim


def test_neighbours_are_sorted_others_than_the_row_and_measured_in_float64(exact):
    graph = searched(exact, 0.99)
    assert (graph.indices != np.arange(len(X))[:, None]).all()
    assert all(len(set(row)) == K for row in graph.indices.tolist())
    gaps = X[ROWS, None].astype(np.float64) - X[graph.indices[ROWS]]
    assert (graph.distances[ROWS] == np.linalg.norm(gaps, axis=2).astype(np.float32)).mean() > 0.999
    assert (np.diff(graph.distances, axis=1) >= 0).all()
    whole = (graph.indices[ROWS] == exact.indices).all(axis=1)
    assert (graph.distances[ROWS][whole] == exact.distances[whole]).all()
    assert whole.mean() > 0.8


def test_bytes_depend_on_the_seed_and_not_on_threads(exact):
    one, two, other = (content(searched(exact, 0.95, *more)) for more in ((1,), (2,), (2, 1)))
    assert one == two
    assert one != other


def test_threads_are_as_before_afterwards_and_no_more_than_there_are(exact):
    before = numba.get_num_threads()
    searched(exact, 0.5, n_jobs=10_000)
    assert numba.get_num_threads() == before


def test_a_descent_that_was_cut_off_goes_on_in_the_same_bytes(exact, tmp_path, monkeypatch):
    monkeypatch.setattr(descent, "WORTH", 0.0)
    entry = Store(tmp_path, "neighbors").entry("key")
    whole = content(searched(exact, 0.99))
    real, rounds = Descent.round, []

    def cut(self):
        if len(rounds) == 1:
            raise KeyboardInterrupt
        rounds.append(self)
        return real(self)

    monkeypatch.setattr(Descent, "round", cut)
    with pytest.raises(KeyboardInterrupt):
        searched(exact, 0.99, entry=entry)
    monkeypatch.setattr(Descent, "round", real)
    assert entry.holds(STATE)
    monkeypatch.setattr(descent, "_planted", None)  # what was kept needs no trees
    assert content(searched(exact, 0.99, entry=entry)) == whole


def test_planted_neighbours_are_found():
    centres = unit(1000, 64, seed=3)
    noise = 0.01 * np.random.default_rng(4).normal(size=(5, 1000, 64))
    near = (centres + noise).reshape(-1, 64)
    near = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    graph = knn_graph(near, 4, "pynndescent", device="cpu")
    mates = graph.indices % 1000 == (np.arange(5000) % 1000)[:, None]
    assert mates.mean() > 0.999


@pytest.mark.parametrize("rows", [2, 5, 15])
def test_few_rows_and_copies_are_no_trouble(rows):
    few = np.repeat(unit(rows, 8), 3, axis=0)
    graph = knn_graph(few, 2, "pynndescent", device="cpu")
    assert (graph.distances == 0).all()
    assert (graph.indices // 3 == np.arange(len(few))[:, None] // 3).all()


def test_a_row_with_fewer_neighbours_than_k_in_the_trees_gets_all_of_them():
    few = unit(300, 8)
    graph = knn_graph(few, 299, "pynndescent", device="cpu")
    assert (
        np.sort(graph.indices, axis=1) == [[*range(i), *range(i + 1, 300)] for i in range(300)]
    ).all()


def test_rounds_that_change_little_are_followed_by_wider_ones(exact):
    made, widths = Descent(X, K, 0), []
    while made.round():
        widths.append(made._candidates)
    assert widths == sorted(widths)
    assert widths[0] == 30
    assert made._candidates == 120
    assert recall(descent._of(made, X, ROWS, K), exact) > 0.99


def test_a_recall_below_the_floor_is_refused(monkeypatch):
    monkeypatch.setattr(Descent, "round", lambda self: False)
    with pytest.raises(IsodenseError, match=r"below neighbors\.recall_floor = 0\.97") as caught:
        knn_graph(X, K, "pynndescent", device="cpu", recall_floor=0.97)
    assert "neighbors.method: ivf" in caught.value.hint


def test_auto_takes_what_is_fastest_for_the_number_of_rows_and_the_floor():
    def chosen(rows, floor):
        return neighbors.resolve_method("auto", rows, "cpu", floor)

    limit = neighbors.EXACT_LIMIT
    assert [chosen(rows, 0.95) for rows in (2, limit, limit + 1)] == [
        "exact",
        "exact",
        "pynndescent",
    ]
    assert chosen(limit + 1, 0.99) == "ivf"
    assert neighbors.resolve_method("auto", 10**7, "cuda", 0.95) == "exact"
    assert neighbors.resolve_method("ivf", 2, "cpu", 0.95) == "ivf"
