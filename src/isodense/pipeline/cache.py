"""Finished pieces of work, kept outside all DVC outputs under a key of everything they depend on.

DVC deletes a stage's outputs before the stage runs, and cannot know which parts of them would come
out the same. What is costly is therefore kept here as well: shards of vectors, blocks of neighbours
and of features, completions, checkpoints. A run that was cut off goes on from its finished pieces,
and an experiment computes only what its settings change.

Two rules hold for every cache:

* **One key.** :func:`cache_key` names all that a result depends on: the whole manifests of the
  inputs, the params that shape it, what computes it, the versions of libraries, the device and,
  where bytes depend on them, the processes. What computes it is the source of whole packages where
  a piece is cheap or a mistake would be costly (checkpoints), and a recipe version where a piece is
  costly (shards, blocks): a test ties that number to the values of a small fixed input, so a
  comment costs nobody a night of embedding.
* **One store.** A :class:`Store` holds a folder per key. A piece is written beside, renamed, and
  compared with its SHA-256 before it is used (checkpoints, which may be tens of gigabytes, are
  checked by :mod:`isodense.train.checkpoints`); folders that no run has used for a week (or
  ``ISODENSE_CACHE_DAYS``) are deleted, unless a run has claimed them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from filelock import FileLock, Timeout

from isodense.pipeline.artifact import sha256_file
from isodense.pipeline.errors import IsodenseError, StorageError
from isodense.pipeline.storage import beside, storing, unwritable

FORMAT_VERSION = 2
DAY = 86_400  # seconds
LOCK, SWAP = "lock", "swap"  # in an entry: held by the run that claims it, by a writer
HOLDER = "lock.holder"  # says who holds the first
PACKAGE = Path(__file__).parents[1]


def cache_key(
    *,
    inputs: Mapping[str, Any],
    params: Mapping[str, Any],
    code: int | Sequence[str],
    libraries: Sequence[str],
    device: str | None,
    processes: Mapping[str, Any] | None = None,
) -> str:
    """Return the name of what depends on all of the arguments.

    Parameters
    ----------
    inputs : mapping of str to JSON value
        Manifests of the artifacts that are read, whole, or what is read itself (texts, digests of
        arrays).
    params : mapping of str to JSON value
        Params and settings that shape the result, seeds included.
    code : int or sequence of str
        A recipe version, or the packages of isodense (``"train"``) whose source computes it.
    libraries : sequence of str
        Distributions whose versions count.
    device : str or None
        Torch device that computes it; None where none does.
    processes : mapping, optional
        How the work is shared by processes, where the bytes depend on it.

    Returns
    -------
    str
        40 hex digits.
    """
    parts = {
        "format_version": FORMAT_VERSION,
        "inputs": inputs,
        "params": params,
        "code": code if isinstance(code, int) else source_sha256(tuple(code)),
        "libraries": {name: importlib.metadata.version(name) for name in libraries},
        "device": device,
        "processes": processes,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


@lru_cache
def source_sha256(packages: tuple[str, ...]) -> str:
    """Return the hash of all Python files of packages of isodense, as hex digits."""
    digest = hashlib.sha256()
    for package in packages:
        files = sorted((PACKAGE / package).rglob("*.py"))
        if not files:
            raise FileNotFoundError(f"isodense has no package {package!r}")
        for file in files:
            digest.update(f"{file.relative_to(PACKAGE).as_posix()}:{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def sequences_sha256(sequences: Iterable[Sequence[int]]) -> str:
    """Return the hash of sequences of integers (tokens), lengths included, as hex digits."""
    digest = hashlib.sha256()
    for values in sequences:
        digest.update(np.array([len(values), *values], dtype="<u4").tobytes())
    return digest.hexdigest()


class Store:
    """All cached pieces of one kind of work, a folder per key.

    Parameters
    ----------
    cache : Path
        The cache's root: :func:`isodense.pipeline.stage.cache`.
    kind : str
        What the pieces are, for example ``embeddings``.

    Raises
    ------
    StorageError
        If nothing can be written there.
    """

    def __init__(self, cache: Path, kind: str) -> None:
        self.folder = cache / kind
        self._seconds_kept = days_kept() * DAY
        require_writable(self.folder)

    def entry(self, key: str) -> Entry:
        """Return the entry of a key, marked as used."""
        found = Entry(self.folder / key)
        found.touch()
        return found

    def entries(self, having: str) -> Iterator[Entry]:
        """Yield the entries that have a piece of the name `having`; none is marked as used."""
        for path in sorted(self.folder.glob(f"*/{having}")):
            yield Entry(path.parent)

    def remove(self, entry: Entry) -> None:
        """Delete an entry, unless a run has claimed it."""
        with suppress(OSError):  # another run has deleted it, or is using it
            if not _is_claimed(entry.folder):
                _delete(entry.folder)

    def clean(self) -> None:
        """Delete entries that no run has used for :func:`days_kept`."""
        limit = time.time() - self._seconds_kept
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            with suppress(OSError):  # another run has deleted it, or is using it
                if path.lstat().st_mtime < limit:
                    self.remove(Entry(path))
        for path in self.folder.glob("*/*.tmp"):  # left by a run that was killed
            with suppress(OSError):
                if path.lstat().st_mtime < limit:
                    _delete(path)


class Entry:
    """Folder of what was computed under one key.

    Parameters
    ----------
    folder : Path
        Need not exist.

    Attributes
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def touch(self) -> None:
        """Mark the entry as used now."""
        with suppress(OSError):  # not there, or a cache that can only be read
            os.utime(self.folder)

    def path(self, name: str) -> Path:
        """Return where the piece `name` is kept."""
        return self.folder / name

    def holds(self, name: str) -> bool:
        """Return whether the piece `name` is there, with the bytes that were written."""
        self.touch()
        try:
            return _digest_file(self.path(name)).read_text("ascii") == _sha256(self.path(name))
        except (OSError, UnicodeDecodeError):
            return False

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give a path to write the piece `name` to, a file or a folder; it is kept at the end.

        Nothing is kept if the block raises. Runs side by side may write the same piece.
        """
        target = self.path(name)
        with storing(self.folder):
            _make_folder(target.parent)
            with beside(target) as folder:
                path = folder / target.name
                yield path
                digest = _digest_file(path)
                digest.write_text(_sha256(path, sync=True), encoding="ascii")
                # A folder cannot be replaced in one step, so writers of the same one take turns.
                with FileLock(self.folder / SWAP) if path.is_dir() else nullcontext():
                    _move(digest, _digest_file(target))
                    _move(path, target)

    def discard(self, name: str) -> None:
        """Delete the piece `name`, if it is there."""
        for path in (self.path(name), _digest_file(self.path(name))):
            if os.path.lexists(path):
                _delete(path)

    @contextmanager
    def claimed(self, what: str) -> Iterator[None]:
        """Keep other processes of this machine from working in the folder meanwhile.

        Raises
        ------
        IsodenseError
            If one does already; `what` says what it does.
        """
        _make_folder(self.folder)
        self.touch()
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            message = f"another run with the same settings is {what} in {self.folder}"
            hint = f"wait for it, or stop it{_holder(self.folder)}"
            raise IsodenseError(message, hint) from None
        try:
            with storing(self.folder):
                text = f"{os.getpid()} on {platform.node()}"
                (self.folder / HOLDER).write_text(text, encoding="utf-8")
                yield
        finally:
            lock.release()


def require_writable(folder: Path, variable: str = "ISODENSE_CACHE") -> None:
    """Raise unless a folder of a cache can be written, or made.

    Parameters
    ----------
    folder : Path
        The folder.
    variable : str
        The environment variable that moves it.

    Raises
    ------
    StorageError
        Naming what is in the way, and the variable.
    """
    if fault := unwritable(folder):
        hint = f"set {variable} to a folder that you can write, or correct this one"
        raise StorageError(f"the cache is to be in {folder}, but {fault}", hint)


def days_kept() -> float:
    """Return for how many days an entry stays after its last use: 7, or ISODENSE_CACHE_DAYS."""
    text = os.environ.get("ISODENSE_CACHE_DAYS", "7")
    try:
        return float(text)
    except ValueError:
        message = f"ISODENSE_CACHE_DAYS is {text!r}, not a number of days"
        raise IsodenseError(message, "correct it, or unset it") from None


def _is_claimed(entry: Path) -> bool:
    """Return whether a process holds the claim on an entry."""
    if not (entry / LOCK).is_file():
        return False
    try:
        with FileLock(entry / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def _holder(folder: Path) -> str:
    """Return who holds the claim on an entry, as far as that process has said it yet."""
    try:
        return f": process {(folder / HOLDER).read_text(encoding='utf-8')}"
    except (OSError, UnicodeDecodeError):
        return ""


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"the cache folder {folder} cannot be made: {error.strerror}"
        raise IsodenseError(message, "set ISODENSE_CACHE to a folder that can be written") from None


def _move(path: Path, target: Path) -> None:
    """Rename a file or folder to `target`, in place of whatever is there."""
    if target.is_dir() or (path.is_dir() and target.exists()):
        _delete(target)  # a folder replaces nothing, and nothing replaces a folder
    path.replace(target)


def _delete(path: Path) -> None:
    """Delete a file, link or folder; at once under its name, so that nobody sees it in part."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    waste = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    path.replace(waste)
    shutil.rmtree(waste, ignore_errors=True)


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sha256(path: Path, sync: bool = False) -> str:
    """Return the hash of a file or of all files of a folder; with `sync`, once on disk."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if sync:
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        digest.update(f"{file.relative_to(path).as_posix()}:{sha256_file(file)}\n".encode())
    return digest.hexdigest()
