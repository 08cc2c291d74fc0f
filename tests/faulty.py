"""A file system that fails at one step, for processes that are forked to be tried.

:func:`install` counts the steps by which this process changes files below a folder: open, write,
fsync, rename, unlink, rmdir, mkdir, link. One of them fails: the process is killed before it (of a
write, half is done), or gets ENOSPC (half is done, and later writes fail, too), EIO, or a short
write. Writers in C (numpy's, pyarrow's, safetensors', torch's, tokenizers') are one step each: half
of the file is left, and the error is the library's; the limit of a short write is the kernel's.
Nothing is put back, so call it in a forked child.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast

FAULTS = ("kill", "ENOSPC", "EIO", "short write")
WRITES = ("open", "write", "library write", "mkdir", "link", "symlink")  # what a full disk refuses
NUMBERS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}


def applies(fault: str, step: str) -> bool:
    """Return whether a step can fail so."""
    if fault == "short write":
        return step in ("write", "library write")
    return fault != "ENOSPC" or step in (*WRITES, "fsync", "rename", "replace")


class Faults:
    """Lets the step of number `at` fail, and writes what happens to the descriptor `log`."""

    def __init__(self, root: Path, log: int, at: int | None, fault: str) -> None:
        self.root, self.log, self.at, self.fault = os.path.realpath(root), log, at, fault
        self.count, self.full, self._write = 0, False, os.write

    def note(self, *words: str) -> None:
        self._write(self.log, ("\t".join(words) + "\n").encode())

    def step(
        self,
        name: str,
        path: str,
        act: Callable[[], Any],
        half: Callable[[], Any] | None = None,
        error: Callable[[str, str], Exception] | None = None,
        short: Callable[[], Any] | None = None,
    ) -> Any:
        """Do one step, or let it fail; `half` does half of a write."""
        if not path.startswith(self.root + os.sep):
            return act()
        number, self.count = self.count, self.count + 1
        self.note("step", name, path[len(self.root) + 1 :])
        if self.full and name in WRITES:
            raise (error or _os_error)("ENOSPC", path)
        if number != self.at:
            return act()
        if self.fault == "short write":
            return (short or half or act)()
        if half and self.fault in ("kill", "ENOSPC"):
            half()
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self.full = self.fault == "ENOSPC"
        raise (error or _os_error)(self.fault, path)


def install(faults: Faults) -> None:
    """Put the steps in the way of everything that this process writes."""
    for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "link", "symlink"):
        _wrap_os(faults, name)
    os.remove = os.unlink
    _wrap_descriptors(faults)
    builtins.open = io.open = _opener(faults, io.open)
    np.save = _whole(faults, np.save, 0, _numpy_error)
    for module in (safetensors.numpy, safetensors.torch):
        module.serialize_file = _whole(faults, module.serialize_file, 1, _safetensors_error)
    torch.save = _whole(faults, torch.save, 1, _torch_error)
    _wrap_parquet(faults)
    _wrap_tokenizers(faults)


def _os_error(fault: str, path: str) -> OSError:
    return OSError(NUMBERS[fault], os.strerror(NUMBERS[fault]), path)


def _numpy_error(fault: str, path: str) -> Exception:
    return (
        OSError("1024 requested and 512 written") if fault == "ENOSPC" else _os_error(fault, path)
    )


def _safetensors_error(fault: str, _path: str) -> Exception:
    number = NUMBERS[fault]
    text = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
    return SafetensorError(text)


def _torch_error(_fault: str, _path: str) -> Exception:
    return RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


def _place(path: Any, folder: int | None = None) -> str:
    """Return the absolute path of what a call names, links in its folder resolved."""
    text = os.fsdecode(path)
    if folder is not None:
        text = os.path.join(_open_path(folder), text)
    head, tail = os.path.split(os.path.abspath(text))
    return os.path.join(os.path.realpath(head), tail)


def _open_path(number: int) -> str:
    return os.readlink(f"/proc/self/fd/{number}")


def _wrap_os(faults: Faults, name: str) -> None:
    real = getattr(os, name)
    last = name in ("rename", "replace", "link", "symlink")  # what is written is the second path

    @wraps(real)
    def call(*args: Any, **options: Any) -> Any:
        path = _place(args[1 if last else 0], options.get("dst_dir_fd", options.get("dir_fd")))
        return faults.step(name, path, lambda: real(*args, **options))

    setattr(os, name, call)


def _wrap_descriptors(faults: Faults) -> None:
    fsync, opened, sendfile = os.fsync, os.open, os.sendfile

    def sync(file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        faults.step("fsync", _open_path(number), lambda: fsync(file))

    def open_(path: Any, flags: int, *args: Any, **options: Any) -> int:
        def act() -> int:
            return opened(path, flags, *args, **options)

        if not flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            return act()
        return faults.step("open", _place(path, options.get("dir_fd")), act)

    def send(out: int, source: int, offset: int, count: int) -> int:
        def part(size: int) -> int:
            return sendfile(out, source, offset, size)

        size = os.fstat(source).st_size - (offset or 0)
        if size <= 0:
            return part(count)
        path = _open_path(out)
        return faults.step("write", path, lambda: part(count), lambda: part(max(1, size // 2)))

    os.fsync, os.open, os.sendfile = sync, open_, send


class _File(io.FileIO):
    """A file whose writes are steps."""

    faults: Faults

    def write(self, data: Any) -> int:
        whole = memoryview(data).cast("B")
        path = _open_path(self.fileno())
        real = super().write

        def half() -> int:
            return real(whole[: max(1, len(whole) // 2)])

        return self.faults.step("write", path, lambda: real(whole), half)


def _opener(faults: Faults, real: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(real)
    def call(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return real(file, mode, buffering, *args, **options)
        opener, plain = options.pop("opener", None), mode.replace("b", "").replace("t", "")
        act = lambda: _File(file, plain, opener=opener)  # noqa: E731
        raw: _File = act() if opener else faults.step("open", _place(file), act)
        raw.faults = faults
        stream = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return raw if buffering == 0 else stream
        names = dict(zip(("encoding", "errors", "newline"), args, strict=False))
        text = io.TextIOWrapper(stream, **names | options)
        text.mode = mode
        return text

    return call


def _whole(
    faults: Faults, real: Callable[..., Any], position: int, error: Callable[[str, str], Exception]
) -> Callable[..., Any]:
    """Return a writer of a library, which is one step."""

    @wraps(real)
    def call(*args: Any, **options: Any) -> Any:
        target = (
            args[position] if len(args) > position else options.get("filename", options.get("f"))
        )
        named = isinstance(target, str | os.PathLike)
        path = _place(target if named else _open_path(target.fileno()))

        def act() -> Any:
            return real(*args, **options)

        def cut() -> int:
            act()
            if not named:
                target.flush()
            size = os.stat(path).st_size // 2
            os.truncate(path, size)
            return size

        def limited() -> Any:
            size = cut()
            if not named:
                target.seek(0)
            return _below(size, act)

        return faults.step("library write", path, act, cut, error, limited)

    return call


def _below(size: int, act: Callable[[], Any]) -> Any:
    """Do it where the kernel lets no file be larger than `size`."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        return act()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _wrap_parquet(faults: Faults) -> None:
    """Make closing a Parquet file the step at which it was written."""
    real = pq.ParquetWriter

    class Writer(real):
        def __init__(self, where: Any, *args: Any, **options: Any) -> None:
            self.place = _place(where)
            super().__init__(where, *args, **options)

        def close(self) -> None:
            if not self.is_open:
                return
            close = super().close

            def cut() -> None:
                close()
                os.truncate(self.place, os.stat(self.place).st_size // 2)

            def limited() -> None:
                os.truncate(self.place, 0)
                _below(8, close)

            faults.step("library write", self.place, close, cut, None, limited)

    pq.ParquetWriter = Writer


def _wrap_tokenizers(faults: Faults) -> None:
    """Make ``tokenizer.json``, which tokenizers writes, a step."""
    real = PreTrainedTokenizerFast._save_pretrained

    def save(self: Any, save_directory: Any, *args: Any, **options: Any) -> Any:
        path = _place(Path(save_directory, "tokenizer.json"))

        def act() -> Any:
            return real(self, save_directory, *args, **options)

        def cut() -> None:
            act()
            os.truncate(path, os.stat(path).st_size // 2)

        def error(fault: str, path: str) -> Exception:
            return Exception(f"{os.strerror(NUMBERS[fault])} (os error {NUMBERS[fault]})")

        def limited() -> Any:
            return _below(64, act)

        return faults.step("library write", path, act, cut, error, limited)

    PreTrainedTokenizerFast._save_pretrained = save
