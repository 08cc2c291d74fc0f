"""Running the experiments of a comparison, several at a time, each in a git clone of its own.

``dvc exp run`` keeps what it is about to run in one place of a repository and takes from there
whatever it finds, so that two of them at once take each other's. Here each of the jobs has a clone
of the checkout, in ``.dvc/tmp``, that shares git's objects, DVC's cache and isodense's; finished
experiments are fetched from it. The stages that runs have in common are run once: as long as none
of them has finished, no two are started.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from isodense.experiments.plan import Run
from isodense.pipeline import stage
from isodense.pipeline.errors import IsodenseError

LOGS = Path("logs/compare")
PATIENCE = 120.0  # seconds that a run which is asked to stop has to end a training step
TAIL = 20  # lines shown of a run that failed
OWN = ("data/raw", "models/raw", "rewards")  # folders for the user's files


@dataclass
class Job:
    """An experiment that runs.

    Attributes
    ----------
    run : Run
    clone : Path
        Root of the project in the clone where it runs.
    process : Popen
    started : float
    """

    run: Run
    clone: Path
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)


def run_missing(runs: Sequence[Run], commit: str, jobs: int = 1) -> None:
    """Run the experiments that have not been run from a commit.

    Parameters
    ----------
    runs : sequence of Run
        In the order to run them.
    commit : str
        That of the checkout.
    jobs : int
        How many at once; they share the processors.

    Raises
    ------
    IsodenseError
        If an experiment fails.
    KeyboardInterrupt
        If it is asked to stop; what runs is stopped, and what has finished stays.
    """
    finished = revisions(commit)
    waiting = [run for run in runs if run.name not in finished]
    if not waiting:
        return
    shared = {run.common for run in runs if run.name in finished}
    jobs = min(jobs, len(waiting))
    environment = environ(jobs)
    LOGS.mkdir(parents=True, exist_ok=True)
    sys.stderr.write(f"[compare] {len(waiting)} of {len(runs)} runs to do, logs in {LOGS}\n")
    with _stoppable(), _clones(jobs) as free, _running() as running:
        ahead = Ahead(len(waiting), jobs)
        while waiting or running:
            while free and (run := next_run(waiting, shared, [job.run for job in running])):
                waiting.remove(run)
                running.append(_start(run, free.pop(), environment))
            ended = [job for job in running if job.process.poll() is not None]
            for job in ended:
                running.remove(job)
                free.append(job.clone)
            for job in sorted(ended, key=_failed):  # what has finished is kept before an error
                _require_finished(job)
                _fetch(job)
                shared.add(job.run.common)
                ahead.tell(job)
            time.sleep(0 if ended else 0.2)


def next_run(
    waiting: Sequence[Run], shared: set[tuple[str, ...]], running: Sequence[Run]
) -> Run | None:
    """Return the first run that can start: the stages it shares are done, or nobody is at them.

    Parameters
    ----------
    waiting : sequence of Run
    shared : set
        What runs that have finished had in common with others.
    running : sequence of Run
    """
    busy = {run.common for run in running} - shared
    return next((run for run in waiting if run.common not in busy), None)


class Ahead:
    """Says on stderr which run has ended and how long the rest may take.

    Parameters
    ----------
    total : int
        Number of runs.
    jobs : int
        How many at once.
    """

    def __init__(self, total: int, jobs: int) -> None:
        self.total, self.jobs = total, jobs
        self.seconds: list[float] = []

    def tell(self, job: Job) -> None:
        """Note that a job has ended."""
        self.seconds.append(time.monotonic() - job.started)
        done = len(self.seconds)
        left = sum(self.seconds) / done * (self.total - done) / self.jobs
        line = f"[compare] {job.run.name} took {_span(self.seconds[-1])}, {done} of {self.total}"
        sys.stderr.write(
            f"{line}, about {_span(left)} left\n" if done < self.total else f"{line}\n"
        )


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def require_unchanged(out: Path) -> None:
    """Check that no file that git tracks has changed, in this folder.

    In a larger repository, what colleagues change elsewhere has no effect.

    Parameters
    ----------
    out : Path
        Results of comparisons, which may have changed.

    Raises
    ------
    IsodenseError
        If there are such files.
    """
    inside = out.resolve().is_relative_to(Path.cwd())
    here = [".", *([f":(exclude){out}"] if inside else [])]
    changed = output("git", "status", "--porcelain", "--untracked-files=no", "--", *here)
    if changed:
        message = f"files have changed since the last commit:\n{changed}"
        hint = "commit them, or restore them with `git restore` and `dvc checkout`"
        raise IsodenseError(message, hint)


def head() -> str:
    """Return the checkout's commit."""
    return output("git", "rev-parse", "HEAD")


def revisions(commit: str) -> dict[str, str]:
    """Return the commits of the experiments that started from a commit, by name."""
    from dvc.repo import Repo

    with Repo() as repo:
        found = repo.experiments.ls(rev=commit)
    return {name: sha for ones in found.values() for name, sha in ones}


def environ(jobs: int = 1) -> dict[str, str]:
    """Return the environment of a run: this interpreter, isodense's cache, a share of the threads.

    Stages call ``python``.
    """
    here = str(Path(sys.executable).parent)
    path = os.pathsep.join([here, os.environ.get("PATH", "")])
    found = {**os.environ, "PATH": path, "ISODENSE_CACHE": str(stage.cache().absolute())}
    if jobs > 1:
        found.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    return found


@contextmanager
def _clones(count: int) -> Iterator[list[Path]]:
    """Make clones of the checkout's commit that share its caches; delete them in the end."""
    from dvc.repo import Repo

    with Repo() as repo:
        cache, parent = repo.cache.local_cache_dir, Path(str(repo.tmp_dir))
    top, here = (output("git", "rev-parse", f"--show-{what}") for what in ("toplevel", "prefix"))
    who = [f"user.{key}={value}" for key in ("name", "email") if (value := _identity(key))]
    options = [word for setting in who for word in ("-c", setting)]
    parent.mkdir(exist_ok=True)
    # what a run has left behind may still write there; that is no reason to lose the table
    named = tempfile.TemporaryDirectory(dir=parent, prefix="compare-", ignore_cleanup_errors=True)
    with named as folder:
        made = []
        for number in range(count):
            clone = Path(folder, str(number))
            output("git", "clone", "-q", "--shared", *options, "--", top, str(clone))
            made.append(clone / here)
            local = Path(".dvc/config.local")
            if local.is_file():
                shutil.copyfile(local, made[-1] / local)
            with Repo(str(made[-1])) as repo, repo.config.edit("local") as config:
                config.setdefault("cache", {})["dir"] = cache
        yield made


def _identity(key: str) -> str:
    found = subprocess.run(["git", "config", f"user.{key}"], capture_output=True, text=True)
    return found.stdout.strip()


def heed_interrupts() -> None:
    """Let SIGINT stop this process, also if it was started by one in the background.

    A shell lets background jobs ignore it, and whatever they start inherits that.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _start(run: Run, clone: Path, environment: dict[str, str]) -> Job:
    changes = [word for setting in run.settings for word in ("-S", setting)]
    command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", run.name, *changes]
    with _log(run).open("wb") as log:
        process = subprocess.Popen(
            [*command, "evaluate"],
            cwd=clone,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            process_group=0,  # so that it is stopped by this process alone
            preexec_fn=heed_interrupts,
        )
    return Job(run, clone, process)


def _failed(job: Job) -> bool:
    return job.process.returncode != 0


def _require_finished(job: Job) -> None:
    """Raise if the experiment failed, and show the end of its log."""
    if not _failed(job):
        return
    log = _log(job.run)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    sys.stderr.write("\n".join([*lines[-TAIL:], ""]))
    hint = f"correct the error above ({log} has all); finished runs are not run again"
    unknown = output("git", "ls-files", "--others", "--exclude-standard", "--", *OWN)
    if unknown:
        hint += (
            f". Runs see what git tracks, not {unknown.splitlines()[0]}: if they need it, "
            "`git add` it, or `dvc add` it if it is large, and commit"
        )
    raise IsodenseError(f"experiment {job.run.name} failed", hint)


def _fetch(job: Job) -> None:
    """Take the experiment from its clone, which knows the commit that it started from."""
    here = ("git", "-C", str(job.clone), "rev-parse")  # the project may be a folder of the clone
    top, commit = output(*here, "--show-toplevel"), output(*here, "HEAD")
    ref = f"refs/exps/{commit[:2]}/{commit[2:]}/{job.run.name}"
    output("git", "fetch", "-q", top, f"+{ref}:{ref}")


def _log(run: Run) -> Path:
    return LOGS / f"{run.name}.log"


@contextmanager
def _running() -> Iterator[list[Job]]:
    """Give a list for jobs; those that are in it when the block ends are stopped."""
    jobs: list[Job] = []
    try:
        yield jobs
    finally:
        for job in jobs:
            _signal(job, signal.SIGINT)
        end = time.monotonic() + PATIENCE
        for job in jobs:
            with suppress(subprocess.TimeoutExpired):
                job.process.wait(max(0.0, end - time.monotonic()))
            _signal(job, signal.SIGKILL)  # whatever it has left
            if not job.process.wait():  # it was about to end
                with suppress(IsodenseError):
                    _fetch(job)


def _signal(job: Job, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(job.process.pid, number)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP stop the block as Ctrl-C does."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {one: signal.signal(one, stop) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def output(*command: str) -> str:
    """Return what a command prints.

    Raises
    ------
    IsodenseError
        If it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise IsodenseError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout.rstrip()
