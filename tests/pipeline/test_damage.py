"""Whoever loads an artifact notices that a file is not the one that was published."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

import isodense
from isodense.embeddings.encoder import load_encoder
from isodense.embeddings.reader import load_vectors
from isodense.evaluate.heldout import load_heldout
from isodense.inspect.growth import read_texts
from isodense.inspect.lookup import heldout_rows
from isodense.models.inference.policy import load_policy, load_tokenizer
from isodense.neighbors.graph import load_graph, load_heldout_graph
from isodense.pipeline import artifact
from isodense.pipeline.artifact import checked, read_manifest, write_manifest
from isodense.pipeline.errors import ArtifactError
from isodense.pipeline.tables import write_rows
from isodense.prompts.reader import load_columns, load_prompts
from tests import tiny
from tests.artifacts import make
from tests.damage import flip
from tests.tables import stored_rows

READERS = {
    "density/density_weights.npy": lambda data: isodense.load_weights(data / "density"),
    "density/density.npy": lambda data: isodense.load_weights(data / "density"),
    "density/duplicate_clusters.npy": lambda data: isodense.load_weights(data / "density"),
    "density/prompt_ids.npy": lambda data: isodense.load_weights(data / "density"),
    "density/heldout_density.npy": lambda data: load_heldout(
        load_prompts(data / "prompts"), data / "density"
    ),
    "embeddings/shard-00001.npy": lambda data: load_vectors(data / "embeddings"),
    "neighbors/indices.npy": lambda data: load_graph(data / "neighbors"),
    "neighbors/distances.npy": lambda data: load_graph(data / "neighbors"),
    "neighbors/heldout_indices.npy": lambda data: load_heldout_graph(data / "neighbors"),
    "neighbors/heldout_distances.npy": lambda data: load_heldout_graph(data / "neighbors"),
    "prompts/shard-00000.parquet": lambda data: load_prompts(data / "prompts"),
}
OF_PROMPTS = [
    load_prompts,
    load_columns,
    heldout_rows,
    lambda folder: read_texts(folder, [0]),
]
OF_MODELS = {
    "encoder/model.safetensors": lambda data: load_encoder(data / "encoder", max_tokens=64),
    "encoder/tokenizer.json": lambda data: load_encoder(data / "encoder", max_tokens=64),
    "encoder/1_Pooling/config.json": lambda data: load_encoder(data / "encoder", max_tokens=64),
    "policy/model.safetensors": lambda data: load_policy(data / "policy"),
    "policy/config.json": lambda data: load_policy(data / "policy"),
    "policy/tokenizer.json": lambda data: load_tokenizer(data / "policy"),
    "policy/chat_template.jinja": lambda data: load_tokenizer(data / "policy"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    tiny.policy(root / "policy")
    encoder = tiny.encoder(root / "encoder")
    return make(root, [tiny.user(text) for text in tiny.texts(60)], encoder)


@pytest.mark.parametrize(("name", "read"), [*READERS.items(), *OF_MODELS.items()])
def test_a_flipped_bit_is_noticed_and_the_file_and_its_remedy_named(data, name, read):
    read(data)
    path = data / name
    flip(path)
    try:
        with pytest.raises(ArtifactError, match="is damaged: its SHA-256") as caught:
            read(data)
        assert caught.value.message.startswith(str(path))
        assert f"dvc checkout --force {data / Path(name).parts[0]}" in caught.value.hint
    finally:
        flip(path)
    read(data)


def test_a_swapped_pair_of_weights_is_noticed(data, tmp_path):
    path = data / "density/density_weights.npy"
    whole, weights = path.read_bytes(), np.load(path)
    at = int(np.flatnonzero(weights != weights[0])[0])
    weights[[0, at]] = weights[[at, 0]]  # finite, positive, of the same sum
    np.save(path, weights)
    try:
        with pytest.raises(ArtifactError, match=r"density_weights\.npy is damaged"):
            isodense.load_weights(data / "density")
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("read", OF_PROMPTS)
@pytest.mark.parametrize("change", [{"split": "trail"}, {"text": "another"}, {"answer": "5"}])
def test_an_edited_row_is_noticed_by_all_who_read_it(data, read, change):
    path = data / "prompts/shard-00000.parquet"
    whole, rows = path.read_bytes(), stored_rows(data / "prompts")
    write_rows(data / "prompts", [rows[0] | change, *rows[1:]])
    edited = path.read_bytes()
    try:
        if len(edited) != len(whole):  # sizes are compared first
            with pytest.raises(ArtifactError, match=r"shard-00000\.parquet has \d+ bytes, not"):
                read(data / "prompts")
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(ArtifactError, match=r"shard-00000\.parquet is damaged"):
            read(data / "prompts")
    finally:
        path.write_bytes(whole)


def test_only_the_shards_that_are_read_are_hashed(data):
    flip(data / "embeddings/shard-00001.npy")
    try:
        assert len(load_vectors(data / "embeddings", np.arange(4))[0]) == 4
        with pytest.raises(ArtifactError, match=r"shard-00001\.npy is damaged"):
            load_vectors(data / "embeddings", np.array([20]))
    finally:
        flip(data / "embeddings/shard-00001.npy")


def test_a_file_is_hashed_once_unless_it_changed_or_has_just_been_written(tmp_path, monkeypatch):
    hashed = []
    original = artifact.sha256_file
    monkeypatch.setattr(artifact, "sha256_file", lambda path: hashed.append(path) or original(path))
    (tmp_path / "x.txt").write_text("x")
    manifest = write_manifest(tmp_path, "map")
    hashed.clear()
    for _ in range(2):
        checked(tmp_path, manifest, "x.txt")
    assert len(hashed) == 2  # it may change again within the same tick of the clock
    later = time.time_ns() + 10**10
    monkeypatch.setattr(artifact.time, "time_ns", lambda: later)
    for _ in range(3):
        checked(tmp_path, manifest, "x.txt")
    assert len(hashed) == 3
    flip(tmp_path / "x.txt")  # with the same size and time of modification
    with pytest.raises(ArtifactError, match="is damaged"):
        checked(tmp_path, manifest, "x.txt")
    os.remove(tmp_path / "x.txt")  # noqa: PTH107
    with pytest.raises(ArtifactError, match="is missing"):
        checked(tmp_path, manifest, "x.txt")
    with pytest.raises(ArtifactError, match="is not in the artifact's manifest"):
        checked(tmp_path, manifest, "y.txt")


def test_a_folder_of_a_model_without_a_manifest_of_ours_loads(tmp_path):
    folder = tiny.encoder(tmp_path / "encoder")
    manifest = read_manifest(folder, "models")
    (folder / "manifest.json").unlink()
    flip(folder / "model.safetensors")
    load_encoder(folder, max_tokens=64)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "kind": "another tool's"}))
    load_encoder(folder, max_tokens=64)
