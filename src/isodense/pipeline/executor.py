"""Several processes that share work by files alone, started by torchrun on one node or many.

Each process writes how far it is into a file of its own; rank 0 adds them up for the progress bar
and notices who has fallen silent.
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

SILENT = 600.0  # seconds without a word after which a rank counts as dead
EVERY = 1.0  # seconds between words

log = logging.getLogger("isodense")


@dataclass(frozen=True)
class Rank:
    """One process among those that share the work.

    Attributes
    ----------
    index : int
    world : int
        How many there are.
    """

    index: int = 0
    world: int = 1

    @classmethod
    def current(cls) -> Rank:
        """Return the rank that torchrun has given this process."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


class Progress:
    """Progress over all ranks: a bar on rank 0, a file from each.

    Parameters
    ----------
    folder : Path
        Shared by the ranks of this run, and by those of a run that was cut off.
    rank : Rank
    total : int
        Prompts that all ranks together are to deal with.
    what : str
        What the work is divided into, for messages.
    """

    def __init__(self, folder: Path, rank: Rank, total: int, what: str = "shards") -> None:
        self._folder, self._rank, self._what = folder, rank, what
        self._prompts = self._tokens = 0
        self._start = self._told = time.monotonic()
        self._heard: dict[int, tuple[Any, float]] = {}
        self._bar = tqdm(total=total, unit="prompt", **progress() | _only_first(rank))
        self._report_leftovers()
        self._tell(done=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: Any, *_rest: Any) -> None:
        if kind is None:
            self._tell(done=True)
            self._show()
        self._bar.close()

    def add(self, prompts: int, tokens: int = 0) -> None:
        """Count finished prompts of this rank."""
        self._prompts, self._tokens = self._prompts + prompts, self._tokens + tokens
        if time.monotonic() - self._told > EVERY:
            self._tell(done=False)
            self._show()

    def wait(self, left: list[int], finished: Callable[[int], bool]) -> None:
        """Wait on rank 0 until the other ranks have finished their shards or blocks.

        Parameters
        ----------
        left : list of int
            Numbers of the shards to wait for.
        finished : callable
            Whether the shard of a number is there and whole; not asked again once it is.

        Raises
        ------
        IsodenseError
            If one is missing and a rank has been silent for ten minutes.
        """
        while left := [number for number in left if not finished(number)]:
            self._show()
            silent = [rank for rank in range(1, self._rank.world) if self._silent(rank)]
            if silent:
                hosts = {rank: self._word(rank).get("host", "never seen") for rank in silent}
                names = (f"{rank} ({host})" for rank, host in hosts.items())
                message = f"nothing heard from rank {', '.join(names)} for {SILENT:.0f} s"
                message = f"{message}; {len(left)} {self._what} are missing, first {left[0]}"
                raise IsodenseError(message, f"run it again: finished {self._what} are kept")
            time.sleep(EVERY / 4)

    def _tell(self, done: bool) -> None:
        self._told = time.monotonic()
        if self._rank.world > 1:
            word = {"host": socket.gethostname(), "prompts": self._prompts, "tokens": self._tokens}
            word |= {"seconds": round(self._told - self._start, 1), "done": done}
            write_json(self._path(self._rank.index), word)

    def _show(self) -> None:
        if self._bar.disable:
            return
        others = [self._word(rank) for rank in range(self._rank.world) if rank != self._rank.index]
        if tokens := self._tokens + sum(word.get("tokens", 0) for word in others):
            rate = tokens / max(time.monotonic() - self._start, 1e-9)
            self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        prompts = self._prompts + sum(word.get("prompts", 0) for word in others)
        self._bar.update(prompts - self._bar.n)

    def _silent(self, rank: int) -> bool:
        word, now = self._word(rank), time.monotonic()
        if rank not in self._heard or self._heard[rank][0] != word:
            self._heard[rank] = (word, now)
        return now - self._heard[rank][1] > SILENT

    def _report_leftovers(self) -> None:
        """Say which ranks of an earlier run were cut off; whoever takes their place says it."""
        for path in self._folder.glob("rank-*.json"):
            rank = int(path.stem.removeprefix("rank-"))
            mine = rank == self._rank.index or (rank >= self._rank.world and not self._rank.index)
            word = self._word(rank)
            if mine and not word.get("done"):
                host, prompts = word.get("host", "?"), word.get("prompts", 0)
                message = "rank %d on %s was cut off in an earlier run after %d prompts; "
                message += "its unfinished %s are computed again"
                log.warning(message, rank, host, prompts, self._what)
            if mine:
                path.unlink(missing_ok=True)

    def _word(self, rank: int) -> dict[str, Any]:
        try:
            word: dict[str, Any] = json.loads(self._path(rank).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return word

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.json"


def _only_first(rank: Rank) -> dict[str, Any]:
    return {"disable": True} if rank.index else {}
