"""Writing so that a failure costs nothing: folders swapped into place, disks that are full named.

:func:`staged` gives a folder beside the one to be replaced. Once complete and on disk it takes that
place by two renames, so a kill at any moment leaves the old folder, the new one, or none, and never
parts of both. Whoever writes holds a lock on the staging folder, which ends with the process: the
next writer removes what dead ones have left and nothing else.

:func:`storing` turns the many ways in which libraries say that a disk is full, or not to be
written, into one error that names the folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from isodense.pipeline.errors import StorageError

STAGING = re.compile(r"\.[0-9a-f]{32}\.tmp(/.*)?$")
ABANDONED = 86_400  # seconds after which a writer counts as dead where folders cannot be locked
FULL = 2**20  # bytes; with less left, a write that failed without a reason failed for this one
NO_ROOM = re.compile(r"no space left|os error 28|quota exceeded", re.IGNORECASE)
SHORT = re.compile(r"requested and \d+ written|failed writing|write error", re.IGNORECASE)


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give an empty folder that becomes `out` when the block ends without an error.

    It is inside ``<out>.<uuid>.tmp``, so writers side by side do not meet; the last to finish wins.
    """
    holder, lock = _claimed(out)
    try:
        new = holder / "new"
        new.mkdir()
        yield new
        _sync(new)
        _swap(new, out, holder)
    finally:
        with suppress(OSError):  # what is left, the next writer removes
            shutil.rmtree(holder)
        os.close(lock)


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Say that a disk is full or may not be written, where the block fails for that reason.

    Raises
    ------
    StorageError
        Naming `folder`, or the file, if the error does.
    """
    try:
        yield
    except Exception as error:  # safetensors and torch raise errors of their own
        found = _storage_error(error, folder)
        if found is None:
            raise
        raise found from error


def _claimed(out: Path) -> tuple[Path, int]:
    """Return a new staging folder for `out`, and the descriptor that holds its lock."""
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(out)
    while True:
        holder = out.with_name(f"{out.name}.{uuid4().hex}.tmp")
        holder.mkdir()
        with suppress(FileNotFoundError):  # taken for abandoned before it was locked
            lock = os.open(holder, os.O_RDONLY)
            with suppress(OSError):  # some network file systems lock no folders
                fcntl.flock(lock, fcntl.LOCK_EX)
            if holder.exists():
                return holder, lock
            os.close(lock)


def _remove_abandoned(out: Path) -> None:
    for path in out.parent.glob("*.tmp"):
        if STAGING.sub("", path.name) != out.name or path.name == out.name or not path.is_dir():
            continue
        with suppress(OSError):  # another writer has removed it
            lock = os.open(path, os.O_RDONLY)
            try:
                if _is_abandoned(path, lock):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _is_abandoned(path: Path, lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return time.time() - path.stat().st_mtime > ABANDONED
    return True


def _swap(new: Path, out: Path, holder: Path) -> None:
    """Move `out` aside, into `holder`, and `new` into its place; put `out` back if that fails."""
    while True:
        old = holder / f"old-{uuid4().hex}"
        try:
            with suppress(FileNotFoundError):
                out.rename(old)
            new.rename(out)
            break
        except BaseException as error:
            taken = isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            if taken:  # by another writer, since `out` was moved
                continue
            if os.path.lexists(old) and not os.path.lexists(out):
                with suppress(OSError):
                    old.rename(out)
            raise
    _sync_one(out.parent)


def _sync(folder: Path) -> None:
    """Wait until all files of a folder are on disk."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file() or path.is_dir():
            _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # cannot be synced
            raise
    finally:
        os.close(descriptor)


def _storage_error(error: Exception, folder: Path) -> StorageError | None:
    number = error.errno if isinstance(error, OSError) else None
    name = error.filename if isinstance(error, OSError) else None
    path = STAGING.sub("", os.fsdecode(name) if isinstance(name, str | bytes) else str(folder))
    if number in (errno.ENOSPC, errno.EDQUOT) or (number is None and _means_full(error, folder)):
        place = STAGING.sub("", str(folder))
        hint = "free some and run it again: finished pieces in the cache are kept"
        return StorageError(f"no space left on the disk of {place}", hint)
    if number == errno.EROFS:
        return StorageError(f"{path} is on a read-only file system", "make it writable, or move")
    if number in (errno.EACCES, errno.EPERM):
        hint = "see who owns it (`ls -ld`), and give yourself the right to read and write it"
        return StorageError(f"{path}: permission denied", hint)
    return None


def _means_full(error: Exception, folder: Path) -> bool:
    """Return whether an error without a number says that the disk is full."""
    if isinstance(error, StorageError):
        return False
    if NO_ROOM.search(str(error)):
        return True
    return bool(SHORT.search(str(error))) and _free(folder) < FULL


def _free(folder: Path) -> int:
    """Return the bytes that are left on the disk of a folder, which need not exist."""
    for path in (folder, *folder.absolute().parents):
        if path.exists():
            return shutil.disk_usage(path).free
    return 0
