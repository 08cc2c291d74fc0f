"""Folders are swapped whole, whatever fails at whatever step, and writers do not meet."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from isodense.pipeline import storage as module
from isodense.pipeline.artifact import (
    publishing,
    read_manifest,
    replacing,
    verify_files,
    write_json,
    write_manifest,
)
from isodense.pipeline.errors import StorageError

SIZE = 3  # files of an artifact


def publish(out: Path, value: int) -> None:
    with publishing(out) as staging:
        for name in range(SIZE):
            np.save(staging / f"{name}.npy", np.full(4, value))
        write_manifest(staging, "map", rows=value)


def value_of(out: Path) -> int | None:
    """Return which artifact is there, after checking that it is whole; None if there is none."""
    if not out.exists():
        return None
    manifest = read_manifest(out, "map")
    verify_files(out, manifest)
    assert len(manifest["files"]) == SIZE == len(list(out.iterdir())) - 1
    return int(manifest["rows"])


def fail_at(patch: pytest.MonkeyPatch, step: int) -> list[int]:
    """Make the call of that number, of all renames, removals and syncs, fail; count them."""
    calls = [0]

    def failing(original):
        def call(*args, **kwargs):
            calls[0] += 1
            if calls[0] == step:
                raise OSError(errno.EIO, "the disk is gone")
            return original(*args, **kwargs)

        return call

    patch.setattr(Path, "rename", failing(Path.rename))
    patch.setattr(shutil, "rmtree", failing(shutil.rmtree))
    patch.setattr(os, "fsync", failing(os.fsync))
    return calls


@pytest.mark.parametrize("step", range(1, 10))
def test_a_failure_at_any_step_leaves_the_old_or_the_new(tmp_path, monkeypatch, step):
    publish(tmp_path / "map", 1)
    with monkeypatch.context() as patch:
        calls = fail_at(patch, step)
        try:
            publish(tmp_path / "map", 2)
            failed = False
        except StorageError:
            failed = True
    assert failed == (step < SIZE + 6)  # files, the folder, two renames, its parent, removal
    assert failed or calls[0] == SIZE + 6
    assert value_of(tmp_path / "map") == (1 if failed and step <= SIZE + 4 else 2)
    publish(tmp_path / "map", 3)
    assert value_of(tmp_path / "map") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from tests.pipeline.test_storage import publish
out, step, before = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "before"
calls = 0
def killing(original):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == step and before:
            os.kill(os.getpid(), signal.SIGKILL)
        found = original(*args, **kwargs)
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    return call
Path.rename, shutil.rmtree, os.fsync = map(killing, (Path.rename, shutil.rmtree, os.fsync))
publish(out, 2)
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", [1, 6, 7, 8, 9])
def test_a_kill_at_any_step_leaves_the_old_the_new_or_none(tmp_path, step, when):
    publish(tmp_path / "map", 1)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "map"), str(step), when]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}/src:{root}"}
    done = subprocess.run(command, check=False, env=environment)
    assert done.returncode == -9
    both = {(6, "after"): None, (7, "before"): None}  # between the two renames
    new = step > 7 or (step == 7 and when == "after")
    assert value_of(tmp_path / "map") == both.get((step, when), 2 if new else 1)
    publish(tmp_path / "map", 3)
    assert value_of(tmp_path / "map") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["map"]  # what was left is gone


def test_writers_side_by_side_end_with_a_whole_artifact(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(publish, tmp_path / "map", value) for value in range(1, 41)]
        for job in jobs:
            job.result()
    assert value_of(tmp_path / "map") in range(1, 41)
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


def test_a_living_writers_folder_is_let_be_and_others_names_too(tmp_path):
    for name in ("map.tmp", "mapped." + "0" * 32 + ".tmp", "map.old"):
        (tmp_path / name).mkdir()
    with publishing(tmp_path / "map") as first:
        (first / "x").write_text("x")
        publish(tmp_path / "map", 1)
        assert (first / "x").exists()
        write_manifest(first, "map", rows=2)
    assert read_manifest(tmp_path / "map", "map")["rows"] == 2
    assert len(list(tmp_path.iterdir())) == 4


def test_what_another_writer_puts_in_the_place_is_replaced_too(tmp_path, monkeypatch):
    """Each time that this writer has moved the old folder aside, another one fills the place."""
    publish(tmp_path / "map", 1)
    others, rename = [2, 3], Path.rename

    def overtaken(self: Path, target: Path) -> Path:
        if self.name == "new" and target == tmp_path / "map" and others:
            with monkeypatch.context() as patch:
                patch.setattr(Path, "rename", rename)
                publish(target, others.pop(0))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    publish(tmp_path / "map", 4)
    assert not others
    assert value_of(tmp_path / "map") == 4
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


def test_where_folders_cannot_be_locked_only_old_staging_folders_are_removed(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", unsupported)
    young, old = (tmp_path / f"map.{digit * 32}.tmp" for digit in "01")
    for path in (young, old):
        path.mkdir()
    os.utime(old, (time.time() - 1.1 * module.ABANDONED,) * 2)
    publish(tmp_path / "map", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"map", young.name}
    assert value_of(tmp_path / "map") == 1


def test_a_staging_folder_that_others_take_for_abandoned_is_made_again(tmp_path, monkeypatch):
    """The first is gone before it is opened, the second before it is locked."""
    moments, real, paths = ["open", "lock"], (os.open, module.fcntl.flock), {}

    def remove(path: Path, moment: str) -> None:
        if path.suffix == ".tmp" and moments[:1] == [moment]:
            moments.pop(0)
            path.rmdir()

    def opening(path, *rest, **more):
        remove(Path(path), "open")
        found = real[0](path, *rest, **more)
        paths[found] = Path(path)
        return found

    def locking(lock, how):
        remove(paths[lock], "lock")
        real[1](lock, how)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(module.fcntl, "flock", locking)
    publish(tmp_path / "map", 1)
    assert not moments
    assert value_of(tmp_path / "map") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


def test_all_that_dead_writers_left_is_removed_and_nothing_stops_it(tmp_path, monkeypatch):
    for digit in "0123":
        (tmp_path / f"map.{digit * 32}.tmp").mkdir()
    (tmp_path / "other.tmp").mkdir()
    (tmp_path / f"map.{'4' * 32}.tmp").touch()  # a file is none of ours
    publish(tmp_path / "deep" / "er" / "map", 1)
    publish(tmp_path / "map", 1)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"map", "deep", "other.tmp", f"map.{'4' * 32}.tmp"}
    (tmp_path / f"map.{'5' * 32}.tmp").mkdir()
    rmtree = shutil.rmtree

    def unremovable(path, ignore_errors=False):
        if "5" * 32 not in str(path):
            rmtree(path, ignore_errors=ignore_errors)
        elif not ignore_errors:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "rmtree", unremovable)
    publish(tmp_path / "map", 2)
    assert value_of(tmp_path / "map") == 2


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_file_systems_that_cannot_sync_are_written_all_the_same(tmp_path, monkeypatch, number):
    def unsupported(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", unsupported)
    publish(tmp_path / "map", 1)
    assert value_of(tmp_path / "map") == 1


def test_a_link_or_a_file_in_the_place_is_replaced_and_what_it_leads_to_stays(tmp_path):
    publish(tmp_path / "there", 1)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "file").write_text("x")
    publish(tmp_path / "link", 2)
    publish(tmp_path / "file", 2)
    assert [value_of(tmp_path / name) for name in ("there", "link", "file")] == [1, 2, 2]


def test_a_file_is_replaced_whole_and_what_a_killed_writer_left_goes(tmp_path):
    left = tmp_path / f"metrics.json.{'0' * 32}.tmp"
    left.mkdir()
    (left / "metrics.json").write_text("half")
    write_json(tmp_path / "metrics.json", {"a": 1})

    def write_half() -> None:
        with replacing(tmp_path / "metrics.json") as staging:
            staging.write_text("half")
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(StorageError, match="cannot be read or written"):
        write_half()
    assert (tmp_path / "metrics.json").read_text() == '{\n  "a": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
