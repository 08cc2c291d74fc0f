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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from isodense.pipeline.errors import StorageError

STAGING = re.compile(r"\.[0-9a-f]{32}\.tmp(/.*)?$")
ABANDONED = 86_400  # seconds after which a writer counts as dead where folders cannot be locked
FULL = 2**20  # bytes; with less left, a write that failed without a reason failed for this one
NO_ROOM = re.compile(r"no space left|quota exceeded", re.IGNORECASE)
NUMBER = re.compile(r"(?:\(os error |\[Errno )(\d+)")  # of Rust, and of shutil.copytree
SHORT = re.compile(r"requested and \d+ written|failed writing|write error", re.IGNORECASE)


_needed: dict[str, int] = {}  # bytes by folder, of what this process is going to write


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give an empty folder that becomes `out` when the block ends without an error.

    It is inside ``<out>.<uuid>.tmp``, so writers side by side do not meet; the last to finish wins.
    """
    with beside(out) as holder:
        new = holder / "new"
        new.mkdir()
        yield new
        sync(new)
        _swap(new, out, holder)


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """Give an empty folder ``<out>.<uuid>.tmp`` to prepare `out` in; it is gone at the end."""
    holder, lock = _claimed(out)
    try:
        yield holder
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


def unwritable(folder: Path) -> str | None:
    """Return what is in the way of writing a folder, or of making it, or None."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        return f"{nearest} is not a folder"
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} cannot be written"


def require_place(path: Path) -> None:
    """Raise unless a file can be written there.

    Raises
    ------
    StorageError
        Naming what is in the way.
    """
    fault = "it is a folder" if path.is_dir() else unwritable(path.parent)
    if fault:
        raise StorageError(f"no file can be written as {path}: {fault}", "name another file")


def require_space(what: str, needs: Mapping[Path, int]) -> None:
    """Raise unless the disks have room for what is going to be written.

    Parameters
    ----------
    what : str
        Who writes, for the message.
    needs : mapping of Path to int
        Bytes by folder, which need not exist yet.

    Raises
    ------
    StorageError
        Naming the folders of the disk that is too small, what is needed and what is free.
    """
    disks: dict[int, list[Path]] = {}
    for folder in needs:
        disks.setdefault(existing(folder).stat().st_dev, []).append(folder)
    for folders in disks.values():
        needed, free = sum(needs[folder] for folder in folders), _free(folders[0])
        _needed.update({STAGING.sub("", str(folder)): needed for folder in folders})
        if free < needed:
            names = " and ".join(STAGING.sub("", str(folder)) for folder in folders)
            message = f"{what} needs about {size(needed)} in {names}, where {size(free)} are free"
            raise StorageError(message, "free some, or move it: `isodense doctor` shows all disks")


def size(number: float) -> str:
    """Return a number of bytes as text, in decimal units.

    Examples
    --------
    >>> size(1_500_000_000)
    '1.5 GB'
    """
    units = ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.{0 if number >= 10 or units[0] == 'B' else 1}f} {units[0]}"


def existing(folder: Path) -> Path:
    """Return the folder, or the nearest parent that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


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


def sync(path: Path) -> None:
    """Wait until a file, or a folder and all that is in it, is on disk."""
    for part in [*path.rglob("*"), path]:
        if part.is_file() or part.is_dir():
            _sync_one(part)


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
    if isinstance(error, StorageError):
        return None
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        number = _number_in(str(error), folder)
    place = STAGING.sub("", str(folder))
    path = STAGING.sub("", _named(error) or place)
    if number in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some and run it again: finished pieces in the cache are kept"
        return StorageError(f"no space left on the disk of {place}{_missing(place)}", hint)
    if number == errno.EFBIG:
        hint = "raise it (`ulimit -f`), or write to another disk"
        return StorageError(f"{path} would be larger than this system lets a file be", hint)
    if number == errno.EIO:
        hint = "the disk, or the connection to it, fails: see `dmesg`, then run it again"
        return StorageError(f"{path} cannot be read or written: {_reason(error)}", hint)
    if number == errno.EROFS:
        return StorageError(f"{path} is on a read-only file system", "make it writable, or move")
    if number in (errno.EACCES, errno.EPERM):
        hint = "see who owns it (`ls -ld`), and give yourself the right to read and write it"
        return StorageError(f"{path}: permission denied", hint)
    return None


def _reason(error: Exception) -> str:
    """Return what an error says, less the paths."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    found = NUMBER.search(str(error))
    return os.strerror(int(found[1])) if found else str(error)


def _missing(place: str) -> str:
    """Return how much the run needs there, where it has said so."""
    for folder, needed in _needed.items():
        if Path(place).absolute().is_relative_to(Path(folder).absolute()):
            return f", where the run needs about {size(needed)}"
    return ""


def _named(error: Exception) -> str | None:
    """Return the path that an error names, None where it is a name in some open folder."""
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    path = os.fsdecode(name) if isinstance(name, str | bytes) else ""
    return path if os.sep in path else None


def _number_in(text: str, folder: Path) -> int | None:
    """Return the number of an error that a library in another language gives in words only."""
    if NO_ROOM.search(text):
        return errno.ENOSPC
    if found := NUMBER.search(text):
        return int(found[1])
    if SHORT.search(text):
        return errno.ENOSPC if _free(folder) < FULL else errno.EIO
    return None


def _free(folder: Path) -> int:
    """Return the bytes that are left on the disk of a folder, which need not exist."""
    return shutil.disk_usage(existing(folder)).free
