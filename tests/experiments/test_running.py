"""Experiments side by side: which may start, and that all are stopped."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from isodense.experiments import running
from isodense.experiments.plan import plan_runs
from isodense.experiments.running import Job, environ, next_run
from isodense.pipeline.errors import IsodenseError

GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid"]


def test_runs_that_share_stages_wait_for_the_first_of_them():
    runs = plan_runs(["uniform", "density"], 2, ["base.seed={seed}"])
    first, _, other_seed, _ = runs
    assert next_run(runs, set(), []) == first
    assert next_run(runs[1:], set(), [first]) == other_seed
    assert next_run(runs[1:2], set(), [first]) is None
    assert next_run(runs[1:2], {first.common}, [first]) == runs[1]
    same_data = plan_runs(["uniform", "density"], 2)
    assert next_run(same_data[1:], set(), same_data[:1]) is None


def test_jobs_share_the_processors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environ(3)["OMP_NUM_THREADS"] == "2"
    assert environ(16)["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in environ(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environ(2)["OMP_NUM_THREADS"] == "5"


def test_what_runs_is_stopped_if_the_comparison_is(tmp_path: Path):
    (run, _, *_) = plan_runs(["uniform", "density"], 2)
    child = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    command = [sys.executable, "-c", child]
    process = subprocess.Popen(command, process_group=0, preexec_fn=running.heed_interrupts)
    start = time.monotonic()
    with suppress(KeyboardInterrupt), running._running() as jobs:
        jobs.append(Job(run, tmp_path, process))
        raise KeyboardInterrupt
    assert process.returncode is not None
    assert time.monotonic() - start < 10


def git(folder: Path, *command: str) -> str:
    done = subprocess.run([*GIT, *command], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def ended(run: Any, clone: Path, status: int) -> Job:
    """Return a job that has ended, with an experiment in its clone if it has not failed."""
    if not status:
        commit = git(clone, "rev-parse", "HEAD")
        git(clone, "update-ref", f"refs/exps/{commit[:2]}/{commit[2:]}/{run.name}", commit)
    process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({status})"])
    process.wait()
    return Job(run, clone, process)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "checkout"
    root.mkdir()
    git(root, "init", "-q")
    git(root, "commit", "-q", "--allow-empty", "-m", "start")
    git(root, "clone", "-q", ".", str(tmp_path / "clone"))
    monkeypatch.chdir(root)
    return root


@pytest.mark.parametrize("project", [".", "ml team/prompts"])  # a folder of a larger repository
def test_an_experiment_is_kept_although_the_checkout_has_moved_on(
    checkout: Path, tmp_path: Path, project: str
):
    (run, _, *_) = plan_runs(["uniform", "density"], 2)
    start = running.head()
    git(checkout, "commit", "-q", "--allow-empty", "-m", "meanwhile")
    clone = tmp_path / "clone" / project
    clone.mkdir(parents=True, exist_ok=True)
    running._fetch(ended(run, clone, 0))
    (ref,) = git(checkout, "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    assert ref == f"refs/exps/{start[:2]}/{start[2:]}/{run.name}"


def test_what_has_finished_is_kept_when_another_run_fails(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bad, good, *_ = runs = plan_runs(["uniform", "density"], 2)
    Path("logs/compare").mkdir(parents=True)
    Path(f"logs/compare/{bad.name}.log").write_text("what went wrong")
    clone = tmp_path / "clone"
    monkeypatch.setattr(running, "revisions", lambda commit: {})
    monkeypatch.setattr(running, "_clones", lambda jobs: nullcontext([clone, clone]))
    monkeypatch.setattr(running, "_start", lambda run, *_: ended(run, clone, int(run == bad)))
    monkeypatch.setattr(running, "next_run", lambda waiting, *_: next(iter(waiting), None))
    with pytest.raises(IsodenseError, match=f"{bad.name} failed"):
        running.run_missing(runs[:2], running.head(), jobs=2)
    assert git(checkout, "for-each-ref", "refs/exps").endswith(good.name)


def test_what_finishes_while_it_is_asked_to_stop_is_kept(checkout: Path, tmp_path: Path):
    run, *_ = plan_runs(["uniform", "density"], 2)
    with suppress(KeyboardInterrupt), running._running() as jobs:
        jobs.append(ended(run, tmp_path / "clone", 0))
        raise KeyboardInterrupt
    assert git(checkout, "for-each-ref", "refs/exps").endswith(run.name)
