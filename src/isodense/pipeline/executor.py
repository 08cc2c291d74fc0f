"""Several processes that share work through files only, started by torchrun on one or more nodes.

Each process writes its progress to a separate file; rank 0 sums them up for the progress bar and
detects ranks that have stopped.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from isodense.pipeline.artifact import write_json
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.stage import progress

TIMEOUT = 600.0  # seconds without progress after which a rank counts as dead
INTERVAL = 1.0  # seconds between reports of progress

log = logging.getLogger("isodense")


@dataclass(frozen=True)
class Rank:
    """One of the processes that share the work.

    Attributes
    ----------
    index : int
        Number of the process, from 0.
    world : int
        Number of processes.
    """

    index: int = 0
    world: int = 1

    @classmethod
    def current(cls) -> Rank:
        """Return the rank of this process, as set by torchrun."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


class Progress:
    """Progress over all ranks: a bar on rank 0, a file per rank.

    Parameters
    ----------
    folder : Path
        Folder of the files, shared by all ranks, and by those of an interrupted run.
    rank : Rank
        The rank of this process.
    total : int
        Prompts of all ranks together.
    what : str
        Name of the units that the work is divided into, for messages.
    """

    def __init__(self, folder: Path, rank: Rank, total: int, what: str = "shards") -> None:
        self._folder, self._rank, self._what = folder, rank, what
        self._prompts = self._tokens = 0
        self._start = self._reported = time.monotonic()
        self._seen: dict[int, tuple[Any, float]] = {}
        self._bar = tqdm(total=total, unit="prompt", **progress() | _only_first(rank))
        self._warn_interrupted()
        self._report(done=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: Any, *_rest: Any) -> None:
        if kind is None:
            self._report(done=True)
            self._show()
        self._bar.close()

    def add(self, prompts: int, tokens: int = 0) -> None:
        """Count finished prompts and tokens of this rank."""
        self._prompts, self._tokens = self._prompts + prompts, self._tokens + tokens
        if time.monotonic() - self._reported > INTERVAL:
            self._report(done=False)
            self._show()

    def wait(self, left: list[int], finished: Callable[[int], bool]) -> None:
        """Wait on rank 0 until the other ranks have finished their shards or blocks.

        Parameters
        ----------
        left : list of int
            Numbers of the shards or blocks to wait for.
        finished : callable
            Takes a number and returns whether that shard or block is complete; not called again for
            a number once it has returned True.

        Raises
        ------
        IsodenseError
            If one is missing and a rank has reported no progress for ten minutes.
        """
        while left := [number for number in left if not finished(number)]:
            self._show()
            silent = [rank for rank in range(1, self._rank.world) if self._silent(rank)]
            if silent:
                hosts = {rank: self._read(rank).get("host", "never seen") for rank in silent}
                names = (f"{rank} ({host})" for rank, host in hosts.items())
                message = f"nothing heard from rank {', '.join(names)} for {TIMEOUT:.0f} s"
                message = f"{message}; {len(left)} {self._what} are missing, first {left[0]}"
                raise IsodenseError(message, f"run it again: finished {self._what} are kept")
            time.sleep(INTERVAL / 4)

    def _report(self, done: bool) -> None:
        """Write the progress of this rank."""
        self._reported = time.monotonic()
        if self._rank.world > 1:
            state = {"host": socket.gethostname(), "prompts": self._prompts, "tokens": self._tokens}
            state |= {"seconds": round(self._reported - self._start, 1), "done": done}
            write_json(self._path(self._rank.index), state)

    def _show(self) -> None:
        if self._bar.disable:
            return
        others = [self._read(rank) for rank in range(self._rank.world) if rank != self._rank.index]
        if tokens := self._tokens + sum(state.get("tokens", 0) for state in others):
            rate = tokens / max(time.monotonic() - self._start, 1e-9)
            self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        prompts = self._prompts + sum(state.get("prompts", 0) for state in others)
        self._bar.update(prompts - self._bar.n)

    def _silent(self, rank: int) -> bool:
        """Return whether a rank's file has not changed for `TIMEOUT` seconds."""
        state, now = self._read(rank), time.monotonic()
        if rank not in self._seen or self._seen[rank][0] != state:
            self._seen[rank] = (state, now)
        return now - self._seen[rank][1] > TIMEOUT

    def _warn_interrupted(self) -> None:
        """Log the ranks of an earlier run that were interrupted, and remove their files.

        Each rank looks at the file of the same number, rank 0 also at those of numbers that this
        run does not have.
        """
        for path in self._folder.glob("rank-*.json"):
            rank = int(path.stem.removeprefix("rank-"))
            mine = rank == self._rank.index or (rank >= self._rank.world and not self._rank.index)
            state = self._read(rank)
            if mine and not state.get("done"):
                host, prompts = state.get("host", "?"), state.get("prompts", 0)
                message = "rank %d on %s was cut off in an earlier run after %d prompts; "
                message += "its unfinished %s are computed again"
                log.warning(message, rank, host, prompts, self._what)
            if mine:
                path.unlink(missing_ok=True)

    def _read(self, rank: int) -> dict[str, Any]:
        """Return the state that a rank has written, empty if there is none."""
        try:
            state: dict[str, Any] = json.loads(self._path(rank).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.json"


def _only_first(rank: Rank) -> dict[str, Any]:
    return {"disable": True} if rank.index else {}
