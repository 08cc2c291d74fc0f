"""A disk that is full, fails or may not be written is one line, before the work where known."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from isodense.embeddings.build import embed
from isodense.models.params import ModelParams
from isodense.models.publish import publish as publish_model
from isodense.pipeline import stage
from isodense.pipeline import storage as module
from isodense.pipeline.artifact import publishing
from isodense.pipeline.cache import Store
from isodense.pipeline.errors import StorageError
from isodense.pipeline.storage import require_space, storing
from tests import tiny
from tests.embeddings.test_build import PARAMS as EMBEDDINGS
from tests.pipeline.test_storage import publish, value_of

Device = namedtuple("Device", "st_dev")


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


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EXDEV, "Cross-device link", "/a/old", None, "/b/new"), None),
        (
            OSError(errno.EIO, "Input/output error", "/a/old", None, "/b/new"),
            "/b/new cannot be read or written: Input/output error",
        ),
        (
            SafetensorError("I/O error: Input/output error (os error 5)"),
            "{place} cannot be read or written: Input/output error",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", f"/a/map.{'0' * 32}.tmp/new/x"),
            "/a/map is on a read-only file system",
        ),
        (
            OSError(errno.EPERM, "Operation not permitted", "x"),
            "{place}: permission denied",
        ),
    ],
)
def test_the_line_names_the_target_and_the_reason_once(tmp_path, error, line):
    with pytest.raises(StorageError if line else OSError) as caught, storing(tmp_path / "map"):
        raise error
    if line:
        assert caught.value.message == line.format(place=tmp_path / "map")
        assert caught.value.hint


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


def test_each_disk_has_room_for_its_own_folders(tmp_path, monkeypatch):
    """Two disks, of 5 and 1 MB: what goes to one is not asked of the other."""
    free = {"big": 5_000_000, "small": 1_000_000}
    monkeypatch.setattr(module, "_needed", {})
    monkeypatch.setattr(module, "_free", lambda folder: free[folder.name])
    monkeypatch.setattr(
        module, "existing", lambda folder: SimpleNamespace(stat=lambda: Device(folder.name))
    )
    big, small = tmp_path / "big", tmp_path / "small"
    require_space("models", {big: 5_000_000, small: 1_000_000})  # just enough
    with pytest.raises(StorageError) as caught:
        require_space("models", {big: 5_000_000, small: 1_000_001})
    assert caught.value.message == f"models needs about 1.0 MB in {small}, where 1.0 MB are free"
    assert "isodense doctor" in caught.value.hint


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (9, "9 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_940, "9.9 kB"),
        (10_000, "10 kB"),
        (10_600, "11 kB"),
        (1_500_000, "1.5 MB"),
        (999_000_000, "999 MB"),
        (2_000_000_000, "2.0 GB"),
        (3_000_000_000_000, "3.0 TB"),
        (4_000_000_000_000_000, "4000 TB"),
    ],
)
def test_sizes_are_in_decimal_units(number, text):
    assert module.size(number) == text
