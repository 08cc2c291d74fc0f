"""Computing tasks: in this process, in several of this machine, or on a Ray cluster.

A stage hands over a :class:`Job`, which says how a worker gets ready, and :class:`Task` objects,
which are pure: what a task gives depends on its job and its arguments alone, so it may run
anywhere, in any order, and again. Workers return results; the stage's process alone writes caches
and artifacts. Where tasks run is no param, because the bytes are the same:

``ISODENSE_EXECUTOR``
    ``local`` (default), or ``ray``: the cluster that ``RAY_ADDRESS`` names, see
    :mod:`isodense.pipeline.cluster`.
``ISODENSE_WORKERS``
    Processes of ``local``; by default one for each GPU, and on CPUs the stage's own process, with
    all cores.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.extras import require
from isodense.pipeline.processes import Processes
from isodense.pipeline.runtime import resolve_device
from isodense.pipeline.stage import progress
from isodense.pipeline.tasks import Job, Task, Workers


@contextmanager
def workers(job: Job) -> Iterator[Workers]:
    """Give the workers that the environment asks for; none is started before the first task.

    Raises
    ------
    IsodenseError
        If the environment asks for what is not there.
    """
    found = _workers(job)
    try:
        yield found
    finally:
        found.close()


def compute(
    found: Workers, tasks: Iterable[Task], total: int, unit: str, title: str | None = None
) -> Iterator[tuple[Task, Any]]:
    """Yield each task with its result, under a progress bar.

    Parameters
    ----------
    found : Workers
    tasks : iterable of Task
    total : int
        Sum of their sizes.
    unit : str
        What they count.
    title : str, optional
        Name of the bar.
    """
    with tqdm(total=total, unit=unit, desc=title, **progress()) as bar:
        for task, result in found.results(tasks):
            bar.set_postfix_str(found.place, refresh=False)
            bar.update(task.size)
            yield task, result


def device_of_workers(device: str) -> str:
    """Return ``"cuda"`` or ``"cpu"`` for the param ``base.device``, where the workers are."""
    if executor() == "local":
        return resolve_device(device)
    if device != "auto":
        return device
    from isodense.pipeline.cluster import has_gpus

    return "cuda" if has_gpus() else "cpu"


def executor() -> str:
    """Return the executor that the environment asks for, ``"local"`` or ``"ray"``; starts nothing.

    Raises
    ------
    IsodenseError
        If there is none of that name, or Ray is not installed.
    """
    name = os.environ.get("ISODENSE_EXECUTOR", "local")
    if name not in ("local", "ray"):
        raise IsodenseError(f"ISODENSE_EXECUTOR is {name!r}", "set it to local or ray")
    if name == "ray":
        require("ray")
    return name


def _workers(job: Job) -> Workers:
    if executor() == "ray":
        from isodense.pipeline.cluster import Cluster

        return Cluster(job)
    count = _count(job.device)
    return Workers(job) if count == 1 else Processes(job, count)


def alone(device: str) -> bool:
    """Tell whether this process does the work itself, on ``"cpu"`` or ``"cuda"``."""
    return executor() == "local" and _count(device) == 1


def _count(device: str) -> int:
    """Return how many processes share the work on this machine."""
    import torch

    gpus = torch.cuda.device_count() if device == "cuda" else 0
    text = os.environ.get("ISODENSE_WORKERS", str(gpus or 1))
    if not text.isdigit() or not 0 < int(text) <= (gpus or int(text)):
        most = f", at most the {gpus} GPUs" if gpus else ""
        raise IsodenseError(f"ISODENSE_WORKERS is {text!r}", f"set it to a number from 1{most}")
    return int(text)
