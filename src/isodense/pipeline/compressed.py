"""Opening files that may be compressed: gzip, bzip2, xz or Zstandard, recognised by content."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

KINDS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class Damaged(Exception):
    """A compressed stream is damaged or cut short."""

    def __init__(self, kind: str | None, cause: BaseException) -> None:
        super().__init__(f"the {kind} stream is damaged or cut short")
        self.cause = cause

    def after(self, line: int) -> str:
        """Return what to say of a file of which so many lines could be read."""
        return f"{self} after line {line} ({self.cause})"


def compression(start: bytes) -> str | None:
    """Return how a file is compressed, given its first bytes, or None.

    Examples
    --------
    >>> compression(gzip.compress(b"x")), compression(b"{}")
    ('gzip', None)
    """
    return next((kind for magic, kind in KINDS.items() if start.startswith(magic)), None)


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading what it holds, uncompressed.

    Raises
    ------
    Damaged
        While the file is read, if its compressed stream is damaged or cut short.
    """
    with path.open("rb") as stream:
        kind = compression(stream.read(8))
    try:
        with _opened(path, kind) as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise Damaged(kind, error) from None
    except OSError as error:
        if kind is None or error.errno is not None:
            raise
        raise Damaged(kind, error) from None


def _opened(path: Path, kind: str | None) -> BinaryIO:
    if kind == "zstd":
        import pyarrow as pa

        return cast("BinaryIO", io.BufferedReader(pa.input_stream(str(path), compression="zstd")))
    openers: dict[str | None, Callable[[Path], object]] = {
        "gzip": gzip.open,
        "bzip2": bz2.open,
        "xz": lzma.open,
    }
    return cast("BinaryIO", openers[kind](path)) if kind else path.open("rb")
