"""Artifacts are whole or absent, and damage is noticed."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from isodense.artifacts import (
    ids_sha256,
    load_array,
    publishing,
    read_manifest,
    require_same_ids,
    verify_files,
    write_manifest,
)
from isodense.errors import ArtifactError


@pytest.fixture
def made(tmp_path):
    with publishing(tmp_path / "art") as scratch:
        np.save(scratch / "x.npy", np.arange(3))
        write_manifest(scratch, "density", rows=3, ids_sha256=ids_sha256(["a", "b"]))
    return tmp_path / "art"


def test_a_published_artifact_reads_back(made):
    manifest = read_manifest(made, "density")
    assert manifest["rows"] == 3
    assert list(manifest["files"]) == ["x.npy"]
    verify_files(made, manifest)


def test_an_error_leaves_the_old_artifact(made):
    def interrupted():
        with publishing(made) as scratch:
            (scratch / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read_manifest(made, "density")["rows"] == 3
    with publishing(made) as scratch:
        assert not list(scratch.iterdir())
        write_manifest(scratch, "density", rows=4)
    assert read_manifest(made, "density")["rows"] == 4
    assert not made.with_name("art.tmp").exists()


def test_the_same_files_give_the_same_manifest(made, tmp_path):
    with publishing(tmp_path / "other") as scratch:
        np.save(scratch / "x.npy", np.arange(3))
        write_manifest(scratch, "density", rows=3, ids_sha256=ids_sha256(["a", "b"]))
    one, other = (path / "manifest.json" for path in (made, tmp_path / "other"))
    assert one.read_bytes() == other.read_bytes()


def test_incomplete_foreign_and_newer_artifacts_are_refused(made):
    with pytest.raises(ArtifactError, match="dvc repro density"):
        read_manifest(made / "nothing", "density")
    with pytest.raises(ArtifactError, match="holds 'density', not 'neighbors'"):
        read_manifest(made, "neighbors")
    path = made / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(ArtifactError, match="format version 99"):
        read_manifest(made, "density")
    path.write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        read_manifest(made, "density")


def test_a_missing_short_or_changed_file_is_named(made):
    manifest = read_manifest(made, "density")
    whole = (made / "x.npy").read_bytes()
    (made / "x.npy").write_bytes(whole[:-1] + b"!")
    read_manifest(made, "density")
    with pytest.raises(ArtifactError, match=r"x\.npy is damaged"):
        verify_files(made, manifest)
    (made / "x.npy").write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match=r"x\.npy has"):
        read_manifest(made, "density")
    (made / "x.npy").unlink()
    with pytest.raises(ArtifactError, match=r"x\.npy is missing"):
        read_manifest(made, "density")


def test_a_manifest_cannot_point_outside_its_folder(made):
    path = made / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": ""}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="outside it"):
        read_manifest(made, "density")


def test_other_ids_are_refused(made):
    manifest = read_manifest(made, "density")
    require_same_ids(ids_sha256(["a", "b"]), manifest, "the weights")
    with pytest.raises(ArtifactError, match="the weights belong to other prompts"):
        require_same_ids(ids_sha256(["b", "a"]), manifest, "the weights")


def test_pickles_and_noise_are_not_arrays(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("objects", "raw", "empty"):
        with pytest.raises(ArtifactError, match=f"{name}.npy is not a plain"):
            load_array(tmp_path / f"{name}.npy")
