from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from isodense.map.reader import load_coordinates
from isodense.neighbors.build import knn_graph, nearest
from isodense.neighbors.graph import DISTANCES, HELDOUT_DISTANCES, HELDOUT_INDICES, INDICES
from isodense.pipeline.artifact import publishing, require_same_ids, write_manifest
from isodense.prompts.reader import PromptSet, load_prompts
from tests.rl import ROOT, snapshot
from tests.tables import publish_prompts
from tests.tiny import user

PARAMS = {"neighbors": 10, "min_dist": 0.1, "epochs": 50}
COPY = 3  # number of the held-out prompt that is a copy of a training one


def write_prompts(folder: Path, count: int) -> PromptSet:
    answer = [{"role": "assistant", "content": "a"}]
    pairs = [
        {"prompt": user(f"p{number}"), "chosen": answer, "rejected": answer, "source": "s"}
        for number in range(count)
    ]
    publish_prompts(pairs, folder, 0.2)
    return load_prompts(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write params, 120 prompts and the neighbours of random vectors."""
    folder = tmp_path_factory.mktemp("map")
    (folder / "params.yaml").write_text(
        yaml.safe_dump({"base": {"seed": 0, "device": "cpu"}, "map": PARAMS})
    )
    prompts = write_prompts(folder / "prompts", 120)
    X = np.random.default_rng(0).normal(size=(len(prompts), 4))
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    rows, others = X[prompts.positions("train")], X[prompts.positions("heldout")]
    others[COPY] = rows[7]
    graph, near = knn_graph(rows, 20), nearest(others, rows, 20)
    arrays = {
        INDICES: graph.indices,
        DISTANCES: graph.distances,
        HELDOUT_INDICES: near.indices,
        HELDOUT_DISTANCES: near.distances,
    }
    with publishing(folder / "neighbors") as scratch:
        for name, array in arrays.items():
            np.save(scratch / name, array)
        write_manifest(
            scratch,
            "neighbors",
            rows=len(rows),
            ids_sha256=prompts.split("train").ids_sha256,
            heldout_ids_sha256=prompts.split("heldout").ids_sha256,
        )
    return folder


def begin(folder: Path, out: str, threads: int, **inputs: str) -> subprocess.Popen[str]:
    """Start the stage as DVC does."""
    paths = {"prompts": "prompts", "neighbors": "neighbors"} | inputs
    flags = [word for name, path in paths.items() for word in (f"--{name}", path)]
    return subprocess.Popen(
        [sys.executable, ROOT / "stages/map.py", *flags, "--out", out],
        cwd=folder,
        env={
            **os.environ,
            "CI": "1",
            "OMP_NUM_THREADS": str(threads),
            "NUMBA_NUM_THREADS": str(threads),
        },
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def made(folder: Path) -> Path:
    """Give the folder with a map made on one thread, and another on two, at the same time."""
    runs = [begin(folder, f"map{threads}", threads) for threads in (1, 2)]
    for run in runs:
        _, said = run.communicate()
        assert run.returncode == 0, said
        assert "120 prompts placed" in said
        assert len(said.splitlines()) == 1  # neither warnings nor a bar
    return folder


def test_bytes_repeat_on_any_number_of_threads(made: Path):
    assert snapshot(made / "map1") == snapshot(made / "map2")
    assert set(snapshot(made / "map1")) == {"coordinates.npy", "manifest.json"}


def test_every_prompt_has_a_place_in_the_order_of_the_prompts(made: Path):
    prompts = load_prompts(made / "prompts")
    coordinates, manifest = load_coordinates(made / "map1")
    require_same_ids(prompts.ids_sha256, manifest, "the map")
    assert coordinates.shape == (120, 2)
    assert manifest["params"] == PARAMS
    copy, original = prompts.positions("heldout")[COPY], prompts.positions("train")[7]
    np.testing.assert_allclose(coordinates[copy], coordinates[original], atol=1e-3)
    assert len(np.unique(coordinates, axis=0)) >= 119


def test_neighbours_of_other_prompts_are_refused(folder: Path):
    write_prompts(folder / "others", 121)
    run = begin(folder, "none", 1, prompts="others")
    _, said = run.communicate()
    assert run.returncode == 1
    assert "belong to other prompts" in said
    assert "dvc repro neighbors" in said
    assert "Traceback" not in said
    assert not (folder / "none").exists()


def test_held_out_neighbours_of_other_prompts_are_refused(folder: Path):
    shutil.copytree(folder / "neighbors", folder / "stale")
    manifest = folder / "stale/manifest.json"
    known = load_prompts(folder / "prompts").split("heldout").ids_sha256
    manifest.write_text(manifest.read_text().replace(known, "0" * 64))
    run = begin(folder, "none", 1, neighbors="stale")
    _, said = run.communicate()
    assert run.returncode == 1
    assert "belong to other prompts" in said
    assert not (folder / "none").exists()
