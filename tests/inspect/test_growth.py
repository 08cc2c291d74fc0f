"""What is said of a set that grew: who is new, a copy or rare, and how the weights moved."""

from __future__ import annotations

import difflib
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

from isodense.cli.append import _restored_on_failure, add_files
from isodense.cli.commands.update import describe
from isodense.density.artifact import publish
from isodense.density.estimate import estimate, heldout_density, near_training
from isodense.inspect.growth import compare, remember
from isodense.neighbors.build import knn_graph
from isodense.neighbors.graph import Graph
from isodense.pipeline.artifact import content_sha256, publishing, write_manifest
from isodense.pipeline.errors import IsodenseError
from isodense.prompts.conversations import is_heldout, prompt_id
from isodense.prompts.reader import load_columns
from tests.density.vectors import PARAMS as DENSITY
from tests.tables import publish_prompts
from tests.tiny import user

ROOT = Path(__file__).parents[2]
HELDOUT = 0.3
K = 10
PARAMS = DENSITY.model_copy(update={"k": K})
SHARD = 16


def texts(count, split="train", start=0):
    """Return different texts that the split by id puts where the test needs them."""
    found, number = [], start
    while len(found) < count:
        text = f"question {number}"
        if is_heldout(prompt_id(user(text)), HELDOUT) == (split == "heldout"):
            found.append(text)
        number += 1
    return found


def cluster(vectors):
    vectors = np.asarray(vectors, dtype=np.float64)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def nearest(queries, keys):
    distances = np.linalg.norm(queries[:, None].astype(np.float64) - keys[None], axis=2)
    order = np.argsort(distances, axis=1, kind="stable")[:, :K]
    found = np.take_along_axis(distances, order, axis=1)
    return Graph(order.astype(np.int32), found.astype(np.float32))


def write(data, rows, asked=()):
    """Write the artifacts of `rows`, pairs of a text and a vector; `asked` are asked once more."""
    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    pairs = [{"prompt": user(t), **answers, "source": "test"} for t in [*dict(rows), *asked]]
    publish_prompts(pairs, data / "prompts", HELDOUT)
    columns = load_columns(data / "prompts")
    vectors = cluster(np.stack(list(dict(rows).values())))
    train, heldout = columns.positions("train"), columns.positions("heldout")
    graph = knn_graph(vectors[train], k=K)
    near = nearest(vectors[heldout], vectors[train])
    facts = {
        "rows": len(train),
        "dim": vectors.shape[1],
        "ids_sha256": columns.split("train").ids_sha256,
        "heldout_ids_sha256": columns.split("heldout").ids_sha256,
    }
    with publishing(data / "neighbors") as made:
        np.save(made / "indices.npy", graph.indices)
        np.save(made / "distances.npy", graph.distances)
        np.save(made / "heldout_indices.npy", near.indices)
        np.save(made / "heldout_distances.npy", near.distances)
        manifest = write_manifest(made, "neighbors", **facts)
    found = estimate(graph, PARAMS)
    density = heldout_density(found, near, PARAMS)
    ids = columns.split("train").ids
    leaked, digest = near_training(near, found.scales.radius), content_sha256(manifest)
    publish(found, density, leaked, ids, PARAMS, {}, manifest, digest, data / "density")
    with publishing(data / "embeddings") as made:
        for number, start in enumerate(range(0, len(vectors), SHARD)):
            np.save(made / f"shard-{number:05d}.npy", vectors[start : start + SHARD])
        write_manifest(made, "embeddings", rows=len(vectors))
    return data


@pytest.fixture
def old():
    rng = np.random.default_rng(5)
    names = [*texts(50), *texts(10, "heldout")]
    return list(zip(names, cluster(rng.normal(size=(60, 6))), strict=True))


def remembered(data):
    return remember(data / "prompts", data / "density", data / "embeddings")


def test_a_set_that_did_not_grow_has_not_moved(tmp_path, old):
    data = write(tmp_path, old)
    found = compare(remembered(data), data)
    assert (found.new, found.again, found.near_duplicates, found.removed) == ([], [], [], 0)
    assert found.appended
    assert found.shards == (0, 4)
    assert found.agreement == 1
    np.testing.assert_array_equal(found.ratios, np.ones(50))
    assert "60 prompts before, 60 now: 0 new\n" in describe(found, data / "prompts", 5)


def test_new_prompts_are_told_apart(tmp_path, old):
    before = remembered(write(tmp_path, old))
    step = np.full(6, 1e-3)
    copy, twin, other, shadow = texts(4, start=1000)
    (hidden,) = texts(1, "heldout", start=1000)
    alone = cluster(np.ones((1, 6)) * [1, -1, 1, -1, 1, -1])[0]
    new = [
        (copy, old[7][1] + step),  # of the training prompt in row 7
        (twin, alone),
        (other, alone + step),  # of twin
        (hidden, old[3][1] - step),  # held out, of the training prompt in row 3
        (shadow, old[55][1] + step),  # of the held-out prompt in row 55
    ]
    data = write(tmp_path, [*old, *new], asked=[old[2][0], old[2][0], copy])
    found = compare(before, data)
    assert found.new == [60, 61, 62, 63, 64]
    pairs = {(one.row, one.other) for one in found.near_duplicates}
    assert pairs == {(60, 7), (62, 61), (63, 3), (64, 55)}
    assert found.near_duplicates[-1].other == 61  # those of prompts that were there come first
    for one in found.near_duplicates:
        vectors = cluster(np.stack([vector for _, vector in [*old, *new]])).astype(np.float64)
        assert one.distance == pytest.approx(
            np.linalg.norm(vectors[one.row] - vectors[one.other]), abs=1e-4
        )
    assert found.again == [(2, 1, 3)]
    assert found.appended
    assert found.shards == (2, 5)  # rows 48 to 59 were the last, unfinished one
    assert set(found.weights) == {60, 61, 62, 64}  # hidden has none
    ids = load_columns(data / "prompts").ids
    assert found.weights[60] < 0.8 * before.weights[ids[7]]  # two share what one had
    text = describe(found, data / "prompts", 5)
    assert "60 prompts before, 65 now: 5 new, 1 of them held out\n" in text
    assert "new near-duplicates of prompts that were there: 3; of other new ones: 1\n" in text
    assert re.search(rf" held out  {hidden}\n +of  {old[3][0]}\n", text)
    assert re.search(rf"before  now  prompt\n +1    3  {old[2][0]}\n", text)
    assert "new shards of embeddings: 2 of 5\n" in text


def test_the_weights_of_a_crowd_that_grows_fall_and_others_rise(tmp_path, old):
    before = remembered(write(tmp_path, old))
    rng = np.random.default_rng(6)
    crowd = old[0][1] + 0.15 * rng.normal(size=(30, 6))
    data = write(tmp_path, [*old, *zip(texts(30, start=5000), crowd, strict=True)])
    found = compare(before, data)
    train = load_columns(data / "prompts").split("train").ids
    assert found.ratios[train.index(prompt_id(user(old[0][0])))] == found.ratios.min()
    assert found.ratios.min() < 0.7
    assert 0 < found.agreement < 1


def test_another_order_and_prompts_that_are_gone_are_said(tmp_path, old):
    before = remembered(write(tmp_path, old))
    found = compare(before, write(tmp_path, [*old[30:], *old[:29]]))
    assert not found.appended
    assert (found.removed, found.new) == (1, [])
    assert found.shards[0] == 4
    text = describe(found, tmp_path / "prompts", 3)
    assert "prompts that are gone: 1\n" in text
    assert "no longer the first rows" in text


def test_only_what_is_added_to_the_projects_params_changes():
    text = (ROOT / "params.yaml").read_text()
    grown = add_files(text, ["more.jsonl", "data sets/two.parquet"])
    changed = [line for line in difflib.ndiff(text.splitlines(), grown.splitlines())
               if line[:2] in ("+ ", "- ")]  # fmt: skip
    assert len(changed) == 4
    assert yaml.safe_load(grown)["download"]["local"]["files"] == [
        "more.jsonl",
        "data sets/two.parquet",
    ]
    assert yaml.safe_load(grown)["download"]["sources"] == ["sample", "local"]
    again = add_files(grown, ["three.jsonl"])
    assert yaml.safe_load(again)["download"]["sources"] == ["sample", "local"]
    assert yaml.safe_load(again)["download"]["local"]["files"][2] == "three.jsonl"
    assert "[sample, local]  # any of sample" in again


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("files: []\n", "files: [a.jsonl]\n"),
        ("files: [x]  # why\n", "files: [x, a.jsonl]  # why\n"),
        ('files: ["x: y", z ]\n', 'files: ["x: y", z, a.jsonl]\n'),
        ("files:\n    - x  # first\n    - y  # last", None),
        ("files:\n  - x\n\n  # about the limit\n  limit: null\n", None),
        ("files: [\n    x,\n    y\n  ]\n", None),
    ],
)
def test_lists_are_added_to_in_their_own_layout(layout, expected):
    text = f"base: {{seed: 0}}\ndownload:\n  sources: [hh, local]\n  local:\n    {layout}"
    text = text.replace("\n  - x", "\n      - x").replace("\n  limit", "\n    limit")
    before = yaml.safe_load(text)
    grown = add_files(text, ["a.jsonl"])
    after = yaml.safe_load(grown)
    assert after["download"]["local"].pop("files") == [
        *before["download"]["local"].pop("files"),
        "a.jsonl",
    ]
    assert after == before
    if expected:
        assert grown.endswith(expected)
    assert all(line in grown for line in text.splitlines() if "#" in line and "[" not in line)


@pytest.mark.parametrize(
    "name", ["two words.jsonl", "a: b", "#x", "数.jsonl", "true", "1.5", "'q\""]
)
def test_any_file_name_comes_back(name):
    text = "download: {sources: [local], local: {files: [x], limit: null}}\n"
    assert yaml.safe_load(add_files(text, [name]))["download"]["local"]["files"] == ["x", name]


def test_a_layout_that_cannot_be_added_to_is_refused():
    trailing = "download:\n  sources: [local]\n  local: {files: [x,], limit: null}\n"
    merged = "a: &a\n  sources: [local]\ndownload:\n  <<: *a\n  local: {files: [], limit: null}\n"
    for text in (trailing, merged.replace("[local]", "[hh]")):
        with pytest.raises(IsodenseError, match="cannot add to") as caught:
            add_files(text, ["y"])
        assert "download.local.files" in caught.value.hint


def test_line_ends_stay_what_they_are():
    text = "download:\n  sources:\n  - hh\n  local:\n    files:\n    - x"  # and no last one
    grown = text.replace("- hh", "- hh\n  - local") + "\n    - y\n"
    assert add_files(text, ["y"]) == grown
    assert add_files(text.replace("\n", "\r\n"), ["y"]) == grown.replace("\n", "\r\n")


def test_params_that_were_edited_while_dvc_ran_are_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    params, lock = tmp_path / "params.yaml", tmp_path / "dvc.lock"
    for edit, kept in (("added", "former"), ("edited by hand", "edited by hand")):
        params.write_text("former")
        params.chmod(0o664)
        lock.write_text("lock")
        with suppress(KeyboardInterrupt), _restored_on_failure(b"former", b"added"):
            params.write_text(edit)
            lock.write_text("half way")
            raise KeyboardInterrupt
        assert (params.read_text(), lock.read_text()) == (kept, "lock")
        assert params.stat().st_mode & 0o777 == 0o664
        assert ("is left so" in capsys.readouterr().err) == (edit != "added")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dvc.lock", "params.yaml"]
