"""Going on where a training run was cut off, and stopping one without losing a step.

The trainer writes ``checkpoint-N`` folders into the run's scratch. One counts once it holds the
mark that is written last; only then are older ones deleted, so that a kill at any moment leaves
one to go on from.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from isodense.pipeline.errors import TrainingError

MARK = "complete"
SAME = 2.0  # seconds within which a second signal is the same Ctrl-C, passed on by a launcher


def newest(folder: Path) -> Path | None:
    """Return the last complete checkpoint in `folder`, or None."""
    marks = folder.glob(f"checkpoint-*/{MARK}")
    return max((mark.parent for mark in marks), key=_step, default=None)


def finalize(checkpoint: Path) -> None:
    """Mark a checkpoint as complete and delete all others beside it."""
    (checkpoint / MARK).touch()
    for other in checkpoint.parent.glob("checkpoint-*"):
        if other != checkpoint:
            shutil.rmtree(other)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine from training in `folder` meanwhile.

    Raises
    ------
    TrainingError
        If one does already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        message = f"another run with the same settings is training in {folder}"
        raise TrainingError(message, "wait for it, or stop it") from None
    try:
        yield
    finally:
        os.close(lock)


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
