"""Computing tasks in several processes of this machine, each with a GPU or some of the cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.tasks import AHEAD, Job, Task, Workers, use_threads

VISIBLE = "CUDA_VISIBLE_DEVICES"

_STATE: dict[str, Any] = {}  # of a worker: its job, and how it computes tasks once it is ready


class Processes(Workers):
    """Workers in processes of this machine, each with its share of the cores, or a GPU.

    Parameters
    ----------
    job : Job
    count : int
        Number of processes.
    """

    def __init__(self, job: Job, count: int) -> None:
        import torch

        super().__init__(job)
        self._count = count
        self._folder = tempfile.TemporaryDirectory(prefix="isodense-arrays-")
        context = multiprocessing.get_context("spawn")  # CUDA does not outlive a fork
        numbers = context.SimpleQueue()
        for number in range(count):
            numbers.put(number)
        threads = max(1, torch.get_num_threads() // count)
        self._pool = ProcessPoolExecutor(count, context, _become_worker, (job, numbers, threads))

    def results(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield each task with its result; see :meth:`Workers.results`."""
        waiting, running = iter(tasks), dict[Future[Any], Task]()
        while True:
            while len(running) < AHEAD * self._count and (task := next(waiting, None)):
                paths = [self._saved(name, array) for name, array in task.arrays.items()]
                running[self._pool.submit(_compute_here, task.args, paths)] = task
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                try:
                    yield task, future.result()
                except BrokenProcessPool:
                    message = f"a process was killed, among those that computed {task.name}"
                    hint = "if memory ran out, set fewer ISODENSE_WORKERS; finished ones are kept"
                    raise IsodenseError(message, hint) from None

    @property
    def place(self) -> str:
        """Where the workers are."""
        return f"{self._count} processes"

    def close(self) -> None:
        """Stop the processes, and forget their arrays."""
        self._pool.shutdown(cancel_futures=True)
        self._folder.cleanup()

    def _saved(self, name: str, array: np.ndarray) -> Path:
        """Return where an array is, for all processes."""
        path = Path(self._folder.name, f"{name}.npy")
        if not path.exists():
            np.save(path, array, allow_pickle=False)
        return path


def _become_worker(job: Job, numbers: Any, threads: int) -> None:
    """Set a new process up: its GPU or threads, and that it ends with the stage."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all; the stage says so
    threading.Thread(target=_end_with_parent, daemon=True).start()
    number = numbers.get()
    if job.device == "cuda":
        visible = os.environ.get(VISIBLE)
        os.environ[VISIBLE] = visible.split(",")[number] if visible else str(number)
    use_threads(threads)
    _STATE["job"] = job


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _compute_here(args: tuple[Any, ...], paths: Iterable[Path]) -> Any:
    if "compute" not in _STATE:
        job: Job = _STATE["job"]
        _STATE["compute"] = job.prepare(**job.folders, **job.settings)
    return _STATE["compute"](*args, *(np.load(path, mmap_mode="r") for path in paths))
