"""Merging: what was embedded apart is as if embedded at once, and no row is made again."""

from __future__ import annotations

import os
import tracemalloc
from itertools import chain

import numpy as np
import pytest

from isodense.cli import merge as module
from isodense.cli.merge import merge
from isodense.embeddings.postprocess import Transform
from isodense.embeddings.reader import iter_shards, load_vectors, read_shard_ids
from isodense.pipeline.artifact import (
    content_sha256,
    ids_sha256,
    publishing,
    read_manifest,
    verify_files,
    write_json,
    write_manifest,
)
from isodense.pipeline.errors import ArtifactError
from isodense.prompts.reader import load_prompts
from tests.prompts.test_deduplicate import pair
from tests.tables import publish_prompts
from tests.tiny import user

DIM = 6
IDS = [f"{number * 7919:032x}" for number in range(40)]
FITTED = {"method": "all_but_the_top", "components": 0, "fit_rows": 10}


def unit_rows(count, seed, dtype="float32", dim=DIM):
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


def embeddings(folder, ids, seed=0, size=4, mean=None, **changes):
    """Write an embeddings artifact of random rows, `size` to a shard."""
    fields = {"dim": DIM, "dtype": "float32", "device": "cpu", "encoder": "e" * 64}
    fields |= {"params": {"pooling": "mean", "layer": 2}, "ids_sha256": ids_sha256(ids)}
    fields |= {"transform": None if mean is None else FITTED} | changes
    rows = unit_rows(len(ids), seed, fields["dtype"], fields["dim"])
    encoder = fields.pop("encoder")
    with publishing(folder) as scratch:
        for number, start in enumerate(range(0, len(ids), size)):
            np.save(scratch / f"shard-{number:05d}.npy", rows[start : start + size])
            text = "\n".join(ids[start : start + size])
            (scratch / f"ids-{number:05d}.txt").write_text(text)
        if mean is not None:
            Transform(np.full(DIM, mean, np.float32), np.zeros((0, DIM), np.float32)).save(scratch)
        inputs = {"encoder": encoder, "prompts": "p" * 64}
        whole = {"rows": len(ids), "rows_per_shard": size, "inputs": inputs} | fields
        write_manifest(scratch, "embeddings", **whole)
    return folder


def by_id(folder):
    """Return the bytes of each row as the encoder made it."""
    manifest = read_manifest(folder, "embeddings")
    rows = [row.tobytes() for shard in iter_shards(folder, manifest) for row in shard]
    return dict(zip(chain(*read_shard_ids(folder, manifest)), rows, strict=True))


def data_folder(folder, texts, seed=0, heldout=0.2, **changes):
    """Write prompts asked as in `texts`, with embeddings of them; a text's end is its source."""
    pairs = [pair(user(text[:-1]), source=text[-1], label=text[:3]) for text in texts]
    publish_prompts(pairs, folder / "prompts", heldout)
    embeddings(folder / "embeddings", load_prompts(folder / "prompts").ids, seed, **changes)
    return folder


def test_shards_follow_each_other_as_links_to_the_same_files(tmp_path):
    a = embeddings(tmp_path / "a", IDS[:10], seed=1)
    b = embeddings(tmp_path / "b", IDS[10:16], seed=2, size=3)
    assert merge([a, b], tmp_path / "c") == {"rows": 16, "shards": 5, "collapsed": 0}
    manifest = read_manifest(tmp_path / "c", "embeddings")
    verify_files(tmp_path / "c", manifest)
    vectors, _ = load_vectors(tmp_path / "c")
    np.testing.assert_array_equal(vectors, np.concatenate([unit_rows(10, 1), unit_rows(6, 2)]))
    assert list(chain(*read_shard_ids(tmp_path / "c", manifest))) == IDS[:16]
    assert manifest["ids_sha256"] == ids_sha256(IDS[:16])
    assert (manifest["rows_per_shard"], manifest["device"]) == (4, "cpu")
    assert manifest["inputs"] == {"encoder": "e" * 64, "prompts": None}
    for name, source in (("00002", a / "shard-00002.npy"), ("00003", b / "shard-00000.npy")):
        assert (tmp_path / "c" / f"shard-{name}.npy").samefile(source)
    assert len(list((tmp_path / "c").iterdir())) == 11


def test_a_repeated_prompt_keeps_its_first_row(tmp_path):
    repeated = [IDS[1], IDS[20], IDS[3], IDS[21], *IDS[4:8], IDS[22]]
    a = embeddings(tmp_path / "a", IDS[:10], seed=1)
    b = embeddings(tmp_path / "b", repeated, seed=2)
    before = {path: path.read_bytes() for path in b.iterdir()}
    assert merge([a, b], tmp_path / "c") == {"rows": 13, "shards": 5, "collapsed": 6}
    merged, manifest = by_id(tmp_path / "c"), read_manifest(tmp_path / "c", "embeddings")
    assert list(merged) == [*IDS[:10], *IDS[20:23]]
    assert merged == by_id(b) | by_id(a)
    shapes = [manifest["files"][f"shard-{n:05d}.npy"]["shape"][0] for n in range(5)]
    assert shapes == [4, 4, 2, 2, 1]
    assert (tmp_path / "c/shard-00004.npy").samefile(b / "shard-00002.npy")
    assert not (tmp_path / "c/shard-00003.npy").samefile(b / "shard-00000.npy")
    assert {path: path.read_bytes() for path in b.iterdir()} == before


def test_merging_in_steps_is_merging_at_once(tmp_path):
    a = embeddings(tmp_path / "a", IDS[:10], seed=1, dtype="float16")
    b = embeddings(tmp_path / "b", IDS[5:25], seed=2, dtype="float16")
    c = embeddings(tmp_path / "c", [*IDS[30:], *IDS[:7]], seed=3, dtype="float16")
    merge([a, b, c], tmp_path / "once")
    merge([a, b], tmp_path / "ab")
    merge([tmp_path / "ab", c], tmp_path / "steps")
    once, steps = (read_manifest(tmp_path / name, "embeddings") for name in ("once", "steps"))
    assert once == steps
    assert once["files"]["shard-00000.npy"]["dtype"] == once["dtype"] == "float16"


def test_every_setting_that_differs_is_named_with_both_values(tmp_path):
    a = embeddings(tmp_path / "a", IDS[:4])
    other = {"pooling": "mean", "layer": 7, "projection": 64}
    b = embeddings(tmp_path / "b", IDS[4:8], params=other, device="cuda")
    c = embeddings(tmp_path / "c", IDS[8:12], dim=8, dtype="float16", encoder="f" * 64)
    with pytest.raises(ArtifactError) as caught:
        merge([a, b, c], tmp_path / "out")
    lines = [line.strip() for line in str(caught.value).splitlines()[1:-1]]
    assert sorted(lines) == [
        f"device: cpu in {a}, cuda in {b}",
        f"dim: 6 in {a}, 8 in {c}",
        f"dtype: float32 in {a}, float16 in {c}",
        f"inputs.encoder: {'e' * 64} in {a}, {'f' * 64} in {c}",
        f"params.layer: 2 in {a}, 7 in {b}",
        f"params.projection: (absent) in {a}, 64 in {b}",
    ]
    assert not (tmp_path / "out").exists()


def test_what_was_fitted_on_the_first_part_stays(tmp_path):
    a = embeddings(tmp_path / "a", IDS[:10], seed=1, mean=0.1)
    b = embeddings(
        tmp_path / "b", IDS[10:20], seed=2, mean=0.3, transform=FITTED | {"fit_rows": 99}
    )
    merge([a, b], tmp_path / "c")
    vectors, manifest = load_vectors(tmp_path / "c")
    assert manifest["transform"] == FITTED
    np.testing.assert_array_equal(vectors[:10], load_vectors(a)[0])
    assert not np.allclose(vectors[10:], load_vectors(b)[0])
    plain = embeddings(tmp_path / "plain", IDS[10:20])
    for parts in ([a, plain], [plain, a]):
        with pytest.raises(ArtifactError, match=r"transform\.method: .*all_but_the_top"):
            merge(parts, tmp_path / "d")


def test_a_damaged_part_is_refused(tmp_path):
    a, b = (embeddings(tmp_path / n, IDS[i : i + 4]) for n, i in (("a", 0), ("b", 4)))
    with (b / "shard-00000.npy").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"!")
    with pytest.raises(ArtifactError, match=r"b/shard-00000\.npy is damaged"):
        merge([a, b], tmp_path / "c")
    other = embeddings(tmp_path / "other", IDS[4:8], ids_sha256=ids_sha256(IDS[8:12]))
    with pytest.raises(ArtifactError, match=r"the ids files of .*other are not those"):
        merge([a, other], tmp_path / "c")
    manifest = read_manifest(a, "embeddings")
    del manifest["files"]["ids-00000.txt"]
    write_json(a / "manifest.json", manifest)
    with pytest.raises(ArtifactError, match=r"a has no ids-00000\.txt\n.*dvc repro embeddings"):
        merge([a, other], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_ids_that_moved_between_shards_are_noticed(tmp_path):
    a, b = (embeddings(tmp_path / n, IDS[i : i + 8]) for n, i in (("a", 0), ("b", 8)))
    fields = read_manifest(b, "embeddings")
    del fields["format_version"], fields["files"]
    (b / "ids-00000.txt").write_text("\n".join(IDS[8:13]))
    (b / "ids-00001.txt").write_text("\n".join(IDS[13:16]))
    write_manifest(b, **fields)
    with pytest.raises(ArtifactError, match=r"the ids files of .*b are not those"):
        merge([a, b], tmp_path / "c")


def test_shards_are_copied_where_links_cannot_be(tmp_path, monkeypatch):
    a, b = (embeddings(tmp_path / n, IDS[i : i + 4], seed=i) for n, i in (("a", 0), ("b", 4)))
    merge([a, b], tmp_path / "linked")

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(module.os, "link", refuse)
    merge([a, b], tmp_path / "copied")
    assert (tmp_path / "copied/shard-00001.npy").stat().st_nlink == 1
    linked, copied = (read_manifest(tmp_path / n, "embeddings") for n in ("linked", "copied"))
    assert copied == linked


def test_a_symbolic_link_is_followed_to_its_file(tmp_path):
    a, b = (embeddings(tmp_path / n, IDS[i : i + 4]) for n, i in (("a", 0), ("b", 4)))
    (a / "shard-00000.npy").rename(a / "cached")
    (a / "shard-00000.npy").symlink_to("cached")
    merge([a, b], tmp_path / "c")
    merged = tmp_path / "c/shard-00000.npy"
    assert not merged.is_symlink()
    assert merged.samefile(a / "cached")


def test_an_interrupted_merge_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch):
    parts = [data_folder(tmp_path / n, [f"{n} {i}x" for i in range(9)]) for n in ("a", "b")]

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_link", interrupt)
        with pytest.raises(KeyboardInterrupt):
            merge(parts, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert merge(parts, tmp_path / "c")["rows"] == 18
    assert not list(tmp_path.glob("*.tmp"))


def test_merged_data_folders_are_as_if_made_at_once(tmp_path):
    first = [f"prompt {i}a" for i in range(30)] + ["prompt 3b", "prompt 3a"]
    second = [f"prompt {i}c" for i in range(20, 50)] + ["prompt 3b", "late b"] * 2
    a = data_folder(tmp_path / "a", first, seed=1)
    b = data_folder(tmp_path / "b", second, seed=2)
    at_once = data_folder(tmp_path / "at_once", first + second)
    report = merge([a, b], tmp_path / "c")
    assert report == {"rows": 51, "shards": report["shards"], "collapsed": 11}
    prompts, expected = (read_manifest(f / "prompts", "prompts") for f in (tmp_path / "c", at_once))
    assert prompts == expected | {"inputs": {"examples": None}}
    found = read_manifest(tmp_path / "c/embeddings", "embeddings")
    assert found["ids_sha256"] == prompts["ids_sha256"]
    assert found["inputs"]["prompts"] == content_sha256(prompts)
    assert by_id(tmp_path / "c/embeddings") == by_id(b / "embeddings") | by_id(a / "embeddings")
    three = load_prompts(tmp_path / "c/prompts").rows[3]
    assert (three["count"], three["sources"]) == (5, {"a": 2, "b": 3})


def test_data_folders_must_agree_within_and_among_themselves(tmp_path):
    a = data_folder(tmp_path / "a", [f"one {i}x" for i in range(9)])
    params = {"pooling": "cls", "layer": 2}
    b = data_folder(tmp_path / "b", [f"two {i}x" for i in range(9)], heldout=0.4, params=params)
    with pytest.raises(ArtifactError) as caught:
        merge([a, b], tmp_path / "c")
    assert "prompts.params.heldout: 0.2 in" in str(caught.value)
    assert "params.pooling: mean in" in str(caught.value)
    stale = data_folder(tmp_path / "stale", [f"two {i}x" for i in range(9)])
    embeddings(stale / "embeddings", IDS[:9])
    with pytest.raises(ArtifactError, match="stale/embeddings belong to other prompts"):
        merge([a, stale], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_folders_that_cannot_be_merged_are_refused_at_once(tmp_path):
    a = embeddings(tmp_path / "a", IDS[:4])
    b = embeddings(tmp_path / "b", IDS[4:8])
    data = data_folder(tmp_path / "data", ["onex", "twox"])
    for parts, out, words in (
        ([a], "c", "two or more"),
        ([a, tmp_path / "data/../a"], "c", "two or more"),
        ([a, b], "a", "would overwrite the part"),
        ([a, b], "data", "exists already"),
        ([a, data], "c", "data folders only, or embeddings artifacts only"),
        ([a, tmp_path / "none"], "c", "none is not there"),
    ):
        with pytest.raises(ArtifactError, match=words):
            merge(parts, tmp_path / out)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "data"}


def test_memory_does_not_grow_with_the_parts(tmp_path):
    ids = [f"{number:032x}" for number in range(4000)]
    a = embeddings(tmp_path / "a", ids[:2000], size=100, dim=512)
    b = embeddings(tmp_path / "b", ids[:1] + ids[2000:3999], size=100, dim=512)
    tracemalloc.start()
    merge([a, b], tmp_path / "c")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.2 * 4000 * 512 * 4
