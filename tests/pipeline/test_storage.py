"""Folders are swapped whole, whatever fails at whatever step; a full disk is named."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from isodense.embeddings.build import embed
from isodense.models.params import ModelParams
from isodense.models.publish import publish as publish_model
from isodense.pipeline import stage
from isodense.pipeline import storage as module
from isodense.pipeline.artifact import (
    publishing,
    read_manifest,
    replacing,
    verify_files,
    write_json,
    write_manifest,
)
from isodense.pipeline.cache import Store
from isodense.pipeline.errors import StorageError
from isodense.pipeline.storage import require_space, storing
from tests import tiny
from tests.embeddings.test_build import PARAMS as EMBEDDINGS

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
    assert failed or calls[0] == SIZE + 6  # files, the folder, two renames, its parent, removal
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


def test_a_link_or_a_file_in_the_place_is_replaced_and_what_it_leads_to_stays(tmp_path):
    publish(tmp_path / "there", 1)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "file").write_text("x")
    publish(tmp_path / "link", 2)
    publish(tmp_path / "file", 2)
    assert [value_of(tmp_path / name) for name in ("there", "link", "file")] == [1, 2, 2]


# --- disks and rights -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_by_the_folder(tmp_path, error):
    out = tmp_path / "map"
    with pytest.raises(StorageError, match="no space left on the disk") as caught:
        with publishing(out) as staging, storing(staging):
            raise error
    assert caught.value.message.endswith(f"of {out}")
    assert caught.value.hint.startswith("free some")
    assert not list(tmp_path.iterdir())


def test_what_numpy_says_of_a_short_write_counts_only_if_the_disk_is_full(tmp_path, monkeypatch):
    with pytest.raises(StorageError, match="cannot be read or written: 100 req"), storing(tmp_path):
        raise OSError("100 requested and 0 written")
    monkeypatch.setattr(module, "_free", lambda _: 0)
    with pytest.raises(StorageError, match="no space left"), storing(tmp_path):
        raise OSError("100 requested and 0 written")


def test_a_real_full_device(tmp_path):
    """Linux' /dev/full takes no byte."""

    def written() -> None:
        with publishing(tmp_path / "map") as staging:
            (staging / "x.txt").symlink_to("/dev/full")
            (staging / "x.txt").write_text("x")

    with pytest.raises(StorageError, match="no space left on the disk of"):
        written()


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EROFS, "read-only file system"), (errno.EACCES, "denied")]
)
def test_a_folder_that_may_not_be_written_is_named(tmp_path, monkeypatch, number, words):
    def refused(self, *_, **__):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(StorageError, match=words) as caught:
        publish(tmp_path / "map", 1)
    assert str(tmp_path / "map") in str(caught.value) or str(tmp_path) in str(caught.value)
    assert ".tmp" not in str(caught.value)


def test_a_stage_prints_one_error_and_no_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stages/map.py"])

    def main(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SystemExit) as caught:
        stage.run("map", main)
    assert caught.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("[map] error: no space left on")
    assert lines[1].startswith("  -> free")
    assert len(lines) == 2


def test_finished_pieces_stay_when_the_disk_is_full(tmp_path):
    entry = Store(tmp_path, "embeddings").entry("key")
    with entry.writing("one") as path:
        path.write_text("1")

    def write_half() -> None:
        with entry.writing("two") as path:
            path.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="no space left"):
        write_half()
    assert entry.holds("one")
    assert not entry.holds("two")
    assert {file.name for file in entry.folder.iterdir()} == {"one", "one.sha256"}


def test_a_cache_that_is_a_file_or_may_not_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    for cache in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match=r"file is not a folder(?s:.)*ISODENSE_CACHE"):
            Store(cache, "embeddings")
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="dead is not a folder"):
        Store(tmp_path / "dead", "embeddings")
    Store(tmp_path / "new" / "cache", "embeddings")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StorageError, match=r"cannot be written(?s:.)*ISODENSE_CACHE"):
        Store(tmp_path, "embeddings")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.EIO, "Input/output error", "/x/a"),
            "^/x/a cannot be read or",
        ),
        (OSError(errno.EIO, "Input/output error", "a"), r"map cannot be read or written: .*Input"),
        (SafetensorError("I/O error: Input/output error (os error 5)"), "map cannot be read or"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "map cannot be read or"),
        (SafetensorError("I/O error: File too large (os error 27)"), "map would be larger than"),
        (shutil.Error([("a", "b", "[Errno 5] Input/output error: 'b'")]), "map cannot be read or"),
        (OSError(errno.ENOENT, "No such file"), None),
        (SafetensorError("invalid header"), None),
    ],
)
def test_what_libraries_say_of_a_disk_becomes_one_line(tmp_path, error, words):
    with pytest.raises(StorageError if words else type(error), match=words) as caught:
        with storing(tmp_path / "map"):
            raise error
    assert words is None or caught.value.hint


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limits of files")
def test_a_real_limit_is_named_and_the_old_stays(tmp_path):
    """The kernel cuts the write short, as a quota does."""
    publish(tmp_path / "map", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot be read or written|would be larger"):
            publish(tmp_path / "map", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert value_of(tmp_path / "map") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


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


# --- room -----------------------------------------------------------------------------------------


def test_too_little_room_is_said_before_the_work_with_folders_and_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_needed", {})
    needs = {tmp_path / "cache": 3_000_000, tmp_path / "new" / "out": 1_500_000}
    require_space("embeddings", needs)
    monkeypatch.setattr(module, "_free", lambda _: 4_000_000)
    with pytest.raises(StorageError, match=r"embeddings needs about 4\.5 MB in .*cache and .*out"):
        require_space("embeddings", needs)  # of one disk
    with pytest.raises(StorageError, match=r"where the run needs about 4\.5 MB"):
        with storing(tmp_path / "cache" / "key"):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageError, match=r"of /elsewhere\n"), storing(Path("/elsewhere")):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_stages_say_what_they_need_before_they_begin(tmp_path, monkeypatch):
    prompts, encoder = tiny.prompts(tmp_path / "prompts", 40), tiny.encoder(tmp_path / "encoder")
    monkeypatch.setattr(module, "_free", lambda _: 1000)
    with pytest.raises(
        StorageError, match=r"embeddings needs about 10 kB in .*embeddings and .*out"
    ):
        embed(prompts, encoder, EMBEDDINGS, "cpu", tmp_path / "cache", tmp_path / "out")
    assert not [*tmp_path.glob("cache/embeddings/*/*.npy*")]
    source = ModelParams(source="folder", name=str(encoder), version=None, sha256=None, path=None)
    with pytest.raises(StorageError, match=r"models needs about \d+ kB in .*model, where 1\.0 kB"):
        publish_model("encoder", source, tmp_path / "model", tmp_path / "cache")
    assert not (tmp_path / "model").exists()
