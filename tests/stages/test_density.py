"""The density stage as DVC runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from isodense.density.estimate import density_weights
from isodense.neighbors.build import knn_graph, nearest
from isodense.neighbors.graph import DISTANCES, HELDOUT_DISTANCES, HELDOUT_INDICES, INDICES
from isodense.pipeline.artifact import publishing, write_manifest
from isodense.pipeline.params import as_dict
from isodense.prompts.reader import load_prompts
from tests.density.vectors import (
    PARAMS,
    unit,
)
from tests.tables import publish_prompts
from tests.tiny import user


def test_the_stage_reads_counts_labels_and_recall(tmp_path):
    """Run the script on prompts of which the first was asked ten times."""
    texts = ["p0"] * 9 + [f"p{i}" for i in range(60)]
    answer = [{"role": "assistant", "content": "a"}]
    pairs = [
        {"prompt": user(t), "chosen": answer, "rejected": answer, "source": "s", "label": t[-1]}
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
    section = as_dict(PARAMS.model_copy(update={"count_power": 1.0}))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"density": section}))
    command = "--prompts prompts --neighbors neighbors --out density --metrics m.json --plots plots"
    script = Path(__file__).parents[2] / "stages/density.py"
    done = subprocess.run(
        [sys.executable, script, *command.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "m.json").read_text())["density"]
    assert report["recall"] == 0.97
    assert report["labels"]["labels"] == len(set(train.labels))
    asked = [row["count"] for row in train.rows]
    expected = density_weights(graph, counts=np.array(asked), count_power=1.0)
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
    assert f"{close} of {len(heldout)} held-out prompts within the radius" in done.stderr
