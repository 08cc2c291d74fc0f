"""Experiments side by side: which may start, and that all are stopped."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from isodense.experiments import running
from isodense.experiments.plan import plan_runs
from isodense.experiments.running import Job, environ, next_run


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
