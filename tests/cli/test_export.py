"""Exports hold the training prompts only, and every row belongs to its prompt."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import isodense
from isodense.cli import export as module
from isodense.cli import trainer_formats as handover
from isodense.cli.export import Draws, export
from isodense.cli.main import main
from isodense.difficulty.artifact import publish as publish_difficulty
from isodense.difficulty.params import DifficultyParams
from isodense.embeddings.postprocess import Transform
from isodense.pipeline.artifact import publishing, write_manifest
from isodense.pipeline.errors import ArtifactError, IsodenseError
from isodense.prompts.reader import load_prompts
from tests import tiny
from tests.prompts.test_deduplicate import pair
from tests.rl import SECTIONS
from tests.tables import publish_prompts, stored_rows
from tests.tiny import user
from tests.weights import write_weights

COUNT, DIM = 60, 5
PAGE = (Path(__file__).parents[2] / "docs/other-trainers.md").read_text(encoding="utf-8")
MANY = {"parquet": "parquet", "jsonl": "jsonl", "verl": "parquet", "openrlhf": "jsonl"}  # suffixes
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


def write(data, pairs, heldout=0.2):
    publish_prompts(pairs, data / "prompts", heldout)
    prompts = load_prompts(data / "prompts")
    train = prompts.split("train")
    assert (0 < len(train) < len(prompts)) == bool(heldout)
    weights = np.array([relative_weight(text) for text in train.texts], dtype=np.float64)
    write_weights(data / "density", train.ids, weights)
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
    return [row["text"] for row in stored_rows(data / "prompts") if row["split"] == "train"]


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
    with pytest.raises(IsodenseError, match="use prototype, parquet, jsonl, verl, openrlhf"):
        export(data, "csv", tmp_path / "new")
    with pytest.raises(IsodenseError, match="no readable config"):
        export(data, "prototype", tmp_path / "new", encoder=tmp_path)
    assert not (tmp_path / "new").exists()


def test_an_interrupted_export_leaves_no_file(data, tmp_path, monkeypatch):
    monkeypatch.setattr(handover, "_kept", lambda prompt, columns: 1 / 0)
    for fmt, suffix in MANY.items():
        out, heldout = tmp_path / f"out.{suffix}", tmp_path / f"heldout.{suffix}"
        with pytest.raises(ZeroDivisionError):
            export(data, fmt, out, heldout=heldout)
        assert not out.exists()
        assert not heldout.exists()


# --- plans, held-out prompts and other trainers ---------------------------------------------------

DIALOGUE = [
    {"role": "system", "content": "Sé breve. 简短。"},
    {"role": "user", "content": '¿Qué hora es?\n\t"ahora" \u2028 🕰️'},
    {"role": "assistant", "content": "Son las 3."},
    {"role": "user", "content": "prompt 0"},
]
EXTRA = ["id", "count", "weight", "density", "index", "split", "answer"]
VERL = ["data_source", "prompt", "ability", "reward_model", "extra_info"]
OPENRLHF = ["id", "prompt", "label", "datasource", "count", "weight", "density", "answer"]


@pytest.fixture
def talks(tmp_path, monkeypatch):
    """Give a data folder with a dialogue, prompts without answer and one asked by two sources."""
    monkeypatch.setattr(module, "ROWS", 7)
    pairs = [
        pair(user(f"prompt {i}"), source="web", **({"answer": f"answer {i}"} if i % 2 else {}))
        for i in range(1, COUNT)
    ]
    return write(tmp_path / "data", [pair(DIALOGUE), *pairs, pair(user("prompt 5"), source="s")])


def load(path, cache):
    """Return the rows of a file as verl and OpenRLHF load it."""
    loader = {".parquet": "parquet", ".jsonl": "json"}[path.suffix]
    loaded = datasets.load_dataset(loader, data_files=str(path), cache_dir=str(cache))["train"]
    return loaded.features, list(loaded)


def flat(row):
    """Return a row of any layout with verl's nested columns at the top."""
    return {**row, **row.get("extra_info", {})}


def by_id(prompts):
    return {row["id"]: row for row in prompts.rows}


def test_verl_finds_its_columns(talks, tmp_path):
    export(talks, "verl", tmp_path / "train.parquet")
    features, rows = load(tmp_path / "train.parquet", tmp_path)
    train = load_prompts(talks / "prompts").split("train")
    assert list(features) == VERL
    assert list(features["extra_info"]) == EXTRA
    assert features["prompt"] == datasets.List(
        {"role": datasets.Value("string"), "content": datasets.Value("string")}
    )
    assert features["reward_model"] == {
        "style": datasets.Value("string"),
        "ground_truth": datasets.Value("string"),
    }
    assert [row["extra_info"]["id"] for row in rows] == train.ids
    assert [row["extra_info"]["index"] for row in rows] == list(range(len(train)))
    for row in rows:
        asked = number(row["prompt"][-1]["content"])
        assert row["prompt"] == (user(f"prompt {asked}") if asked else DIALOGUE)
        assert row["reward_model"]["ground_truth"] == (f"answer {asked}" if asked % 2 else "")
        assert row["data_source"] == ("web" if asked else "s")
        assert row["extra_info"]["split"] == "train"
        assert row["extra_info"]["count"] == (2 if asked == 5 else 1)


def test_openrlhf_finds_its_fields(talks, tmp_path):
    export(talks, "openrlhf", tmp_path / "train.jsonl")
    features, rows = load(tmp_path / "train.jsonl", tmp_path)
    assert list(features) == OPENRLHF
    assert features["label"] == datasets.Value("string")
    assert [row["id"] for row in rows] == load_prompts(talks / "prompts").split("train").ids
    template = tiny.tokenizer().apply_chat_template
    for row in rows:
        asked = number(row["prompt"][-1]["content"])
        assert row["prompt"] == (user(f"prompt {asked}") if asked else DIALOGUE)
        assert row["label"] == (f"answer {asked}" if asked % 2 else "")
        assert row["datasource"] == ("web" if asked else "s")
        text = template(row["prompt"], tokenize=False, add_generation_prompt=True)
        assert all(message["content"] in text for message in row["prompt"])


@pytest.mark.parametrize("fmt", MANY)
def test_the_weight_of_a_row_is_its_prompts(talks, tmp_path, fmt):
    out = tmp_path / f"train.{MANY[fmt]}"
    export(talks, fmt, out)
    rows = [flat(row) for row in load(out, tmp_path)[1]]
    weights = isodense.load_weights(talks / "density")
    found = np.array([row["weight"] for row in rows])
    np.testing.assert_allclose(found, weights.align([row["id"] for row in rows]), rtol=1e-6)
    density = [-np.log(relative_weight(row["prompt"][-1]["content"])) for row in rows]
    np.testing.assert_allclose([row["density"] for row in rows], density, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fmt", MANY)
def test_a_plan_has_the_draws_in_their_order(talks, tmp_path, fmt):
    out, prompts = tmp_path / f"plan.{MANY[fmt]}", load_prompts(talks / "prompts")
    report = export(talks, fmt, out, draws=Draws(100, seed=3))
    assert report.items() >= {"format": fmt, "rows": 100, "dim": 0}.items()
    weights = isodense.load_weights(talks / "density")
    expected = [
        weights.prompt_ids[row].decode() for row in isodense.draw(weights.weights, 100, seed=3)
    ]
    rows = [flat(row) for row in load(out, tmp_path)[1]]
    assert [row["id"] for row in rows] == expected
    assert len(set(expected)) < 60
    assert [row["draw"] for row in rows] == list(range(100))
    known = by_id(prompts)
    shares = dict(zip(weights.prompt_ids.tolist(), weights.weights.tolist(), strict=True))
    for row in rows:
        assert row["prompt"] == known[row["id"]]["prompt"]
        assert row["weight"] == pytest.approx(shares[row["id"].encode()], rel=1e-6)
        if fmt == "verl":
            assert row["index"] == row["draw"]


def test_a_plan_is_the_start_of_a_longer_one_and_repeats_to_the_byte(talks, tmp_path):
    for name, size in (("one", 50), ("again", 50), ("long", 80)):
        export(talks, "openrlhf", tmp_path / f"{name}.jsonl", draws=Draws(size))
        export(talks, "verl", tmp_path / f"{name}.parquet", draws=Draws(size))
    one, again, long = ((tmp_path / f"{n}.jsonl").read_bytes() for n in ("one", "again", "long"))
    assert one == again
    assert long.startswith(one)
    first, second = ((tmp_path / f"{n}.parquet").read_bytes() for n in ("one", "again"))
    assert first == second


def test_the_sampling_sets_the_odds(tmp_path):
    """Of prompts asked once and prompt 5 asked 31 times, and weights from 1 to 7."""
    pairs = [pair(user(f"prompt {i}")) for i in range(COUNT)]
    data = write(tmp_path / "data", [*pairs, *[pairs[5]] * 30])
    train = load_prompts(data / "prompts").split("train")
    assert "prompt 5" in train.texts
    heavy = [text for text in train.texts if relative_weight(text) == 7]
    total = sum(relative_weight(text) for text in train.texts)
    solved = np.array([4 * (text == "prompt 5") for text in train.texts])  # of 8: 1, others 0.36
    section = DifficultyParams(**SECTIONS["difficulty"])
    eight = np.full(len(train), 8)
    publish_difficulty(train, solved, eight, section, {}, data / "difficulty")
    all_of_it, weighted = 1 + 0.36 * (len(train) - 1), 6 + 0.36 * (total - 6)
    odds = {
        "difficulty": (1 / all_of_it, 0.36 * len(heavy) / all_of_it),
        "density+difficulty": (6 / weighted, 0.36 * 7 * len(heavy) / weighted),
        "density": (6 / total, 7 * len(heavy) / total),
        "uniform": (1 / len(train), len(heavy) / len(train)),
        "count": (31 / (len(train) + 30), len(heavy) / (len(train) + 30)),
    }
    for sampling, (of_five, of_heavy) in odds.items():
        out = tmp_path / f"{sampling}.jsonl"
        export(data, "jsonl", out, draws=Draws(20_000, 1, sampling))
        texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
        assert texts.count("prompt 5") / 20_000 == pytest.approx(of_five, rel=0.15)
        assert sum(map(texts.count, heavy)) / 20_000 == pytest.approx(of_heavy, rel=0.15)


@pytest.mark.parametrize("fmt", MANY)
@pytest.mark.parametrize("draws", [None, Draws(5)])
def test_held_out_prompts_go_to_a_second_file(talks, tmp_path, fmt, draws):
    out, second = tmp_path / f"a.{MANY[fmt]}", tmp_path / f"new/b.{MANY[fmt]}"
    report = export(talks, fmt, out, draws=draws, heldout=second)
    heldout = load_prompts(talks / "prompts").split("heldout")
    assert report["heldout"] == len(heldout)
    rows = [flat(row) for row in load(second, tmp_path)[1]]
    assert [row["id"] for row in rows] == heldout.ids
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in heldout.rows]
    assert not {"weight", "density", "draw"} & set(rows[0])
    assert not {row["id"] for row in rows} & {flat(row)["id"] for row in load(out, tmp_path)[1]}
    if fmt == "verl":
        assert {row["split"] for row in rows} == {"heldout"}


def test_vectors_follow_draws_and_held_out_prompts(data, tmp_path):
    out, heldout = tmp_path / "plan.parquet", tmp_path / "heldout.parquet"
    export(data, "parquet", out, vectors=True, draws=Draws(30), heldout=heldout)
    for path, rows in ((out, 30), (heldout, COUNT - len(training_texts(data)))):
        found = load(path, tmp_path)[1]
        assert len(found) == rows
        for row in found:
            np.testing.assert_array_equal(np.float32(row["embedding"]), vector(row["text"]))


def test_what_a_format_has_no_place_for_is_refused(data, tmp_path):
    out, other = tmp_path / "out.parquet", tmp_path / "other.parquet"
    for more in ({"draws": Draws(3)}, {"heldout": other}):
        with pytest.raises(IsodenseError, match="every training prompt once"):
            export(data, "prototype", out, **more)
    with pytest.raises(IsodenseError, match="verl has no use for vectors"):
        export(data, "verl", out, vectors=True)
    with pytest.raises(IsodenseError, match=r"openrlhf does not read .*out\.parquet"):
        export(data, "openrlhf", out)
    with pytest.raises(IsodenseError, match=r"verl does not read .*heldout"):
        export(data, "verl", out, heldout=tmp_path / "heldout")
    with pytest.raises(IsodenseError, match="cannot hold both splits"):
        export(data, "verl", out, heldout=out)
    other.write_text("mine")
    with pytest.raises(ArtifactError, match=r"other\.parquet exists already"):
        export(data, "verl", out, heldout=other)
    assert other.read_text() == "mine"
    assert not out.exists()


def test_a_second_file_needs_held_out_prompts(tmp_path):
    data = write(tmp_path / "data", [pair(user(f"prompt {i}")) for i in range(COUNT)], heldout=0.0)
    with pytest.raises(ArtifactError, match="no prompt is held out"):
        export(data, "jsonl", tmp_path / "a", heldout=tmp_path / "b")
    assert not (tmp_path / "a").exists()


# --- columns and ground truths --------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "Lima"}}}
CALLED = [
    {"role": "user", "content": "Time? prompt 0"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "name": "clock"},
]
WHEN = datetime(2026, 11, 28, 7, 30, tzinfo=UTC)


def rich(i):
    """Return a row with a column of every type; some only from the eighth row, the second block."""
    found = {
        "answer": i,
        "pass_rate": i / 8,
        "hard": i % 2 == 0,
        "asked": WHEN,
        "topics": [f"t{i}"] if i > 7 else [],
        "tests": [{"input": f"{i}", "output": None if i < 8 else "x"}],
        "text": "theirs",
        "weight": "heavy",
        "label": f"kind {i % 3}",
    }
    if i == COUNT - 1:
        return pair(CALLED, tools=TOOLS, **found)
    return pair(user(f"prompt {i}"), **found, **({"late": f"{i}"} if i > 7 else {}))


@pytest.fixture
def columns(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 7)
    rows = [rich(i) for i in range(COUNT)]
    for row in rows:
        row["text_"] = row.pop("text")  # as the download stage names a column that is ours
    return write(tmp_path / "data", rows, heldout=0.0)


def write_even(data, pairs):
    return write(data, pairs, heldout=0.0)


@pytest.mark.parametrize("fmt", ["parquet", "jsonl"])
def test_every_column_reaches_trl_with_its_values(columns, tmp_path, fmt):
    out = tmp_path / f"out.{fmt}"
    export(columns, fmt, out)
    features, rows = load(out, tmp_path)
    assert len(rows) == COUNT
    texts = [row["text"] for row in rows]
    shares = np.array(list(map(relative_weight, texts))) / sum(map(relative_weight, texts))
    np.testing.assert_allclose([row["weight"] for row in rows], shares, rtol=1e-5)
    for i, row in enumerate(rows):
        expected = rich(i)
        assert row["label"] == f"kind {i % 3}"
        assert (row["text_"], row["weight_"]) == ("theirs", "heavy")
        for name in ("answer", "pass_rate", "hard", "topics", "tests", "late"):
            assert row[name] == expected.get(name)
        if fmt == "parquet":
            assert row["asked"] == WHEN
            assert row["prompt"] == expected["prompt"]
            assert row["tools"] == expected.get("tools")
    assert features["answer"] == datasets.Value("int64")
    assert features["pass_rate"] == datasets.Value("float64")


def test_jsonl_holds_times_and_messages_as_they_are(columns, tmp_path):
    export(columns, "jsonl", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {row["asked"] for row in rows} == {"2026-11-28T07:30:00+00:00"}
    assert rows[-1]["prompt"] == CALLED
    assert rows[-1]["tools"] == TOOLS
    assert rows[0]["prompt"] == user("prompt 0")
    assert rows[0]["tools"] is None


def test_a_ground_truth_is_text_and_the_label_is_no_ground_truth(columns, tmp_path):
    report = export(columns, "verl", tmp_path / "v.parquet")
    assert report["ground_truth"] == "answer"
    assert report["met"] == {"written as text": COUNT}
    verl = load(tmp_path / "v.parquet", tmp_path)[1]
    export(columns, "openrlhf", tmp_path / "o.jsonl")
    flat_rows = load(tmp_path / "o.jsonl", tmp_path)[1]
    for i, (row, other) in enumerate(zip(verl, flat_rows, strict=True)):
        assert row["reward_model"] == {"style": "rule", "ground_truth": str(i)}
        assert other["label"] == str(i)
        assert (row["ability"], other["kind"]) == (f"kind {i % 3}", f"kind {i % 3}")
        assert (row["extra_info"]["answer"], other["answer"]) == (i, i)
        assert row["extra_info"]["weight_"] == "heavy"
        assert row["prompt"] == rich(i)["prompt"]
    assert verl[-1]["extra_info"]["tools"] is not None


def test_the_column_of_the_ground_truth_can_be_named(columns, tmp_path, capsys):
    arguments = ["--format", "openrlhf", "--data", str(columns), "--ground-truth"]
    out = str(tmp_path / "o.jsonl")
    assert main(["export", *arguments, "late", "--output", out]) == 0
    assert "ground truth: column late, 9 missing\n" in capsys.readouterr().out
    rows = load(tmp_path / "o.jsonl", tmp_path)[1]
    assert [row["label"] for row in rows[6:10]] == ["", "", "8", "9"]
    with pytest.raises(IsodenseError, match="no prompt has that column") as raised:
        export(columns, "verl", tmp_path / "v.parquet", ground_truth="aswer")
    assert "answer, asked, hard" in raised.value.hint
    with pytest.raises(IsodenseError, match="jsonl has no column for a ground truth"):
        export(columns, "jsonl", tmp_path / "j.jsonl", ground_truth="late")


@pytest.mark.parametrize(
    ("value", "scorer", "text"),
    [
        ("72", "72", "72"),
        (72.0, "72", "72"),
        (0.5, "0.5", "0.5"),
        (True, "true", "true"),
        (["72"], "72", "72"),
        ([72], "72", "72"),
        (["a", "b"], ["a", "b"], '["a", "b"]'),
        ({"target": ["a"]}, {"target": ["a"]}, '{"target": ["a"]}'),
        (WHEN, WHEN.isoformat(), WHEN.isoformat()),
    ],
)
def test_ground_truths_of_any_type(tmp_path, value, scorer, text):
    rows = [pair(user(f"prompt {i}"), ground_truth=value, solution="no") for i in range(COUNT)]
    data = write(tmp_path / "data", rows)
    export(data, "verl", tmp_path / "v.parquet")
    export(data, "openrlhf", tmp_path / "o.jsonl")
    found = load(tmp_path / "v.parquet", tmp_path)[1][0]["reward_model"]["ground_truth"]
    assert found == scorer
    line = (tmp_path / "o.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["label"] == text


def test_ground_truths_of_one_and_of_several_share_a_column(tmp_path):
    rows = [
        pair(user(f"prompt {i}"), solution=["a"] if i < 30 else ["a", "b"]) for i in range(COUNT)
    ]
    report = export(write_even(tmp_path / "data", rows), "verl", tmp_path / "v.parquet")
    assert report["met"] == {"unwrapped": 30}
    truths = [
        row["reward_model"]["ground_truth"] for row in load(tmp_path / "v.parquet", tmp_path)[1]
    ]
    assert truths == ["a"] * 30 + [["a", "b"]] * 30


def test_verl_rows_come_back_as_they_were(tmp_path):
    def own(i):
        return {
            "data_source": "openai/gsm8k",
            "ability": "math",
            "reward_model": {"ground_truth": f"{i}", "style": "rule"},
            "extra_info": {"index": 1000 + i, "split": "train", "question": f"q{i}", "id": "mine"},
            "agent_name": "single_turn",
        }

    rows = [pair(user(f"prompt {i}"), **own(i)) for i in range(COUNT)]
    data = write_even(tmp_path / "data", rows)
    report = export(data, "verl", tmp_path / "v.parquet")
    assert (report["ground_truth"], report["met"]) == ("reward_model.ground_truth", {})
    for i, row in enumerate(load(tmp_path / "v.parquet", tmp_path)[1]):
        expected = own(i)
        extra = row.pop("extra_info")
        theirs = expected.pop("extra_info")
        assert extra.pop("id_") == theirs.pop("id")
        assert extra.items() >= theirs.items()
        assert {"id", "weight", "density", "count"} < set(extra)
        assert row == {"prompt": user(f"prompt {i}"), **expected}
    export(data, "openrlhf", tmp_path / "o.jsonl")
    first = load(tmp_path / "o.jsonl", tmp_path)[1][3]
    assert (first["label"], first["datasource"]) == ("3", "openai/gsm8k")


# --- docs/other-trainers.md -----------------------------------------------------------------------


def test_the_commands_of_the_page_write_loadable_files(talks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^isodense (export .*?)(?: +#.*)?$", PAGE, flags=re.M)
    assert len(commands) == 7
    for command in dict.fromkeys(commands):
        for path in tmp_path.glob("*.*"):
            path.unlink()
        assert main(command.split()) == 0
        written = {path.name for path in tmp_path.glob("*.*")}
        named = set(re.findall(r"--(?:output|heldout) (\S+)", command))
        assert written == named
        for name in named:
            _, rows = load(tmp_path / name, tmp_path / "cache")
            plan = "--draws" in command and "heldout" not in name
            assert len(rows) == 4096 if plan else len(rows) < COUNT


def test_trl_trains_on_a_plan_in_its_order(talks, tmp_path):
    from trl import GRPOConfig, GRPOTrainer

    export(talks, "parquet", tmp_path / "plan.parquet", draws=Draws(12, seed=1))
    _, plan = load(tmp_path / "plan.parquet", tmp_path)
    seen = []

    def reward(prompts, completions, **columns):
        seen.extend(zip(prompts, columns["draw"], columns["weight"], strict=True))
        return [float(len(answer[0]["content"])) for answer in completions]

    config = GRPOConfig(
        output_dir=str(tmp_path / "out"),
        shuffle_dataset=False,
        num_train_epochs=1,
        num_generations=2,
        per_device_train_batch_size=8,
        max_completion_length=2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        str(tiny.policy(tmp_path / "policy")),
        reward,
        args=config,
        train_dataset=datasets.load_dataset(
            "parquet", data_files=str(tmp_path / "plan.parquet"), cache_dir=str(tmp_path)
        )["train"],
        processing_class=tiny.tokenizer(),
    )
    trainer.train()
    expected = [(row["prompt"], row["draw"], row["weight"]) for row in plan for _ in range(2)]
    assert seen == expected
