"""Exact neighbours against scikit-learn's, whatever the tiles; the approximate ones audited."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from isodense.errors import ArtifactError, IsodenseError
from isodense.graph import Graph, load_graph, load_heldout_graph
from isodense.neighbors import NeighborsParams, knn_graph, nearest, publish, recall
from isodense.prompts import unique_prompts
from tests.test_prompts import pair
from tests.tiny import user


def unit(n, dim=24, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_neighbours_are_scikit_learns():
    X = unit(500)
    graph = knn_graph(X, 15)
    search = NearestNeighbors(n_neighbors=16, algorithm="brute").fit(X.astype(float))
    distances, indices = search.kneighbors(X.astype(float))
    assert (np.sort(graph.indices, axis=1) == np.sort(indices[:, 1:], axis=1)).all()
    np.testing.assert_allclose(graph.distances, distances[:, 1:], atol=1e-6)
    assert graph.indices.dtype == np.int32
    assert graph.distances.dtype == np.float32


def test_copies_beyond_the_candidates_are_ordered_by_row():
    X = unit(300)
    X[50:150] = X[50]  # a hundred identical rows, more than any candidate list of k = 5
    graph = knn_graph(X, 5)
    assert graph.indices[60].tolist() == [50, 51, 52, 53, 54]
    assert graph.indices[50].tolist() == [51, 52, 53, 54, 55]
    assert (graph.distances[50:150] == 0).all()


def test_bytes_ignore_tiles_and_threads():
    X = unit(700)
    X[100:140], X[300:340] = X[100], X[200:240]
    whole = knn_graph(X, 12)
    threads = torch.get_num_threads()
    try:
        for count, block in ((1, 7), (2, 64), (1, 4096)):
            torch.set_num_threads(count)
            other = knn_graph(X, 12, block=block)
            assert other.indices.tobytes() == whole.indices.tobytes()
            assert other.distances.tobytes() == whole.distances.tobytes()
    finally:
        torch.set_num_threads(threads)


def test_rows_are_sorted_by_the_stored_distance_and_then_the_row():
    X = unit(400, dim=3, seed=5)
    graph = knn_graph(np.repeat(X, 2, axis=0), 60)
    rising = np.diff(graph.distances, axis=1)
    assert (rising >= 0).all()
    assert (np.diff(graph.indices, axis=1)[rising == 0] > 0).all()
    assert (rising == 0).sum() > 1000


def test_a_row_is_never_its_own_neighbour():
    graph = knn_graph(np.repeat(unit(1), 30, axis=0), 29)
    for row, found in enumerate(graph.indices):
        assert sorted([row, *found.tolist()]) == list(range(30))


def test_k_beyond_the_rows_gives_all_others():
    assert knn_graph(unit(4), 50).indices.shape == (4, 3)
    assert knn_graph(unit(1), 5).indices.shape == (1, 0)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda X: X.__setitem__(3, 0), "1 of 9 rows are zero, first row 3"),
        (lambda X: X.__setitem__((2, 1), np.nan), "1 of 9 rows are not finite, first row 2"),
        (lambda X: X.__imul__(2), "9 of 9 rows are not of unit length"),
    ],
)
def test_rows_that_are_not_unit_vectors_are_refused_by_name(spoil, words):
    X = unit(9)
    spoil(X)
    with pytest.raises(IsodenseError, match=words):
        knn_graph(X, 3)


def test_wrong_shapes_and_k_are_refused():
    with pytest.raises(IsodenseError, match="expected"):
        knn_graph(np.ones(5, dtype=np.float32))
    with pytest.raises(IsodenseError, match="k = 0"):
        knn_graph(unit(5), 0)


def test_recall_counts_the_true_neighbours_found():
    indices = np.zeros((3, 2), np.int32)
    exact = Graph(indices[:2], np.array([[0.1, 0.2], [0.3, 0.3]], np.float32))
    graph = Graph(indices, np.array([[0.1, 0.25], [9, 9], [0.3, 0.3]], np.float32))
    assert recall(graph, exact, np.array([0, 2])) == 0.75


def sample(n=60):
    found = unique_prompts([pair(user(f"p{i}")) for i in range(n)], 0.2)
    return found, unit(n)


def test_the_artifact_holds_train_neighbours_and_held_out_distances(tmp_path):
    prompts, X = sample()
    rng = np.random.default_rng(0)
    report = publish(
        X, prompts, NeighborsParams(5, "auto", 10, 0.9, 1), "cpu", rng, "0", tmp_path / "n"
    )
    graph, manifest = load_graph(tmp_path / "n")
    train, heldout = X[prompts.positions("train")], X[prompts.positions("heldout")]
    assert len(graph) == len(train) == manifest["rows"] == report["rows"]
    expected = np.linalg.norm(heldout[:, None].astype(float) - train[None], axis=2).min(axis=1)
    np.testing.assert_allclose(np.load(tmp_path / "n" / "heldout_nearest.npy"), expected, atol=1e-6)
    assert load_heldout_graph(tmp_path / "n").indices.shape == (len(heldout), 5)
    assert manifest["ids_sha256"] == prompts.split("train").ids_sha256
    with pytest.raises(IsodenseError, match=r"raise neighbors\.k_max"):
        graph.first(6)
    np.save(tmp_path / "n" / "indices.npy", graph.indices.T.copy())
    with pytest.raises(ArtifactError, match="disagree"):
        load_graph(tmp_path / "n")


@pytest.mark.parametrize("method", ["auto", "pynndescent"])
def test_one_training_prompt_and_no_held_out_ones_still_publish(tmp_path, method):
    prompts = unique_prompts([pair(user("only"))], 0.0)
    params = NeighborsParams(5, method, 10, 0.9, 1)
    publish(unit(1), prompts, params, "cpu", np.random.default_rng(0), "0", tmp_path / "n")
    assert load_graph(tmp_path / "n")[0].indices.shape == (1, 0)
    assert len(load_heldout_graph(tmp_path / "n")) == 0


def test_approximate_neighbours_are_audited_and_a_poor_graph_fails(tmp_path, monkeypatch):
    prompts = unique_prompts([pair(user(f"p{i}")) for i in range(1200)], 0.05)
    X, rng = unit(1200, dim=8), np.random.default_rng(0)
    params = NeighborsParams(10, "pynndescent", 200, 0.9, 1)
    report = publish(X, prompts, params, "cpu", rng, "0", tmp_path / "n")
    assert report["method"] == "pynndescent"
    assert 0.9 <= report["recall"] <= 1
    graph, _ = load_graph(tmp_path / "n")
    assert (graph.indices >= 0).all()
    assert (graph.indices != np.arange(len(graph))[:, None]).all()
    rows = np.arange(0, len(graph), 7)
    train = X[prompts.positions("train")]
    assert recall(graph, nearest(train[rows], train, 10, own=rows), rows) > 0.9
    poor = Graph(graph.indices, graph.distances * 1.5)
    monkeypatch.setattr("isodense.neighbors._approximate", lambda *_: poor)
    with pytest.raises(IsodenseError, match=r"below|not 0\.9") as caught:
        publish(X, prompts, params, "cpu", rng, "0", tmp_path / "m")
    assert "neighbors.method: exact" in str(caught.value)
    assert not (tmp_path / "m").exists()
