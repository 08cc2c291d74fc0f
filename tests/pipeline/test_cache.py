"""One key for what a result depends on, and one store for finished pieces."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from isodense.pipeline import cache
from isodense.pipeline.cache import Entry, Store, cache_key, sequences_sha256, source_sha256
from isodense.pipeline.errors import IsodenseError, StorageError

EVERYTHING = {
    "inputs": {"policy": {"kind": "models", "files": {"a": 1}}},
    "params": {"layer": 2},
    "code": ("sampling",),
    "libraries": ("numpy",),
    "device": "cpu",
    "processes": {"WORLD_SIZE": "1"},
}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("inputs", {"policy": {"kind": "models", "files": {"a": 2}}}),
        ("inputs", {"policy": {"kind": "reward", "files": {"a": 1}}}),
        ("inputs", {"prompts": {"kind": "models", "files": {"a": 1}}}),
        ("params", {"layer": 3}),
        ("params", {"layer": 2, "pooling": "last"}),
        ("code", ("sampling", "train")),
        ("code", 1),
        ("libraries", ("torch",)),
        ("device", "cuda"),
        ("processes", {"WORLD_SIZE": "2"}),
        ("processes", None),
    ],
)
def test_every_part_is_in_the_key(name, other):
    assert re.fullmatch(r"[0-9a-f]{40}", cache_key(**EVERYTHING))
    assert cache_key(**EVERYTHING) == cache_key(**EVERYTHING)
    assert cache_key(**EVERYTHING | {name: other}) != cache_key(**EVERYTHING)


def test_versions_and_source_are_in_the_key(tmp_path, monkeypatch):
    before = cache_key(**EVERYTHING)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "0")
        assert cache_key(**EVERYTHING) != before
    (tmp_path / "sampling/deep").mkdir(parents=True)
    (tmp_path / "sampling/draw.py").write_text("one = 1\n")
    (tmp_path / "sampling/deep/more.py").write_text("two = 2\n")
    monkeypatch.setattr(cache, "PACKAGE", tmp_path)
    keys = []
    for text in ("two = 2\n", "two = 3\n"):
        (tmp_path / "sampling/deep/more.py").write_text(text)
        source_sha256.cache_clear()
        keys.append(cache_key(**EVERYTHING))
    (tmp_path / "sampling/deep/more.py").rename(tmp_path / "sampling/deep/moved.py")
    source_sha256.cache_clear()
    keys.append(cache_key(**EVERYTHING))
    assert len({before, *keys}) == 4
    with pytest.raises(FileNotFoundError, match="no package 'samplign'"):
        cache_key(**EVERYTHING | {"code": ("samplign",)})
    source_sha256.cache_clear()


def test_the_format_is_in_the_key_and_the_order_of_names_is_not(monkeypatch):
    two = {"inputs": {"a": 1, "b": 2}}
    turned = {"inputs": {"b": 2, "a": 1}}
    before = cache_key(**EVERYTHING | two)
    assert cache_key(**EVERYTHING | turned) == before
    monkeypatch.setattr(cache, "FORMAT_VERSION", cache.FORMAT_VERSION + 1)
    assert cache_key(**EVERYTHING | two) != before


def test_lengths_of_sequences_are_hashed_too():
    assert sequences_sha256([[1, 2], [3]]) != sequences_sha256([[1], [2, 3]])
    assert sequences_sha256([[1, 2]]) == sequences_sha256(iter([(1, 2)]))
    as_bytes = b"".join(number.to_bytes(4, "little") for number in (2, 1, 200_000, 1, 3))
    assert sequences_sha256([[1, 200_000], [3]]) == hashlib.sha256(as_bytes).hexdigest()
    assert sequences_sha256([[200_000]]) != sequences_sha256([[200_000 % 2**16]])


def test_a_piece_is_there_once_it_is_whole(tmp_path: Path):
    entry = Store(tmp_path, "kind").entry("key")
    assert not entry.holds("piece")
    with suppress(KeyboardInterrupt), entry.writing("piece") as path:
        path.write_bytes(b"half of")
        raise KeyboardInterrupt
    assert not entry.holds("piece")
    assert list(entry.folder.iterdir()) == []
    with entry.writing("piece") as path:
        path.write_bytes(b"all of it")
        assert not entry.holds("piece")
    assert entry.holds("piece")
    assert entry.path("piece").read_bytes() == b"all of it"
    with entry.writing("piece") as path:
        path.write_bytes(b"another")
    assert entry.holds("piece")


def test_a_folder_is_a_piece_too(tmp_path: Path):
    entry = Entry(tmp_path)
    for text in ("first", "second"):
        with entry.writing("model") as path:
            (path / "inner").mkdir(parents=True)
            (path / "inner/weights").write_text(text)
    assert entry.holds("model")
    assert (entry.path("model") / "inner/weights").read_text() == "second"
    (entry.path("model") / "inner").rename(entry.path("model") / "moved")
    assert not entry.holds("model")
    (entry.path("model") / "moved").rename(entry.path("model") / "inner")
    assert entry.holds("model")
    (entry.path("model") / "more").touch()
    assert not entry.holds("model")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs the names of open files")
def test_a_piece_is_on_disk_before_it_is_renamed(tmp_path: Path, monkeypatch):
    synced, real = [], os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda file: synced.append(Path(f"/proc/self/fd/{file}").readlink()) or real(file),
    )
    with Entry(tmp_path).writing("model") as path:
        path.mkdir()
        (path / "one").write_text("1")
        (path / "two").write_text("2")
    assert [path.name for path in synced] == ["one", "two"]


@pytest.mark.parametrize("damage", ["short", "bit", "no digest", "other digest", "gone"])
def test_a_damaged_piece_counts_as_missing(tmp_path: Path, damage: str):
    entry = Entry(tmp_path)
    with entry.writing("piece") as path:
        path.write_bytes(b"0123456789")
    digest = entry.path("piece.sha256")
    if damage == "short":
        entry.path("piece").write_bytes(b"01234")
    elif damage == "bit":
        entry.path("piece").write_bytes(b"0123456788")
    elif damage == "no digest":
        digest.unlink()
    elif damage == "other digest":
        digest.write_bytes(b"\xff" * 64)
    else:
        entry.path("piece").unlink()
    assert not entry.holds("piece")


def test_a_kill_at_any_moment_leaves_a_piece_whole_or_missing(tmp_path: Path):
    """The moments are those between the renames: the digest comes first."""
    entry = Entry(tmp_path)
    with entry.writing("piece") as path:
        path.write_bytes(b"old")
    real = Path.replace

    def full(self, target):
        if not str(target).endswith(".sha256"):
            raise OSError("no space left")
        return real(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(StorageError, match="no space"), entry.writing("piece") as path:
            path.write_bytes(b"new")
    assert not entry.holds("piece")  # the new digest, the old bytes


def test_entries_are_cleaned_a_week_after_their_last_use(tmp_path: Path, monkeypatch):
    store, now = Store(tmp_path, "kind"), time.time()
    store.clean()  # of a kind that has none
    for days in (1, 6, 8, 20):
        (store.folder / f"{days}").mkdir(parents=True)
        (store.folder / f"{days}/piece").touch()
        os.utime(store.folder / f"{days}", (now - days * 86_400,) * 2)
    (store.folder / "left.npy").touch()  # of an older version
    os.utime(store.folder / "left.npy", (0, 0))
    store.entry("20")  # used now
    store.clean()
    assert {path.name for path in store.folder.iterdir()} == {"1", "6", "20"}
    monkeypatch.setenv("ISODENSE_CACHE_DAYS", "2")
    Store(tmp_path, "kind").clean()
    assert {path.name for path in store.folder.iterdir()} == {"1", "20"}
    monkeypatch.setenv("ISODENSE_CACHE_DAYS", "two")
    with pytest.raises(IsodenseError, match="'two', not a number of days"):
        Store(tmp_path, "kind")


HOLDER = """
import sys, time
from pathlib import Path
from isodense.pipeline.cache import Entry

with Entry(Path(sys.argv[1])).claimed("training"):
    print("claimed", flush=True)
    time.sleep(60)
"""


def test_a_claim_ends_with_its_process(tmp_path: Path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "entry"], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "claimed\n"
    entry = Entry(tmp_path / "entry")
    with (
        pytest.raises(IsodenseError, match=rf"is training in .*entry(?s:.)*{holder.pid} on"),
        entry.claimed("training"),
    ):
        pass
    holder.kill()
    holder.wait()
    with entry.claimed("training"):
        pass


def test_what_a_run_has_claimed_is_not_cleaned(tmp_path: Path):
    store = Store(tmp_path, "kind")
    for name in ("claimed", "left"):
        with store.entry(name).claimed("training"):
            pass
    with store.entry("claimed").claimed("training"):
        for name in ("claimed", "left"):
            os.utime(store.folder / name, (0, 0))
        store.clean()
        assert [path.name for path in store.folder.iterdir()] == ["claimed"]


def test_cleaning_meets_links_and_what_killed_runs_left(tmp_path: Path):
    store = Store(tmp_path, "kind")
    entry = store.entry("used")
    with entry.writing("piece") as path:
        path.write_bytes(b"1")
    (tmp_path / "elsewhere").mkdir()
    (store.folder / "link").symlink_to(tmp_path / "elsewhere")
    (entry.folder / "piece.0.tmp").mkdir()
    for path in (store.folder / "link", entry.folder / "piece.0.tmp"):
        os.utime(path, (0, 0), follow_symlinks=False)
    store.clean()
    assert (tmp_path / "elsewhere").is_dir()
    assert [path.name for path in store.folder.iterdir()] == ["used"]
    assert sorted(path.name for path in entry.folder.iterdir()) == ["piece", "piece.sha256"]


def test_looking_for_entries_does_not_keep_them(tmp_path: Path):
    store = Store(tmp_path, "kind")
    with store.entry("old").writing("piece") as path:
        path.write_bytes(b"1")
    os.utime(store.folder / "old", (0, 0))
    assert [entry.folder.name for entry in store.entries("piece")] == ["old"]
    store.clean()
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize("where", ["piece", "piece.sha256"])
def test_a_folder_or_file_in_the_wrong_place_is_replaced(tmp_path: Path, where: str):
    entry = Entry(tmp_path)
    (tmp_path / where).mkdir()
    (tmp_path / where / "junk").touch()
    assert not entry.holds("piece")
    with entry.writing("piece") as path:
        path.write_bytes(b"1")
    assert entry.holds("piece")
    with entry.writing("piece") as path:
        path.mkdir()
        (path / "weights").touch()
    assert entry.holds("piece")


def test_two_writers_of_the_same_folder_both_end_well(tmp_path: Path):
    entry = Entry(tmp_path)

    def write(_):
        with entry.writing("model") as path:
            path.mkdir()
            (path / "weights").write_text("same")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(40)))
    assert entry.holds("model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.sha256", "swap"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(IsodenseError, match="set ISODENSE_CACHE"):
        Store(tmp_path / "file", "kind")
    entry = Store(tmp_path / "new", "kind").entry("key")
    (tmp_path / "new").touch()  # in the way since
    with pytest.raises(IsodenseError, match=r"new/kind/key cannot be made: Not a dir") as caught:
        with entry.writing("piece"):
            pass
    assert "ISODENSE_CACHE" in caught.value.hint


@pytest.mark.parametrize("denied", [os.W_OK, os.X_OK])
def test_a_cache_without_both_rights_is_refused(tmp_path: Path, monkeypatch, denied: int):
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & denied)
    with pytest.raises(StorageError) as caught:
        Store(tmp_path, "kind")
    place = f"the cache is to be in {tmp_path / 'kind'}"
    assert caught.value.message == f"{place}, but {tmp_path} cannot be written"


def test_an_entry_that_another_run_deletes_first_stops_no_cleaning(tmp_path: Path, monkeypatch):
    store = Store(tmp_path, "kind")
    for name in ("first", "gone", "last", "used"):
        (store.folder / name / "x.tmp").mkdir(parents=True)
        for path in (store.folder / name / "x.tmp", store.folder / name):
            os.utime(path, (0, 0))
    store.entry("used")
    lstat, replace = Path.lstat, Path.replace

    def vanished(real, name):
        def call(self, *rest):
            if name in self.parts:
                raise OSError(errno.ENOENT, "No such file or directory", str(self))
            return real(self, *rest)

        return call

    monkeypatch.setattr(Path, "lstat", vanished(lstat, "gone"))
    store.clean()
    assert {path.name for path in store.folder.iterdir()} == {"gone", "used"}
    assert not list((store.folder / "used").iterdir())
    monkeypatch.setattr(Path, "replace", vanished(replace, "used"))
    store.remove(store.entry("used"))
    assert (store.folder / "used").is_dir()


def test_who_holds_a_claim_is_left_out_until_it_has_said_so(tmp_path: Path):
    entry = Entry(tmp_path)
    with entry.claimed("training"):
        entry.path("lock.holder").write_bytes(b"\xff")
        with pytest.raises(IsodenseError) as caught, Entry(tmp_path).claimed("training"):
            pass
    assert caught.value.hint == "wait for it, or stop it"


def test_days_that_are_no_number_say_what_to_do(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("ISODENSE_CACHE_DAYS", "0.5")
    assert cache.days_kept() == 0.5
    monkeypatch.setenv("ISODENSE_CACHE_DAYS", "two")
    with pytest.raises(IsodenseError) as caught:
        cache.days_kept()
    assert caught.value.hint == "correct it, or unset it"
