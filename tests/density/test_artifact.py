"""The artifact holds all that was found, and its numbers are finite whatever the prompts."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import spearmanr

from isodense.density.artifact import publish, statistics, stored
from isodense.density.balance import effective_sample_size
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
    opinion = {"case": "even", "moved": 0.1}
    publish(found, np.zeros(3), np.arange(3) == 1, ids, PARAMS, opinion, facts, "0", tmp_path / "d")
    weights = np.load(tmp_path / "d" / "density_weights.npy")
    assert weights.dtype == np.float32
    assert abs(weights.sum(dtype=np.float64) - 1) < 1e-6
    assert np.load(tmp_path / "d" / "prompt_ids.npy").dtype == np.dtype("S32")
    assert np.load(tmp_path / "d" / "heldout_leaked.npy").tolist() == [False, True, False]
    manifest = read_manifest(tmp_path / "d", "density")
    wide = weights.astype(np.float64)
    expected = {
        "n_prompts": len(X),
        "embedding_dim": 2,
        "weights_min": weights.min(),
        "weights_max": weights.max(),
        "weights_mean": wide.mean(),
        "weights_std": wide.std(),
        "ess": effective_sample_size(weights),
        "exponent": found.exponent,
        "opinion": opinion,
        **asdict(found.scales),
        "ids_sha256": "x",
        "heldout_ids_sha256": "y",
        "params": as_dict(PARAMS),
        "inputs": {"neighbors": "0"},
    }
    assert {name: manifest[name] for name in expected} == expected
    assert np.load(tmp_path / "d" / "heldout_density.npy").dtype == np.float32


def test_metrics_are_what_was_found_with_the_documented_digits():
    graph = with_copies(0)
    found = estimate(graph, PARAMS)
    report = statistics(found, graph, PARAMS)
    assert report["exponent"] == round(found.exponent, 6) > 0
    assert report["scale"] == round(found.scales.scale, 6) > 0
    assert report["intrinsic_dimension"] == round(found.scales.dimension, 3) > 0


def test_stability_compares_with_the_same_counts():
    graph, params = with_copies(0).first(2), PARAMS.model_copy(update={"count_power": 1.0, "k": 2})
    counts = np.arange(1, len(graph) + 1) ** 3.0  # outweigh the density, whatever k
    found = estimate(graph, params, counts)
    assert statistics(found, graph, params, counts)["rank_stability"] > 0.95


def test_what_was_found_is_read_back(tmp_path):
    graph = with_copies(0)
    found = estimate(graph, PARAMS)
    ids = [f"{i:032x}" for i in range(len(graph))]
    facts = {"dim": 2, "ids_sha256": ids_sha256(ids), "heldout_ids_sha256": "y"}
    opinion = {"case": "even", "moved": 0.1}
    publish(found, np.zeros(3), np.arange(3) == 1, ids, PARAMS, opinion, facts, "0", tmp_path / "d")
    loaded = stored(load_weights(tmp_path / "d"))
    assert (loaded.scales, loaded.exponent) == (found.scales, found.exponent)
    assert loaded.clusters.dtype == np.int32
    assert (loaded.clusters == found.clusters).all()
    assert (loaded.density == found.density.astype(np.float32)).all()
    assert (loaded.weights == found.weights.astype(np.float32)).all()
    again = heldout_density(loaded, graph, PARAMS)  # as if its prompts were new ones
    np.testing.assert_allclose(again, heldout_density(found, graph, PARAMS), rtol=1e-6)
