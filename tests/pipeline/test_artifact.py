"""Artifacts are whole or absent, and damage is noticed."""

from __future__ import annotations

import json
import pickle
from functools import partial

import numpy as np
import pytest

from isodense.pipeline.artifact import (
    checked,
    content_sha256,
    ids_sha256,
    load_array,
    made_from_others,
    publishing,
    read_manifest,
    replacing,
    require_same_ids,
    verify_files,
    write_json,
    write_manifest,
)
from isodense.pipeline.errors import ArtifactError

STAGE = "dvc repro density"
SHA256 = "eed7c944a674e7e9a3f4baf8393c37b9f169123e13a884a08b151a39da2adef5"  # of arange(3)


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
    entry = manifest["files"]["x.npy"]
    assert (entry["dtype"], entry["shape"]) == ("int64", [3])
    assert (entry["bytes"], entry["sha256"]) == ((made / "x.npy").stat().st_size, SHA256)
    text = (made / "manifest.json").read_text(encoding="utf-8")
    assert text == json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    verify_files(made, manifest)


def test_what_is_missing_outside_a_project_may_be_what_weigh_kept(tmp_path, monkeypatch):
    def hint(folder, kind="density"):
        with pytest.raises(ArtifactError) as caught:
            read_manifest(folder, kind)
        return caught.value.hint

    monkeypatch.chdir(tmp_path)
    for folder in ("data/density", tmp_path / "data" / "density"):
        assert STAGE in hint(folder)
        assert "there is no project here" in hint(folder)
        assert "`isodense weigh --work DIR` keeps: --data DIR" in hint(folder)
        assert hint(folder).endswith("in Python 'DIR/density'")
    assert "in the folder of one" in hint("models/policy", "models")
    assert "--work" not in hint("models/policy", "models")
    (tmp_path / "dvc.yaml").touch()
    assert "no project" not in hint("data/density")
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    assert "no project" not in hint(tmp_path / "data" / "density")
    assert "no project" in hint("data/density")


def test_what_others_know_an_artifact_by():
    """A model by its files, wherever they came from; all else by the whole manifest."""
    files = {"a": {"sha256": "1"}, "b": {"sha256": "2"}}
    one = content_sha256({"kind": "models", "files": files, "name": "x"})
    assert content_sha256({"name": "y", "files": files, "kind": "models"}) == one
    assert content_sha256({"kind": "models", "files": dict(reversed(files.items()))}) == one
    assert content_sha256({"kind": "models", "files": {"a": files["a"]}}) != one
    rest = {"kind": "density", "files": files, "rows": 3}
    assert content_sha256(rest) == content_sha256(dict(reversed(rest.items())))
    assert content_sha256(rest) != content_sha256(rest | {"rows": 4})


def test_what_is_no_number_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "metrics.json", {"gap": float("nan")})
    assert not [*tmp_path.iterdir()]


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
    assert [path.name for path in made.parent.iterdir()] == ["art"]


def test_the_same_files_give_the_same_manifest(made, tmp_path):
    with publishing(tmp_path / "other") as scratch:
        np.save(scratch / "x.npy", np.arange(3))
        write_manifest(scratch, "density", rows=3, ids_sha256=ids_sha256(["a", "b"]))
    one, other = (path / "manifest.json" for path in (made, tmp_path / "other"))
    assert one.read_bytes() == other.read_bytes()


def test_incomplete_foreign_and_newer_artifacts_are_refused(made):
    with pytest.raises(ArtifactError, match=rf"nothing is not there\n  -> .*{STAGE}"):
        read_manifest(made / "nothing", "density")
    with pytest.raises(ArtifactError, match=rf"has no manifest\.json: .*\n  -> .*{STAGE}"):
        read_manifest(made.parent, "density")
    with pytest.raises(ArtifactError, match=rf"x\.npy is a file, .*\n  -> .*{STAGE}"):
        read_manifest(made / "x.npy", "density")
    with pytest.raises(ArtifactError, match=r"holds 'density', not 'neighbors'\n  -> run `dvc"):
        read_manifest(made, "neighbors")
    path = made / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 99'))
    with pytest.raises(ArtifactError, match=r"format version 99.*\n  -> upgrade isodense"):
        read_manifest(made, "density")
    path.write_text("{")
    with pytest.raises(ArtifactError, match=rf"not JSON.*\n  -> .*{STAGE}"):
        read_manifest(made, "density")
    for text in ("[]", "{}", '{"kind": "density", "files": ["x.npy"]}'):
        path.write_text(text)
        with pytest.raises(ArtifactError, match=r"is not a manifest\n.*dvc repro density"):
            read_manifest(made, "density")


def test_an_artifact_made_from_an_older_input_is_named_by_its_folder():
    examples, prompts = ({"kind": kind, "files": {}} for kind in ("download", "prompts"))
    made = {"examples": examples, "prompts": prompts}
    prompts["inputs"] = {"pairs": content_sha256(examples), "unknown": "0"}  # its older name
    assert made_from_others(made) == []
    examples["rows"] = 2
    assert made_from_others(made) == [("prompts", "examples")]


def test_a_missing_short_or_changed_file_is_named(made):
    manifest = read_manifest(made, "density")
    whole = (made / "x.npy").read_bytes()
    (made / "x.npy").write_bytes(whole[:-1] + b"!")
    read_manifest(made, "density")
    restore = rf"\n  -> run `dvc checkout --force {made}` or the stage again"
    for read in (verify_files, partial(checked, name="x.npy")):
        with pytest.raises(ArtifactError, match=rf"x\.npy is damaged.*{restore}"):
            read(made, manifest)
    (made / "x.npy").write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match=rf"x\.npy has .* bytes, not .*{restore}"):
        read_manifest(made, "density")
    (made / "x.npy").unlink()
    with pytest.raises(ArtifactError, match=rf"x\.npy is missing\n  -> .*{STAGE}"):
        read_manifest(made, "density")
    with pytest.raises(ArtifactError, match=rf"x\.npy is missing{restore}"):
        checked(made, manifest, "x.npy")
    with pytest.raises(ArtifactError, match=rf"y\.npy is not in the artifact's .*{restore}"):
        checked(made, manifest, "y.npy")


@pytest.mark.parametrize(
    "name", ["../secret", "x/../../secret", "x/..", "/etc/hostname", "{made}/x.npy", "x/../x.npy"]
)
def test_a_manifest_cannot_point_outside_its_folder(made, name):
    (made.parent / "secret").write_text("s")
    path = made / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name.format(made=made)] = {"bytes": 1, "sha256": ""}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="names a file outside it"):
        read_manifest(made, "density")


@pytest.mark.parametrize("linked", ["folder", "files", "both"])
def test_an_artifact_is_readable_through_symbolic_links(made, tmp_path, linked):
    """As DVC leaves it with ``cache.type = symlink``: files are links into its cache."""
    whole = read_manifest(made, "density")
    folder = made
    if linked != "folder":
        (tmp_path / "cache").mkdir()
        for number, path in enumerate(sorted(made.iterdir())):
            target = path.rename(tmp_path / "cache" / f"{number:032x}")  # under another name
            path.symlink_to(target)
    if linked != "files":
        folder = tmp_path / "link"
        folder.symlink_to(made, target_is_directory=True)
    manifest = read_manifest(folder, "density")
    assert manifest == whole
    verify_files(folder, manifest)
    for mmap in (False, True):
        assert (load_array(folder / "x.npy", mmap=mmap) == np.arange(3)).all()
    assert write_manifest(folder, "density", rows=3)["files"] == whole["files"]


def test_damage_behind_a_link_is_noticed_and_a_dead_link_is_named(made, tmp_path):
    target = (made / "x.npy").rename(tmp_path / "cached")
    (made / "x.npy").symlink_to(target)
    manifest = read_manifest(made, "density")
    target.write_bytes(target.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError, match=r"x\.npy is damaged"):
        verify_files(made, manifest)
    target.unlink()
    with pytest.raises(ArtifactError, match=r"x\.npy is missing"):
        read_manifest(made, "density")


def test_files_in_folders_of_an_artifact_are_its_files(tmp_path):
    with publishing(tmp_path / "art") as scratch:
        (scratch / "a" / "b").mkdir(parents=True)
        (scratch / "a" / "b" / "x.txt").write_text("x")
        write_manifest(scratch, "models")
    manifest = read_manifest(tmp_path / "art", "models")
    assert list(manifest["files"]) == ["a/b/x.txt"]
    verify_files(tmp_path / "art", manifest)


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


def test_an_array_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"x\.npy: no such file\n.*the stage that writes it"):
        load_array(tmp_path / "x.npy")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as scratch:
        scratch.write_text("first")
        assert not path.exists()
    scratch = replacing(path)
    scratch.__enter__().write_text("half")
    assert not scratch.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert path.read_text() == "first"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]
