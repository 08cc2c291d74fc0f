"""The artifact holds all that was found, and its numbers are finite whatever the prompts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from isodense.density.artifact import publish, statistics, stored
from isodense.density.estimate import density_weights, estimate, heldout_density
from isodense.neighbors.build import knn_graph
from isodense.pipeline.artifact import ids_sha256, read_manifest
from isodense.pipeline.params import as_dict
from isodense.sampling.weights import load_weights
from tests.density.vectors import (
    METHODS,
    PARAMS,
    circle,
    lopsided,
    with_copies,
)


@pytest.mark.parametrize("method", [*METHODS, "uniform"])
@pytest.mark.parametrize("k", [1, 2, 20])
def test_statistics_are_finite_whatever_the_prompts(method, k):
    params = PARAMS.model_copy(update={"method": method, "k": k})
    angles = [np.zeros(1), np.array([0.0, 1]), np.arange(3.0), np.zeros(30), np.linspace(0, 2, 30)]
    for X in map(circle, angles):
        graph = knn_graph(X, 50)
        report = statistics(estimate(graph, params), graph, params)
        json.dumps(report, allow_nan=False)
        assert report["ess"] == pytest.approx(report["ess_share"] * len(X), abs=1e-3)
        assert 0 < report["min_over_mean"] <= 1 <= report["max_over_mean"]
        assert abs(report.get("rank_stability", 1)) <= 1
        defined = min(k, len(X) - 1) > 1 and np.ptp(estimate(graph, params).weights) > 1e-5 / len(X)
        assert defined or "rank_stability" not in report


def test_weights_of_half_as_many_neighbours_have_the_same_order():
    X, _ = lopsided()
    graph = knn_graph(X, 50)
    report = statistics(estimate(graph, PARAMS), graph, PARAMS)
    expected = spearmanr(density_weights(graph), density_weights(graph, k=25))[0]
    assert report["rank_stability"] == pytest.approx(expected, abs=1e-4)
    assert report["rank_stability"] > 0.9


def test_the_artifact_has_the_documented_fields(tmp_path):
    X, _ = lopsided()
    graph = knn_graph(X, 50)
    found = estimate(graph, PARAMS)
    ids = [f"{i:032x}" for i in range(len(X))]
    facts = {"dim": 2, "ids_sha256": "x", "heldout_ids_sha256": "y"}
    publish(found, np.zeros(3), np.arange(3) == 1, ids, PARAMS, facts, "0", tmp_path / "d")
    weights = np.load(tmp_path / "d" / "density_weights.npy")
    assert weights.dtype == np.float32
    assert abs(weights.sum(dtype=np.float64) - 1) < 1e-6
    assert np.load(tmp_path / "d" / "prompt_ids.npy").dtype == np.dtype("S32")
    assert np.load(tmp_path / "d" / "heldout_leaked.npy").tolist() == [False, True, False]
    manifest = read_manifest(tmp_path / "d", "density")
    for key in ("weights_min", "weights_max", "weights_mean", "weights_std", "n_prompts"):
        assert manifest[key] > 0
    assert manifest["weights_max"] == weights.max()
    assert manifest["params"] == as_dict(PARAMS)


def test_what_was_found_is_read_back(tmp_path):
    graph = with_copies(0)
    found = estimate(graph, PARAMS)
    ids = [f"{i:032x}" for i in range(len(graph))]
    facts = {"dim": 2, "ids_sha256": ids_sha256(ids), "heldout_ids_sha256": "y"}
    publish(found, np.zeros(3), np.arange(3) == 1, ids, PARAMS, facts, "0", tmp_path / "d")
    loaded = stored(load_weights(tmp_path / "d"))
    assert (loaded.scales, loaded.exponent) == (found.scales, found.exponent)
    assert loaded.clusters.dtype == np.int32
    assert (loaded.clusters == found.clusters).all()
    assert (loaded.density == found.density.astype(np.float32)).all()
    assert (loaded.weights == found.weights.astype(np.float32)).all()
    again = heldout_density(loaded, graph, PARAMS)  # as if its prompts were new ones
    np.testing.assert_allclose(again, heldout_density(found, graph, PARAMS), rtol=1e-6)
