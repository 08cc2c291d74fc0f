"""Exports hold the training prompts only, and every row belongs to its prompt."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from isodense import export as module
from isodense.artifacts import publishing, write_manifest
from isodense.errors import ArtifactError, IsodenseError
from isodense.export import export
from isodense.prompts import PromptsParams, publish
from isodense.promptset import load_prompts
from isodense.transform import Transform
from tests.test_prompts import pair
from tests.tiny import user

COUNT, DIM = 60, 5
COLUMNS = ["id", "prompt", "text", "count", "label", "weight", "density"]


def number(text):
    """Return which prompt a text is."""
    return int(text.split()[-1])


def vector(text):
    """Return the unit vector that belongs to a text, at an angle that no other has."""
    angle = 0.05 * number(text)
    return np.array([np.cos(angle), np.sin(angle), 0, 0, 0], dtype=np.float32)


def relative_weight(text):
    return 1 + number(text) % 7


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Give a data folder whose weights and vectors can be told from the prompts' text alone."""
    monkeypatch.setattr(module, "ROWS", 7)  # so that several blocks are written
    pairs = [pair(user(f"prompt {i}"), label=f"label {i % 3}") for i in range(COUNT)]
    return write(tmp_path / "data", [*pairs, pairs[5]])


def write(data, pairs):
    publish(pairs, PromptsParams(0.2), "0", data / "prompts")
    prompts = load_prompts(data / "prompts")
    train = prompts.split("train")
    assert 0 < len(train) < len(prompts)
    weights = np.array([relative_weight(text) for text in train.texts], dtype=np.float64)
    with publishing(data / "density") as scratch:
        np.save(scratch / "density_weights.npy", (weights / weights.sum()).astype(np.float32))
        np.save(scratch / "density.npy", -np.log(weights).astype(np.float32))
        np.save(scratch / "prompt_ids.npy", np.array(train.ids, dtype="S32"))
        write_manifest(scratch, "density", rows=len(train), ids_sha256=train.ids_sha256)
    write_embeddings(data, np.stack([vector(text) for text in prompts.texts]), prompts.ids_sha256)
    return data


def write_embeddings(data, rows, ids_sha256, transform=None):
    with publishing(data / "embeddings") as scratch:
        np.save(scratch / "shard-00000.npy", rows[:40])
        np.save(scratch / "shard-00001.npy", rows[40:])
        if transform:
            transform.save(scratch)
        write_manifest(scratch, "embeddings", rows=len(rows), dim=DIM, ids_sha256=ids_sha256)


def training_texts(data):
    lines = (data / "prompts/prompts.jsonl").read_text().splitlines()
    return [row["text"] for row in map(json.loads, lines) if row["split"] == "train"]


def test_the_prototypes_training_snippet_runs_on_the_folder(data, tmp_path):
    out = tmp_path / "out"
    texts = training_texts(data)
    assert export(data, "prototype", out) == {
        "format": "prototype",
        "rows": len(texts),
        "dim": DIM,
    }
    embeddings = np.load(out / "embeddings.npy")
    weights = np.load(out / "density_weights.npy")
    prompts = json.loads((out / "prompts_list.json").read_text())
    sampler = torch.utils.data.WeightedRandomSampler(
        torch.from_numpy(weights),
        num_samples=30_000,
        replacement=True,
        generator=torch.Generator().manual_seed(0),
    )
    drawn = np.bincount(list(sampler), minlength=len(prompts)) / 30_000
    expected = np.array([relative_weight(text) for text in prompts], dtype=np.float64)
    np.testing.assert_allclose(drawn, expected / expected.sum(), rtol=0.3)
    assert prompts == texts
    assert embeddings.dtype == weights.dtype == np.float32
    assert embeddings.flags.c_contiguous
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    for text, row in zip(prompts, embeddings, strict=True):
        np.testing.assert_array_equal(row, vector(text))


def test_the_prototypes_metadata_has_its_keys_and_no_others(data, tmp_path):
    (tmp_path / "encoder").mkdir()
    config = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}
    (tmp_path / "encoder/config.json").write_text(json.dumps(config))
    export(data, "prototype", tmp_path / "out", encoder=tmp_path / "encoder")
    export(data, "prototype", tmp_path / "bare")
    found, bare = (
        json.loads((tmp_path / name / "embeddings_metadata.json").read_text())
        for name in ("out", "bare")
    )
    assert len(list((tmp_path / "out").iterdir())) == 4
    rows = len(training_texts(data))
    shares = np.load(tmp_path / "out/density_weights.npy")
    statistics = {name: found.pop(f"weights_{name}") for name in ("min", "max", "mean", "std")}
    assert statistics["max"] == pytest.approx(7 * statistics["min"], rel=1e-5)
    assert statistics["mean"] == pytest.approx(1 / rows, rel=1e-5)
    variance = float((shares.astype(np.float64) ** 2).mean()) - statistics["mean"] ** 2
    assert statistics["std"] ** 2 == pytest.approx(variance, rel=1e-5)
    assert found == {
        "n_prompts": rows,
        "embedding_dim": DIM,
        "embedding_dtype": "float32",
        "weights_dtype": "float32",
        "model_vocab_size": 300,
        "model_n_embd": 32,
        "normalization": "L2 unit vectors",
    }
    assert (bare["model_vocab_size"], bare["model_n_embd"]) == (None, None)


@pytest.mark.parametrize(("fmt", "loader"), [("parquet", "parquet"), ("jsonl", "json")])
@pytest.mark.parametrize("vectors", [False, True])
def test_datasets_loads_the_table_as_it_is(data, tmp_path, fmt, loader, vectors):
    out, texts = tmp_path / f"new/out.{fmt}", training_texts(data)
    report = export(data, fmt, out, vectors=vectors)
    assert report == {"format": fmt, "rows": len(texts), "dim": DIM * vectors}
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    loaded = datasets.load_dataset(
        loader, data_files=str(out), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.column_names == COLUMNS + ["embedding"] * vectors
    assert loaded["text"][:] == texts
    assert loaded["id"][:] == load_prompts(data / "prompts").split("train").ids
    assert sum(loaded["weight"]) == pytest.approx(1, abs=1e-6)
    for row in loaded:
        assert row["prompt"] == user(row["text"])
        assert row["count"] == (2 if number(row["text"]) == 5 else 1)
        assert row["label"] == f"label {number(row['text']) % 3}"
        share = row["weight"] / loaded[0]["weight"]
        expected = relative_weight(row["text"]) / relative_weight(texts[0])
        assert share == pytest.approx(expected, rel=1e-5)
        assert row["density"] == pytest.approx(-np.log(relative_weight(row["text"])), rel=1e-5)
        if vectors:
            np.testing.assert_array_equal(np.float32(row["embedding"]), vector(row["text"]))


def test_parquet_is_written_in_row_groups(data, tmp_path):
    export(data, "parquet", tmp_path / "out.parquet", vectors=True)
    file = pq.ParquetFile(tmp_path / "out.parquet")
    rows = len(training_texts(data))
    assert file.num_row_groups == -(-rows // 7) > 1
    assert str(file.schema_arrow.field("embedding").type) == "list<element: float>"


def test_labels_that_some_prompts_lack_are_left_out(tmp_path):
    pairs = [pair(user(f"prompt {i}"), **({"label": "x"} if i else {})) for i in range(COUNT)]
    data = write(tmp_path / "data", pairs)
    for fmt in ("parquet", "jsonl"):
        export(data, fmt, tmp_path / f"out.{fmt}")
    columns = [name for name in COLUMNS if name != "label"]
    assert pq.read_schema(tmp_path / "out.parquet").names == columns
    with (tmp_path / "out.jsonl").open() as stream:
        assert {tuple(json.loads(line)) for line in stream} == {tuple(columns)}


def test_vectors_are_post_processed(data, tmp_path):
    """Without the mean and the first two axes, only the third is left of a row."""
    prompts = load_prompts(data / "prompts")
    rows = np.stack([vector(text) for text in prompts.texts])
    rows[:, 2] = np.where(np.arange(len(rows)) % 2, 0.5, -0.5)
    transform = Transform(np.zeros(DIM, np.float32), np.eye(DIM, dtype=np.float32)[:2])
    write_embeddings(data, rows, prompts.ids_sha256, transform)
    export(data, "prototype", tmp_path / "out")
    found = np.load(tmp_path / "out/embeddings.npy")
    signs = [1 if row % 2 else -1 for row in prompts.positions("train")]
    np.testing.assert_allclose(found, np.outer(signs, [0, 0, 1, 0, 0]), atol=1e-6)


def test_a_teammate_without_the_vectors_exports_the_weights(data, tmp_path):
    (data / "embeddings").rename(tmp_path / "elsewhere")
    assert export(data, "jsonl", tmp_path / "out.jsonl")["dim"] == 0
    with pytest.raises(ArtifactError, match="dvc pull embeddings"):
        export(data, "jsonl", tmp_path / "more.jsonl", vectors=True)


@pytest.mark.parametrize(("kind", "what"), [("density", "weights"), ("embeddings", "vectors")])
def test_artifacts_of_other_prompts_are_refused(data, tmp_path, kind, what):
    other = write(tmp_path / "other", [pair(user(f"other {i}")) for i in range(COUNT)])
    (data / kind).rename(tmp_path / "old")
    (other / kind).rename(data / kind)
    for fmt in ("prototype", "parquet", "jsonl"):
        with pytest.raises(ArtifactError, match=rf"the {what} in .* belong to other prompts"):
            export(data, fmt, tmp_path / "out", vectors=True)
    assert not (tmp_path / "out").exists()


def test_what_exists_is_kept_and_unknown_things_are_named(data, tmp_path):
    (tmp_path / "out").write_text("mine")
    for fmt in ("prototype", "parquet", "jsonl"):
        with pytest.raises(ArtifactError, match="out exists already"):
            export(data, fmt, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
    with pytest.raises(IsodenseError, match="use prototype, parquet or jsonl"):
        export(data, "csv", tmp_path / "new")
    with pytest.raises(IsodenseError, match="no readable config"):
        export(data, "prototype", tmp_path / "new", encoder=tmp_path)
    assert not (tmp_path / "new").exists()


def test_an_interrupted_export_leaves_no_file(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_columns", lambda row: 1 / 0)
    for fmt in ("parquet", "jsonl"):
        with pytest.raises(ZeroDivisionError):
            export(data, fmt, tmp_path / "out")
        assert not (tmp_path / "out").exists()
