"""Going on where a training run was cut off, and stopping one without losing a step.

The trainer writes ``checkpoint-N`` folders into the run's cache entry. One counts once it holds the
mark that is written last; only then are older ones deleted, so that a kill at any moment leaves
one to go on from.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from isodense.pipeline.artifact import sha256_file, write_json

MARK = "complete"
HASHED = 2**28  # bytes of the largest file that is hashed
SAME = 2.0  # seconds within which a second signal is the same Ctrl-C, passed on by a launcher


def newest(folder: Path) -> Path | None:
    """Return the last complete checkpoint in `folder`, or None."""
    marked = [mark.parent for mark in folder.glob(f"checkpoint-*/{MARK}")]
    return max(filter(_is_whole, marked), key=_step, default=None)


def checkpoint_bytes(parameters: int, adapter: bool) -> int:
    """Return what a run keeps in the cache, about: the old checkpoint stays while a new is written.

    Parameters
    ----------
    parameters : int
        Of the policy.
    adapter : bool
        Whether only an adapter is trained.
    """
    weights = 4 * parameters
    return weights if adapter else 2 * 3 * weights + weights


def finalize(checkpoint: Path) -> None:
    """Mark a checkpoint as complete and delete all others beside it.

    The mark lists the files with their sizes and, of those up to 256 MiB, their SHA-256: hashing
    tens of gigabytes would cost minutes a checkpoint, and what a crash leaves behind is short.
    """
    write_json(checkpoint / MARK, _listed(checkpoint))
    for other in checkpoint.parent.glob("checkpoint-*"):
        if other != checkpoint:
            shutil.rmtree(other)


def _is_whole(checkpoint: Path) -> bool:
    try:
        marked = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        return _step(checkpoint) >= 0 and bool(marked.items() <= _listed(checkpoint).items())
    except (OSError, ValueError, AttributeError, TypeError):  # no mark of ours
        return False


def _listed(checkpoint: Path) -> dict[str, str]:
    """Return size and hash of each file, by path inside the folder."""
    found = {}
    for file in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        size = file.stat().st_size
        digest = sha256_file(file) if size <= HASHED and file.name != MARK else "-"
        found[file.relative_to(checkpoint).as_posix()] = f"{size} {digest}"
    return found


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


class Stop:
    """Turns Ctrl-C and SIGTERM into a request to stop at the next step; Ctrl-C again interrupts.

    Attributes
    ----------
    asked : bool
        Whether to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._since = True, time.monotonic()
            sys.stderr.write("\nstopping after this step, with a checkpoint; Ctrl-C: at once\n")
        elif number == signal.SIGINT and time.monotonic() - self._since > SAME:
            raise KeyboardInterrupt
