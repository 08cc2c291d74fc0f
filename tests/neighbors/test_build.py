"""The neighbour graph as an artifact: methods, audit, resumption, ranks, growth."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from isodense.neighbors import blocks
from isodense.neighbors import build as neighbors
from isodense.neighbors.build import knn_graph, publish
from isodense.neighbors.exact import nearest
from isodense.neighbors.graph import Graph, load_graph, load_heldout_graph, recall
from isodense.neighbors.params import NeighborsParams
from isodense.pipeline.artifact import ids_sha256, publishing, write_manifest
from isodense.pipeline.errors import ArtifactError, IsodenseError
from isodense.prompts.reader import load_columns
from tests.cached import CHANGES, change
from tests.damage import reseal
from tests.neighbors.test_exact import unit
from tests.tables import write_prompts

STAGE = Path(__file__).resolve().parents[2] / "stages" / "neighbors.py"
HELDOUT = 10  # one prompt of so many


def artifacts(folder, X):
    """Write artifacts of prompts and embeddings with the rows of `X`."""
    ids = [f"{row:032x}" for row in range(len(X))]
    rows = (
        {"id": name, "count": 1, "sources": {}, "split": "train" if row % HELDOUT else "heldout"}
        for row, name in enumerate(ids, 1)
    )
    write_prompts(folder / "prompts", rows)
    known = {"rows": len(X), "ids_sha256": ids_sha256(ids)}
    with publishing(folder / "embeddings") as out:
        for number, start in enumerate(range(0, max(len(X), 1), 64)):
            np.save(out / f"shard-{number:05d}.npy", X[start : start + 64])
        write_manifest(out, "embeddings", **known, dim=X.shape[1])


def run(folder, params, out="out", cache="cache", seed=0, **more):
    prompts = load_columns(folder / "prompts")
    embeddings = folder / "embeddings"
    return publish(embeddings, prompts, params, "cpu", seed, folder / cache, folder / out, **more)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


EXACT = NeighborsParams(
    k_max=5, method="auto", recall_sample=200, recall_floor=0.9, n_jobs=1, rows_per_slice=1000
)
IVF = NeighborsParams(
    k_max=10, method="ivf", recall_sample=200, recall_floor=0.9, n_jobs=1, rows_per_slice=1000
)


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


@pytest.mark.slow
def test_auto_is_exact_for_few_rows_and_audited_beyond(monkeypatch):
    X = unit(2000, 8)
    exact = knn_graph(X, 5, device="cpu")
    assert recall(exact, nearest(X, X, 5, own=np.arange(2000), device="cpu")) == 1
    monkeypatch.setattr(neighbors, "EXACT_LIMIT", 1999)
    monkeypatch.setattr(neighbors, "nearest", lambda *a, **b: nearest(*a, **b, done=str))
    found = knn_graph(X, 5, device="cpu", recall_floor=0.9)
    assert 0.92 <= recall(found, exact) < 1
    whole = knn_graph(X, 5, device="cpu", recall_floor=1.0)
    assert recall(whole, exact) == 1


def test_the_artifact_holds_train_neighbours_and_held_out_distances(tmp_path):
    X = unit(60)
    artifacts(tmp_path, X)
    report = run(tmp_path, EXACT)
    graph, manifest = load_graph(tmp_path / "out")
    prompts = load_columns(tmp_path / "prompts")
    train, heldout = X[prompts.positions("train")], X[prompts.positions("heldout")]
    assert len(graph) == len(train) == manifest["rows"] == report["rows"] == 54
    expected = np.linalg.norm(heldout[:, None].astype(float) - train[None], axis=2).min(axis=1)
    near = load_heldout_graph(tmp_path / "out")
    np.testing.assert_allclose(near.distances[:, 0], expected, atol=1e-6)
    assert near.indices.shape == near.distances.shape == (len(heldout), 5)
    assert manifest["ids_sha256"] == prompts.split("train").ids_sha256
    assert manifest["recall"] == report["recall"] == 1
    assert manifest["params"]["method"] == "auto"
    with pytest.raises(IsodenseError, match=r"raise neighbors\.k_max"):
        graph.first(6)
    np.save(tmp_path / "out" / "indices.npy", graph.indices.T.copy())
    reseal(tmp_path / "out")
    with pytest.raises(ArtifactError, match="disagree"):
        load_graph(tmp_path / "out")


def test_float16_shards_are_made_unit_again(tmp_path):
    X = unit(60).astype(np.float16)
    artifacts(tmp_path, X)
    run(tmp_path, EXACT)
    rows = X.astype(np.float64)
    whole = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    graph = exact_graph(tmp_path, whole, 5)
    assert (load_graph(tmp_path / "out")[0].indices == graph.indices).all()


def exact_graph(folder, X, k):
    train = X[load_columns(folder / "prompts").positions("train")]
    return nearest(train, train, k, own=np.arange(len(train)), device="cpu")


@pytest.mark.parametrize("method", ["auto", "ivf", "pynndescent"])
def test_one_training_prompt_and_no_held_out_ones_still_publish(tmp_path, method):
    artifacts(tmp_path, unit(1))
    run(
        tmp_path,
        NeighborsParams(
            k_max=5,
            method=method,
            recall_sample=10,
            recall_floor=0.9,
            n_jobs=1,
            rows_per_slice=1000,
        ),
    )
    assert load_graph(tmp_path / "out")[0].indices.shape == (1, 0)
    assert len(load_heldout_graph(tmp_path / "out")) == 0


@pytest.mark.parametrize("method", ["ivf", "pynndescent"])
def test_approximate_neighbours_are_audited_and_a_poor_graph_fails(tmp_path, method, monkeypatch):
    X = unit(1500, dim=8)
    artifacts(tmp_path, X)
    params = NeighborsParams(
        k_max=10, method=method, recall_sample=200, recall_floor=0.9, n_jobs=1, rows_per_slice=1000
    )
    report = run(tmp_path, params)
    graph, manifest = load_graph(tmp_path / "out")
    assert report["method"] == manifest["method"] == method
    assert 0.9 <= report["recall"] <= 1
    assert (graph.indices != np.arange(len(graph))[:, None]).all()
    assert recall(graph, exact_graph(tmp_path, X, 10)) == pytest.approx(report["recall"], abs=0.05)
    poor = Graph(graph.indices, graph.distances * 1.5)
    monkeypatch.setattr(neighbors, "search_blocks", lambda *_: [poor, Graph.empty(150, 10)])
    with pytest.raises(IsodenseError, match=r"below neighbors\.recall_floor = 0\.9") as caught:
        run(tmp_path, params, out="poor")
    assert "neighbors.method: exact" in str(caught.value)
    assert not (tmp_path / "poor").exists()


def test_an_audit_that_fails_loses_no_block(tmp_path, monkeypatch):
    artifacts(tmp_path, unit(1500, dim=8))
    monkeypatch.setattr(neighbors, "_audited", lambda *_: pytest.fail("audit"))
    with pytest.raises(pytest.fail.Exception):
        run(tmp_path, IVF)
    assert len(list((tmp_path / "cache").rglob("*-0*.safetensors"))) == 2
    monkeypatch.undo()
    monkeypatch.setattr(blocks, "exact_search", lambda *_: pytest.fail("all is there"))
    monkeypatch.setattr(neighbors, "_ivf_search", lambda *_: pytest.fail("all is there"))
    run(tmp_path, IVF)


@pytest.mark.parametrize("what", [*CHANGES, "vectors", "k_max", "seed"])
def test_a_cut_search_goes_on_only_where_all_that_shapes_it_is_the_same(
    tmp_path, what, monkeypatch
):
    artifacts(tmp_path, unit(300, dim=8))
    params, seed, found = IVF, 0, []
    real = neighbors.search_blocks

    def cut(*given):  # all blocks are there, and nothing is published
        real(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(neighbors, "search_blocks", cut)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, params)
    search = neighbors._ivf_search
    monkeypatch.setattr(neighbors, "_ivf_search", lambda *given: found.append(1) or search(*given))
    run(tmp_path, params, out="same")
    assert not found
    if what == "vectors":
        shutil.rmtree(tmp_path / "embeddings")
        shutil.rmtree(tmp_path / "prompts")
        artifacts(tmp_path, unit(300, dim=8)[::-1])
    elif what == "k_max":
        params = params.model_copy(update={"k_max": 9})
    elif what == "seed":
        seed = 1
    elif what == "code":
        monkeypatch.setitem(neighbors.RECIPES, "ivf", 99)
    else:
        change(what, "isodense.neighbors.build", "faiss-cpu", monkeypatch)
    run(tmp_path, params, out="other", seed=seed)
    assert found == [1]


def test_the_audit_is_on_other_rows_than_the_tuning(tmp_path, monkeypatch):
    artifacts(tmp_path, unit(1500, dim=8))
    seen = []
    real = neighbors._exact
    monkeypatch.setattr(
        neighbors,
        "_exact",
        lambda side, *given: seen.append((side.name, set(given[1]))) or real(side, *given),
    )
    run(tmp_path, IVF)
    (_, tuned), (_, audited), (heldout, last) = seen
    assert len(tuned) == len(audited) == 200
    assert len(tuned & audited) < 60
    assert heldout == "heldout"
    assert len(last) == 150


@pytest.mark.parametrize("limit", [10**6, 400])
def test_descent_leaves_held_out_prompts_to_the_cheaper_of_two_searches(
    tmp_path, limit, monkeypatch
):
    X = unit(1500, dim=8)
    artifacts(tmp_path, X)
    monkeypatch.setattr(neighbors, "EXACT_LIMIT", limit)
    params = IVF.model_copy(update={"method": "pynndescent"})
    report = run(tmp_path, params)
    rows = load_columns(tmp_path / "prompts").positions("heldout")
    train = X[load_columns(tmp_path / "prompts").positions("train")]
    near, exact = load_heldout_graph(tmp_path / "out"), nearest(X[rows], train, 10, device="cpu")
    share = recall(Graph(near.indices, near.distances), exact)
    assert report["method"] == "pynndescent"
    assert report["recall"] >= 0.9
    assert share == 1 if limit == 10**6 else 0.9 <= share < 1


def test_poor_neighbours_of_held_out_prompts_fail(tmp_path, monkeypatch):
    X = unit(1500, dim=8)
    artifacts(tmp_path, X)
    train = exact_graph(tmp_path, X, 10)
    poor = Graph(np.zeros((150, 10), np.int32), np.full((150, 10), 2.0, np.float32))
    monkeypatch.setattr(neighbors, "search_blocks", lambda *_: [train, poor])
    with pytest.raises(IsodenseError, match=r"found 0\.000 of the true neighbours"):
        run(tmp_path, IVF)


def test_n_jobs_is_no_reason_to_search_again(tmp_path, monkeypatch):
    artifacts(tmp_path, unit(1500, dim=8))
    params = IVF.model_copy(update={"method": "pynndescent"})
    run(tmp_path, params)
    monkeypatch.setattr(neighbors, "descend", lambda *_, **__: pytest.fail("it is there"))
    run(tmp_path, params.model_copy(update={"n_jobs": 2}), out="two")
    assert content(tmp_path / "out")["indices.npy"] == content(tmp_path / "two")["indices.npy"]


def test_other_params_never_take_the_blocks_of_these(tmp_path):
    X = unit(300)
    artifacts(tmp_path, X)
    run(tmp_path, EXACT)
    run(
        tmp_path,
        NeighborsParams(
            k_max=9,
            method="auto",
            recall_sample=200,
            recall_floor=0.9,
            n_jobs=1,
            rows_per_slice=1000,
        ),
        out="wider",
    )
    assert (load_graph(tmp_path / "wider")[0].indices == exact_graph(tmp_path, X, 9).indices).all()


def test_a_damaged_file_of_centroids_is_made_again(tmp_path):
    artifacts(tmp_path, unit(1500, dim=8))
    run(tmp_path, IVF)
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.unlink() if path.name.startswith("train") else path.write_bytes(b"cut")
    run(tmp_path, IVF, out="again")
    assert content(tmp_path / "again") == content(tmp_path / "out")


def test_unusable_vectors_are_named_with_their_prompt(tmp_path):
    X = unit(60)
    X[33] = 0
    artifacts(tmp_path, X)
    with pytest.raises(IsodenseError, match=f"1 of 54 rows are zero, first prompt {33:032x}"):
        run(tmp_path, EXACT)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda prompts: prompts.split("train"), "embeddings"),
        (lambda prompts: replace(prompts, heldout=prompts.heldout | True), "all 60 .* held out"),
    ],
)
def test_embeddings_of_other_prompts_and_no_training_prompts_are_refused(tmp_path, change, words):
    artifacts(tmp_path, unit(60))
    prompts = change(load_columns(tmp_path / "prompts"))
    with pytest.raises(IsodenseError, match=words):
        publish(tmp_path / "embeddings", prompts, EXACT, "cpu", 0, tmp_path, tmp_path / "out")


@pytest.mark.slow
def test_two_runs_of_the_same_side_by_side_give_the_same_bytes(tmp_path):
    artifacts(tmp_path, unit(40_000, 8))
    both = [script(tmp_path, name) for name in ("one", "two")]
    said = [child.communicate(timeout=120)[0] for child in both]
    assert [child.returncode for child in both] == [0, 0], said
    assert content(tmp_path / "one") == content(tmp_path / "two")


@pytest.mark.parametrize("params", [EXACT, IVF])
def test_an_append_gives_the_bytes_of_a_run_from_nothing(tmp_path, params, caplog):
    caplog.set_level("INFO", "isodense")
    X = unit(700)
    artifacts(tmp_path, X[:640])
    run(tmp_path, params, out="first")
    artifacts(tmp_path, X)
    run(tmp_path, params, out="grown")
    assert ("growing the graph of the first 576 training prompts" in caplog.text) == (
        params is EXACT
    )
    run(tmp_path, params, out="new", cache="other")
    assert content(tmp_path / "grown") == content(tmp_path / "new")


def script(folder, out, **environ):
    """Start the stage's script as DVC does."""
    known = yaml.safe_load((STAGE.parents[1] / "params.yaml").read_text(encoding="utf-8"))
    known["neighbors"] |= {
        "k_max": 10,
        "method": "ivf",
        "recall_sample": 200,
        "rows_per_slice": 15_000,
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(known), encoding="utf-8")
    words = ["--prompts", "prompts", "--embeddings", "embeddings", "--out", out]
    return subprocess.Popen(
        [sys.executable, STAGE, *words, "--metrics", f"{out}.json"],
        cwd=folder,
        env={**os.environ, "CI": "1", "ISODENSE_CACHE": "cache", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_processes_give_the_bytes_of_one(tmp_path):
    artifacts(tmp_path, unit(40_000, 8))
    alone = script(tmp_path, "alone")
    said = alone.communicate()[0]
    assert alone.returncode == 0, said
    both = script(tmp_path, "both", ISODENSE_WORKERS="2", ISODENSE_CACHE="fresh")
    said = both.communicate()[0]
    assert both.returncode == 0, said
    assert content(tmp_path / "both") == content(tmp_path / "alone")


@pytest.mark.slow
def test_kill_9_keeps_the_finished_blocks(tmp_path):
    artifacts(tmp_path, unit(60_000, 8))
    first = script(tmp_path, "first", ISODENSE_CACHE="other")
    assert first.wait() == 0
    kills, done, code = 0, -1, None
    while code != 0:
        child = script(tmp_path, "out")
        while child.poll() is None and finished(tmp_path) <= done:
            time.sleep(0.005)
        done = max(done, finished(tmp_path))
        child.kill()
        code, kills = child.wait(), kills + 1
        child.stdout.close()
    assert kills > 4
    assert content(tmp_path / "out") == content(tmp_path / "first")


def finished(folder):
    """Return how many blocks are kept; `os.walk` does not mind a folder that is gone meanwhile."""
    walked = os.walk(folder / "cache")
    return sum(name.endswith(".safetensors") for _, _, names in walked for name in names)
