"""Computing tasks on a Ray cluster.

The stage's process starts an actor for each GPU of the cluster, or for each of its CPUs where a job
needs no GPU, and never more than there are tasks. An actor loads what its job reads once. Nodes
need Python with isodense's dependencies and nothing else: the package comes with Ray's runtime
environment, prompts with the tasks, arrays and models through the object store, once for each node.
An artifact that a node sees under the same path is read there.

A task is computed again if its actor dies, with its node or without (nodes that are preempted,
memory that runs out), wherever there is an actor; nodes that join get actors. Ray retries nothing
by itself, so each loss is known here, and told with its task and node.

``ISODENSE_WORKER_CPUS`` sets the cores of an actor, 1 by default.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import isodense
from isodense.pipeline.artifact import MANIFEST
from isodense.pipeline.cache import Store
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.tasks import AHEAD, Compute, Job, Task, Workers, use_threads

LOSSES = 20  # of one task, after which it is taken for the cause
STARTS = 10  # actors that died in succession before they were ready, though their nodes did not
CONNECT = 10.0  # seconds to wait for the cluster's answer
POLL = 2.0  # seconds between looks at the cluster
QUIET = 60.0  # seconds without an actor that is ready, after which that is told

Folders = dict[str, tuple[Path, str]]  # where the stage reads artifacts, and their manifests' hash
Files = dict[str, dict[str, Any]]  # by artifact and file, the bytes in the object store

log = logging.getLogger("isodense")


@dataclass
class _Member:
    """An actor, its node once it is ready, and the tasks that it has by the results awaited."""

    actor: Any
    nodes: set[str]  # ids of those that were alive before it
    node: str = ""
    tasks: dict[Any, Task] = field(default_factory=dict)


class Cluster(Workers):
    """Workers that are actors of a Ray cluster.

    Parameters
    ----------
    job : Job
    shared : bool
        Whether nodes may read the job's folders where the stage does, if the same is there.
    """

    def __init__(self, job: Job, shared: bool = True) -> None:
        super().__init__(job)
        self._ray, self._shared = connected(), shared
        self._folders: Folders = {
            name: (path.resolve(), _identity(path)) for name, path in job.folders.items()
        }
        self._kind, self._need = ("GPU", 1) if job.device == "cuda" else ("CPU", _cpus())
        self._members: list[_Member] = []
        self._starting: dict[Any, _Member] = {}
        self._files: Files | None = None  # in the object store once a node has asked for them
        self._arrays: dict[str, Any] = {}
        self._losses: Counter[str] = Counter()
        self._starts = 0
        self._slots, self._looked = 1, -POLL
        self._idle_since = time.monotonic()

    def results(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield each task with its result; see :meth:`Workers.results`."""
        waiting, todo = iter(tasks), deque[Task]()
        while True:
            running = sum(len(member.tasks) for member in self._members)
            self._look()
            room = max(0, AHEAD * self._slots - running - len(todo))
            todo.extend(itertools.islice(waiting, room))
            if not todo and not running:
                return
            self._grow(min(self._slots, running + len(todo)))
            while todo and (member := self._free()):
                self._hand(member, todo.popleft())
            for task, result in self._finished():
                if result is _LOST:
                    todo.appendleft(task)
                else:
                    yield task, result

    @property
    def place(self) -> str:
        """Where the workers are."""
        nodes = len({member.node for member in self._members})
        return f"{len(self._members)} workers on {nodes} node{'s' * (nodes != 1)}"

    def close(self) -> None:
        """End the actors."""
        for member in [*self._members, *self._starting.values()]:
            self._ray.kill(member.actor)
        self._members, self._starting = [], {}
        self._arrays, self._files = {}, None

    def _look(self) -> None:
        """Learn how many actors the cluster has room for; nodes come and go."""
        if time.monotonic() - self._looked < POLL:
            return
        self._looked = time.monotonic()
        self._slots = max(1, int(self._ray.cluster_resources().get(self._kind, 0) // self._need))
        if self._members:
            self._idle_since = self._looked
        elif self._looked - self._idle_since > QUIET:
            self._idle_since = self._looked
            message = (
                "no worker has started for %.0f s; does a node of the Ray cluster have %d %s free?"
            )
            log.warning(message, QUIET, self._need, self._kind)

    def _grow(self, wanted: int) -> None:
        missing = range(len(self._members) + len(self._starting), wanted)
        if not missing:
            return
        gpus, nodes = int(self._kind == "GPU"), self._nodes()
        remote = self._ray.remote(num_gpus=gpus, num_cpus=0 if gpus else self._need)(_Actor).remote
        for _ in missing:
            self._start(_Member(remote(self._job, self._folders, self._need, self._shared), nodes))

    def _nodes(self) -> set[str]:
        """Return the ids of the nodes that are alive."""
        return {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}

    def _start(self, member: _Member) -> None:
        self._starting[member.actor.ready.remote(self._files)] = member

    def _free(self) -> _Member | None:
        """Return the actor that has the fewest tasks, unless all have enough."""
        least = min(self._members, key=lambda member: len(member.tasks), default=None)
        return least if least and len(least.tasks) < AHEAD else None

    def _hand(self, member: _Member, task: Task) -> None:
        used = {
            name for other in self._members for one in other.tasks.values() for name in one.arrays
        }
        self._arrays = {
            name: self._arrays[name] for name in used | set(task.arrays) if name in self._arrays
        }
        for name, array in task.arrays.items():
            if name not in self._arrays:
                self._arrays[name] = self._ray.put(np.asarray(array))
        arrays = [self._arrays[name] for name in task.arrays]
        member.tasks[member.actor.compute.remote(task.args, arrays)] = task

    def _finished(self) -> Iterator[tuple[Task, Any]]:
        """Wait a little, and yield what has been finished or lost."""
        awaited = [ref for member in self._members for ref in member.tasks]
        done, _ = self._ray.wait([*awaited, *self._starting], timeout=POLL)
        for ref in done:
            if ref in self._starting:
                self._started(ref)
            for member in [one for one in self._members if ref in one.tasks]:
                yield from self._result(member, ref)

    def _started(self, ref: Any) -> None:
        member = self._starting.pop(ref)
        try:
            member.node, error = self._ray.get(ref)
        except _losses() as reason:
            self._starts += member.nodes <= self._nodes()  # else one was lost, and perhaps with it
            log.warning("a worker did not start: %s", _in_short(reason))
            if self._starts >= STARTS:
                message = f"{STARTS} workers in succession died before they were ready"
                hint = f"the last one: {_in_short(reason)}; does a node have the memory?"
                raise IsodenseError(message, hint) from None
            return
        if error == _MISSING:
            self._files = self._files or self._put()
            self._start(member)
        elif isinstance(error, IsodenseError):
            raise error
        else:
            self._starts = 0
            self._members.append(member)

    def _result(self, member: _Member, ref: Any) -> Iterator[tuple[Task, Any]]:
        """Yield the result of a task; all tasks of an actor that has died are lost."""
        task = member.tasks[ref]
        at_work = next(iter(member.tasks.values()))  # an actor takes its tasks in turn
        try:
            result = self._ray.get(ref)
        except _losses() as reason:
            self._members.remove(member)
            self._ray.kill(member.actor)
            self._tell_loss(at_work, member.node, reason)
            yield from ((one, _LOST) for one in member.tasks.values())
            return
        except Exception:
            log.error("%s failed on node %s", task.name, member.node)
            raise
        del member.tasks[ref]
        if isinstance(result, IsodenseError):
            log.error("%s failed on node %s", task.name, member.node)
            raise result
        self._losses.pop(task.name, None)
        yield task, result

    def _tell_loss(self, task: Task, node: str, reason: Exception) -> None:
        self._losses[task.name] += 1
        log.warning("%s was lost on node %s, and is computed again", task.name, node)
        if self._losses[task.name] >= LOSSES:
            message = f"{task.name} was lost {LOSSES} times, last on node {node}"
            hint = f"{_in_short(reason)}; does a worker have the memory? finished tasks are kept"
            raise IsodenseError(message, hint) from None

    def _put(self) -> Files:
        """Put the files of the job's folders into the object store."""
        return {
            name: {
                file.relative_to(path).as_posix(): self._ray.put(np.fromfile(file, dtype=np.uint8))
                for file in sorted(path.rglob("*"))
                if file.is_file()
            }
            for name, (path, _) in self._folders.items()
        }


_LOST = object()  # instead of a result
_MISSING = "missing"  # what an actor says that does not see the job's folders


class _Actor:
    """What computes tasks on a node; loads what its job reads once."""

    def __init__(self, job: Job, folders: Folders, cpus: int, shared: bool) -> None:
        self._job, self._folders, self._shared = job, folders, shared
        self._compute: Compute | None = None
        if job.device == "cpu":
            use_threads(cpus)

    def ready(self, files: Files | None) -> tuple[str, Any]:
        """Return the node, and what is in the way of the job: `_MISSING`, an error, or nothing."""
        import ray

        node = ray.util.get_node_ip_address()
        try:
            folders = {name: self._folder(name, files) for name in self._folders}
            if None in folders.values():
                return node, _MISSING
            self._compute = self._job.prepare(**folders, **self._job.settings)
        except IsodenseError as error:
            return node, error
        return node, None

    def compute(self, args: tuple[Any, ...], arrays: list[Any]) -> Any:
        """Return the result of a task, or the error that a user can correct."""
        import ray

        assert self._compute is not None  # noqa: S101 - only those that are ready get tasks
        try:
            return self._compute(*args, *ray.get(arrays))
        except IsodenseError as error:
            return error

    def _folder(self, name: str, files: Files | None) -> Path | None:
        """Return where an artifact is on this node, written from the object store if need be."""
        import ray

        path, identity = self._folders[name]
        if self._shared and _identity(path) == identity:
            return path
        store = Store(Path(tempfile.gettempdir(), "isodense"), "artifacts")
        entry = store.entry(identity)
        if not entry.holds(name):
            if files is None:
                return None
            with entry.writing(name) as folder:
                for file, ref in files[name].items():
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    np.asarray(ray.get(ref)).tofile(folder / file)
            store.clean()
        return entry.path(name)


def connected() -> Any:
    """Return the module ray, connected to the cluster that ``RAY_ADDRESS`` names.

    Without that, to a cluster that runs on this machine, or to one that is started here.

    Raises
    ------
    IsodenseError
        If there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if not ray.is_initialized():
        _require_answer(os.environ.get("RAY_ADDRESS", ""))
        package = Path(isodense.__file__).parent
        environment = {"py_modules": [str(package)], "excludes": ["__pycache__"]}
        with _interrupts_held():
            ray.init(runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
            ray.cluster_resources()  # makes the last connection, which is else made upon its use
    return ray


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back to the end of the block; a second one interrupts it at once.

    Ray's ``GlobalStateAccessor`` never returns, or aborts, where it is freed before it has
    connected: Ctrl-C at that moment would leave a process that hears nothing but ``kill -9``.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield  # it is ignored, or goes to another thread
        return
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if held:
            before(number, frame)
        held.append(number)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        signal.raise_signal(signal.SIGINT)


def _require_answer(address: str) -> None:
    """Raise unless something answers at a ``host:port``: Ray itself would wait, and then exit."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():  # none, "auto", or a URL
        return
    try:
        socket.create_connection((host, int(port)), CONNECT).close()
    except OSError as error:
        message = f"no Ray cluster answers at {address}: {error}"
        hint = "start one with `ray start --head`, or correct RAY_ADDRESS"
        raise IsodenseError(message, hint) from None


def has_gpus() -> bool:
    """Return whether a node of the cluster has a GPU."""
    return bool(connected().cluster_resources().get("GPU"))


def _cpus() -> int:
    text = os.environ.get("ISODENSE_WORKER_CPUS", "1")
    if not text.isdigit() or text == "0":
        raise IsodenseError(f"ISODENSE_WORKER_CPUS is {text!r}", "set it to a number from 1")
    return int(text)


def _identity(folder: Path) -> str:
    """Return the hash of an artifact's manifest, which has its files'; "" if there is none."""
    try:
        return sha256((folder / MANIFEST).read_bytes()).hexdigest()[:40]
    except OSError:
        return ""


def _losses() -> tuple[type[Exception], ...]:
    """Return the errors that say that an actor, or what it made, is gone."""
    from ray import exceptions as of_ray

    return (
        of_ray.RayActorError,
        of_ray.ObjectLostError,
        of_ray.NodeDiedError,
        of_ray.OutOfMemoryError,
        of_ray.WorkerCrashedError,
    )


def _in_short(reason: Exception) -> str:
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    return " ".join(lines)[:300]
