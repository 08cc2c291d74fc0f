"""Rows come back in the order of their prompts, whole, and as they are meant to be read."""

from __future__ import annotations

import json
from itertools import chain

import numpy as np
import pytest

from isodense.embeddings.postprocess import Transform
from isodense.embeddings.reader import (
    ids_name,
    iter_shards,
    load_vectors,
    read_shard_ids,
    shard_count,
    shard_name,
)
from isodense.pipeline.artifact import publishing, read_manifest, sha256_file, write_manifest
from isodense.pipeline.errors import ArtifactError

DIM = 5
SIZES = [4, 4, 3]
IDS = [f"{number * 7919:032x}" for number in range(sum(SIZES))]


def unit_rows(count, dim=DIM):
    rows = np.random.default_rng(0).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


ROWS = unit_rows(len(IDS))


def artifact(folder, transform=None, sizes=SIZES, **changes):
    """Write an embeddings artifact of `ROWS`, in shards of the given sizes."""
    with publishing(folder) as scratch:
        start = 0
        for number, size in enumerate(sizes):
            np.save(scratch / f"shard-{number:05d}.npy", ROWS[start : start + size])
            ids = "\n".join(IDS[start : start + size])
            (scratch / f"ids-{number:05d}.txt").write_text(ids)
            start += size
        if transform is not None:
            transform.save(scratch)
        write_manifest(scratch, "embeddings", **{"rows": len(IDS), "dim": DIM} | changes)
    return folder


def edit(folder, change):
    """Change the manifest alone, as no stage does."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_rows_and_ids_come_back_in_order(tmp_path):
    folder = artifact(tmp_path / "e")
    vectors, manifest = load_vectors(folder)
    assert vectors.dtype == np.float32
    assert (vectors == ROWS).all()
    assert shard_count(manifest) == 3
    assert [len(shard) for shard in iter_shards(folder, manifest)] == SIZES
    assert list(chain(*read_shard_ids(folder, manifest))) == IDS


def test_more_than_ten_shards_keep_their_order(tmp_path):
    folder = artifact(tmp_path / "e", sizes=[1] * 11)
    vectors, manifest = load_vectors(folder)
    assert (vectors == ROWS).all()
    assert list(chain(*read_shard_ids(folder, manifest))) == IDS
    names = [name(number) for number in (0, 10, 99999) for name in (shard_name, ids_name)]
    assert names == sorted(names, key=lambda name: (name[-9:-4], name[0] == "i"))


def test_shards_are_mapped_not_read(tmp_path):
    folder = artifact(tmp_path / "e")
    shards = list(iter_shards(folder, read_manifest(folder, "embeddings")))
    assert all(isinstance(shard, np.memmap) for shard in shards)


def test_half_precision_is_widened(tmp_path):
    folder = artifact(tmp_path / "e")
    for path in folder.glob("shard-*.npy"):
        np.save(path, np.load(path).astype(np.float16))
    write_manifest(folder, "embeddings", rows=len(IDS), dim=DIM)
    vectors, _ = load_vectors(folder)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, ROWS, atol=1e-3)


def test_the_transform_is_applied_when_vectors_are_read_but_not_to_shards(tmp_path):
    """The oracle: reflected about the first axis, then what is left of the second is gone."""
    mean = np.full(DIM, 0.1, dtype=np.float32)
    folder = artifact(tmp_path / "e", Transform(mean, np.eye(DIM, dtype=np.float32)[1:2]))
    vectors, manifest = load_vectors(folder)
    expected = ROWS.astype(np.float64) - 0.1
    expected[:, 1] = 0
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert (np.concatenate(list(iter_shards(folder, manifest))) == ROWS).all()


def test_a_transform_that_is_not_in_the_manifest_is_not_applied(tmp_path):
    folder = artifact(tmp_path / "e")
    Transform(np.ones(DIM, np.float32), np.eye(DIM, dtype=np.float32)[:1]).save(folder)
    assert (load_vectors(folder)[0] == ROWS).all()


# --- manifests that do not add up -----------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 10, 12])
def test_shards_that_are_not_all_rows_are_refused(tmp_path, rows):
    folder = artifact(tmp_path / "e", rows=rows)
    with pytest.raises(ArtifactError, match=f"do not hold the {rows} rows of its manifest"):
        load_vectors(folder)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_shard_missing_from_the_manifest_is_noticed(tmp_path, number):
    folder = artifact(tmp_path / "e")
    edit(folder, lambda manifest: manifest["files"].pop(f"shard-{number:05d}.npy"))
    with pytest.raises(ArtifactError, match=r"do not hold the 11 rows(?s:.)*dvc repro embeddings"):
        load_vectors(folder)


def test_a_gap_in_the_numbers_is_noticed_even_if_the_rows_add_up(tmp_path):
    folder = artifact(tmp_path / "e")
    (folder / "shard-00001.npy").rename(folder / "shard-00007.npy")
    write_manifest(folder, "embeddings", rows=4, dim=DIM)  # of the first, the others not found
    with pytest.raises(ArtifactError):
        load_vectors(folder)


def test_another_shape_than_the_manifests_is_refused(tmp_path):
    folder = artifact(tmp_path / "e")
    path = folder / "shard-00001.npy"
    size = path.stat().st_size
    np.save(path, ROWS[4:8].reshape(5, 4))  # as many bytes
    assert path.stat().st_size == size
    with pytest.raises(ArtifactError, match=r"shard-00001\.npy is damaged"):
        load_vectors(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][path.name]["sha256"] = sha256_file(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"shard-00001\.npy has shape \(5, 4\)"):
        load_vectors(folder)


def test_another_width_than_the_manifests_is_refused(tmp_path):
    folder = artifact(tmp_path / "e", dim=4)
    with pytest.raises(ArtifactError, match=r"shard-00000\.npy has shape \(4, 5\)"):
        load_vectors(folder)


def test_a_missing_shard_is_named_before_anything_is_read(tmp_path):
    folder = artifact(tmp_path / "e")
    (folder / "shard-00002.npy").unlink()
    with pytest.raises(ArtifactError, match=r"shard-00002\.npy is missing"):
        load_vectors(folder)


def test_some_rows_are_those_of_all(tmp_path):
    folder = artifact(tmp_path / "e")
    for rows in ([], [0], [3, 4, 10], [5, 6]):
        vectors, _ = load_vectors(folder, np.array(rows, dtype=np.int64))
        assert (vectors == ROWS[rows]).all()
    with pytest.raises(ArtifactError, match=r"has 11 rows, but row 11 is wanted\n.*embeddings"):
        load_vectors(folder, np.array([2, 11]))


def test_a_shard_without_ids_is_named(tmp_path):
    folder = artifact(tmp_path / "e")
    edit(folder, lambda manifest: manifest["files"].pop("ids-00001.txt"))
    with pytest.raises(ArtifactError, match=r"has no ids-00001\.txt\n.*embeddings"):
        read_shard_ids(folder, read_manifest(folder, "embeddings"))
