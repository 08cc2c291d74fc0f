"""`isodense inspect --heldout` shows the closest pairs across the split, near-duplicates or not."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from isodense.cli.commands import inspect as command
from isodense.inspect.heldout import closest
from isodense.neighbors.graph import load_heldout_graph
from isodense.pipeline.errors import ArtifactError
from isodense.prompts.reader import load_prompts
from isodense.sampling.weights import load_leaked
from tests import tiny
from tests.artifacts import make
from tests.inspect.test_explain import conversations


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    return make(folder / "data", conversations(), tiny.encoder(folder / "encoder"))


def folders(data):
    return data / "prompts", data / "density", data / "neighbors"


def test_the_closest_pairs_are_those_of_the_graph(data):
    prompts, near = load_prompts(data / "prompts"), load_heldout_graph(data / "neighbors")
    heldout, train = prompts.split("heldout"), prompts.split("train")
    found = closest(*folders(data), top=5)
    distances = np.sort(near.distances[:, 0])
    assert [one["distance"] for one in found["closest"]] == distances[:5].tolist()
    for one in found["closest"]:
        row = heldout.ids.index(one["id"])
        assert one["text"] == heldout.texts[row]
        assert one["train"] == train.texts[near.indices[row, 0]]
        assert one["train_id"] == train.ids[near.indices[row, 0]]
        assert one["leaked"] == (one["distance"] <= found["radius"])
    close = int((near.distances[:, 0] <= found["radius"]).sum())
    assert (found["prompts"], found["near_duplicates"]) == (len(heldout), close)
    assert found["clean"] == len(heldout) - close
    leaked = load_leaked(data / "density", prompts)
    assert len(leaked) == close
    assert {one["id"] for one in closest(*folders(data), top=close)["closest"]} == leaked


def test_leaked_prompts_of_another_set_are_refused(data, tmp_path):
    prompts = load_prompts(data / "prompts")
    with pytest.raises(ArtifactError, match="other prompts"):
        load_leaked(data / "density", type(prompts)(prompts.rows[:-9]))


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_the_command_prints_them(capsys, data, words):
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    flags = [f"--{path.name}={path}" for path in folders(data)]
    args = parser.parse_args(["inspect", "--heldout", "--top=3", *words, *flags])
    args.run(args)
    text = capsys.readouterr().out
    found = closest(*folders(data), top=3)
    if words:
        assert json.loads(text) == found
        return
    assert f"{found['clean']} clean" in text
    assert text.count("in training: ") == 3
    assert all(one["id"][:8] in text for one in found["closest"])
