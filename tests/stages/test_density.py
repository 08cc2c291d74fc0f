"""The density stage as DVC runs it."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from isodense.density.baselines import evened_clusters
from isodense.density.estimate import density_weights
from isodense.density.opinion import short
from isodense.embeddings.reader import load_vectors
from isodense.neighbors.build import knn_graph, nearest
from isodense.neighbors.graph import DISTANCES, HELDOUT_DISTANCES, HELDOUT_INDICES, INDICES
from isodense.pipeline.artifact import publishing, write_manifest
from isodense.pipeline.params import as_dict
from isodense.prompts.reader import load_columns, load_prompts
from isodense.sampling.weights import load_weights
from tests import tiny
from tests.artifacts import DENSITY, make
from tests.density.vectors import (
    PARAMS,
    unit,
)
from tests.tables import publish_prompts
from tests.tiny import user

ROOT = Path(__file__).parents[2]


def test_the_stage_reads_counts_labels_and_recall(tmp_path):
    """Run the script on prompts of which the first was asked ten times."""
    texts = ["p0"] * 9 + [f"p{i}" for i in range(60)]
    answer = [{"role": "assistant", "content": "a"}]
    pairs = [
        {"prompt": user(t), "chosen": answer, "rejected": answer, "source": t[:2], "label": t[-1]}
        for t in texts
    ]
    publish_prompts(pairs, tmp_path / "prompts", 0.2)
    prompts = load_prompts(tmp_path / "prompts")
    train, heldout = prompts.split("train"), prompts.split("heldout")
    X = unit(np.random.default_rng(0).normal(size=(len(prompts), 4)))
    rows, others = X[prompts.positions("train")], X[prompts.positions("heldout")]
    graph, near = knn_graph(rows, 50), nearest(others, rows, min(50, len(rows)))
    with publishing(tmp_path / "neighbors") as scratch:
        for name, array in (
            (INDICES, graph.indices),
            (DISTANCES, graph.distances),
            (HELDOUT_INDICES, near.indices),
            (HELDOUT_DISTANCES, near.distances),
        ):
            np.save(scratch / name, array)
        hashes = {"ids_sha256": train.ids_sha256, "heldout_ids_sha256": heldout.ids_sha256}
        write_manifest(scratch, "neighbors", rows=len(train), dim=4, recall=0.97, **hashes)
    section = as_dict(PARAMS.model_copy(update={"count_power": 1.0, "balance_by": "label"}))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"density": section}))
    command = "--prompts prompts --embeddings embeddings --neighbors neighbors --out density "
    command += "--metrics m.json --plots plots"
    script = ROOT / "stages/density.py"
    done = subprocess.run(
        [sys.executable, script, *command.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "m.json").read_text())["density"]
    assert report["recall"] == 0.97
    assert report["labels"]["labels"] == len(set(train.labels))
    asked = [row["count"] for row in train.rows]
    expected = density_weights(
        graph, counts=np.array(asked), count_power=1.0, kinds=train.labels, balance_power=1.0
    )
    assert report["kinds"]["gap"] == report["labels"]["gap"] == 1.0  # all labels alike
    assert max(asked) == 10
    stored = np.load(tmp_path / "density" / "density_weights.npy")
    np.testing.assert_allclose(stored, expected, rtol=1e-6)
    distances = near.distances[:, 0]
    manifest = json.loads((tmp_path / "density" / "manifest.json").read_text())
    close = int((distances <= manifest["radius"]).sum())
    assert report["heldout"] == {
        "prompts": len(heldout),
        "near_duplicates": close,
        "near_duplicates_by_words": 0,
        "clean": len(heldout) - close,
    }
    leaked = np.load(tmp_path / "density" / "heldout_leaked.npy")
    assert (leaked == (distances <= manifest["radius"])).all()
    assert report["opinion"] == manifest["opinion"]
    assert report["opinion"]["label_gap"] == 1.0
    assert 0 < report["opinion"]["source_entropy"] < 1
    assert short(report["opinion"]) in done.stderr
    assert f"{close} of {len(heldout)} held-out prompts within the radius" in done.stderr


def test_clusters_are_those_of_the_training_prompts(tmp_path, monkeypatch):
    texts = [f"{word} {number}" for word in ("red", "green", "blue") for number in range(8)]
    data = make(tmp_path / "data", [user(text) for text in texts], tiny.encoder(tmp_path / "tiny"))
    section = as_dict(DENSITY.model_copy(update={"method": "clusters", "clusters": 4}))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"density": section}))
    monkeypatch.chdir(tmp_path)
    script = runpy.run_path(str(ROOT / "stages/density.py"))
    flags = "--prompts data/prompts --embeddings data/embeddings --neighbors data/neighbors"
    script["main"]([*flags.split(), *"--out out --metrics m.json --plots plots".split()])
    rows = load_columns(data / "prompts").positions("train")
    assert 4 < len(rows) < len(texts)
    expected = evened_clusters(load_vectors(data / "embeddings", rows)[0], 4)
    np.testing.assert_allclose(load_weights(tmp_path / "out").weights, expected, rtol=1e-6)
