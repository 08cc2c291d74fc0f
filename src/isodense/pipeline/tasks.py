"""What executors are handed: a job, which says how a worker gets ready, and its tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

AHEAD = 2  # tasks per worker that are handed out, so that none waits for the next one

Compute = Callable[..., Any]


@dataclass(frozen=True)
class Job:
    """How workers get ready.

    Attributes
    ----------
    prepare : callable
        Function of a module that takes the folders, by name, and the settings, all as keyword
        arguments, and returns the function that computes a task. Called once in each worker.
    folders : mapping of str to Path
        Artifacts that it reads. Workers that do not see them get copies.
    settings : mapping of str to object
        What else it needs; can be pickled.
    device : {"cpu", "cuda"}
        What a worker computes on; with ``cuda``, each has a GPU to itself.
    """

    prepare: Callable[..., Compute]
    folders: Mapping[str, Path] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"


@dataclass(frozen=True)
class Task:
    """A piece of work.

    Attributes
    ----------
    name : str
        What it is called in messages; unique among the tasks of a job.
    size : int
        Units of progress: prompts, rows or answers.
    args : tuple
        Arguments; can be pickled.
    arrays : mapping of str to ndarray
        Further arguments that many tasks share; an array has one name in all of them. A machine
        holds it once, read-only.
    """

    name: str
    size: int
    args: tuple[Any, ...]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


class Workers:
    """Workers that are ready for the tasks of one job: here, the stage's own process.

    Parameters
    ----------
    job : Job
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._compute: Compute | None = None

    def results(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield each task with its result, as soon as it is there.

        Parameters
        ----------
        tasks : iterable of Task
            Taken as workers become free, so they need not all be in memory.
        """
        for task in tasks:
            if self._compute is None:
                self._compute = self._job.prepare(**self._job.folders, **self._job.settings)
            yield task, self._compute(*task.args, *task.arrays.values())

    def one(self, *args: Any) -> Any:
        """Return the result of a single task."""
        ((_, result),) = self.results([Task("a first task", 0, args)])
        return result

    @property
    def place(self) -> str:
        """Where the workers are, for the progress bar."""
        return ""

    def close(self) -> None:
        """Stop the workers."""


def use_threads(count: int) -> None:
    """Let torch and BLAS use that many threads, for as long as the process lives."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(count)
    threadpool_limits(count)
