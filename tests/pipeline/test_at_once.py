"""Two runs at once: of a stage on one output, clones with one cache, queued experiments."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from isodense.pipeline.artifact import read_checked
from tests import tiny
from tests.dvc.test_experiments import finish_queue
from tests.project import ROOT, SMALL, Project, start, write_params
from tests.trials import digest

STAGE = [sys.executable, str(ROOT / "stages" / "embeddings.py"), "--prompts", "data/prompts"]
STAGE += ["--encoder", "models/encoder", "--out", "data/embeddings", "--metrics", "metrics.json"]
TRAINING = "another run with the same settings is training"

pytestmark = pytest.mark.slow  # processes of a stage, each of which loads torch


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Give a folder with what ``embeddings`` reads."""
    folder = tmp_path / "one"
    (folder / "data").mkdir(parents=True)
    tiny.prompts(folder / "data/prompts", 300)
    tiny.encoder(folder / "models/encoder")
    write_params(folder / "params.yaml", SMALL | {"embeddings.rows_per_shard": 8})
    return folder


def begin(folder: Path, cache: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"ISODENSE_CACHE": str(cache), "OMP_NUM_THREADS": "1", "CI": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(STAGE, cwd=folder, env=environment, text=True, **pipes)


@pytest.mark.parametrize("same_output", [True, False])
def test_two_runs_at_once_end_with_equal_bytes(clone, tmp_path, same_output):
    other = clone
    if not same_output:
        other = tmp_path / "two"
        subprocess.run(["cp", "-r", clone, other], check=True)
    running = [begin(folder, tmp_path / "cache") for folder in (clone, other)]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    for folder in (clone, other):
        assert read_checked(folder / "data/embeddings", "embeddings")["rows"] == 300
        assert json.loads((folder / "metrics.json").read_text())["embeddings"]["prompts"] == 300
    assert digest(clone / "data/embeddings") == digest(other / "data/embeddings")
    assert not [*tmp_path.rglob("*.tmp")]
    alone = begin(clone, tmp_path / "fresh")
    before = digest(clone / "data/embeddings")
    assert alone.wait() == 0
    assert digest(clone / "data/embeddings") == before


def test_two_workers_train_side_by_side(finished, tmp_path):
    """Seeds apart, both end, with the bytes of a run alone; settings alike, one says who trains."""
    project = finished.copy(tmp_path)
    add = ["dvc", "exp", "run", "--queue"]
    project.run(*add, "-n", "seed", "-S", "train.seed=7,8", "train")
    project.run("dvc", "queue", "start", "--jobs", "2")
    try:
        finish_queue(project, 300)
        locks = [_trained(project, f"seed-{number}") for number in (1, 2)]
        project.run(*add, "-n", "alike", "-S", "train.save_steps=1,2", "train")
        project.run("dvc", "queue", "start", "--jobs", "2")
        finish_queue(project, 300)
        status = project.run("dvc", "queue", "status")
    finally:
        project.run("dvc", "queue", "stop", "--kill", check=False)
    states = re.findall(r"alike-\d +.*(Success|Failed)", status)
    assert len(states) == 2
    assert "Success" in states
    for number in (1, 2):
        logs = project.run("dvc", "queue", "logs", f"alike-{number}")
        if "Traceback" in logs or "error: " in logs:
            assert f"{TRAINING} in" in logs
            assert re.search(r"wait for it, or stop it: process \d+ on ", logs)
    project.set({"train.seed": 7})
    project.run("dvc", "repro", "--force", "--single-item", "--no-run-cache", "train")
    alone = yaml.safe_load(project.lock())["stages"]["train"]["outs"]
    assert alone == locks[0] != locks[1]


def test_two_repros_of_one_checkout(tmp_path):
    """DVC lets one work; what the other says is that; a third finds nothing to do."""
    project = start(tmp_path)
    running = [_repro(project) for _ in range(2)]
    said = [process.communicate()[0] for process in running]
    codes = sorted(process.returncode for process in running)
    assert codes[0] == 0, said
    (refused,) = [text for text, process in zip(said, running, strict=True) if process.returncode]
    assert re.search("lock|is busy", refused)
    assert project.ran(project.run("dvc", "repro")) == []
    assert not [*project.root.rglob("*.tmp")]
    first = project.lock()
    project.run("dvc", "repro", "--force", "--no-run-cache")
    assert project.lock() == first


def test_worktrees_that_share_a_cache(tmp_path):
    """Both compute all at once, into one cache of pieces and one of DVC's, with equal bytes.

    A training is not shared: of two that meet there, one says who trains, and runs again after.
    """
    project = start(tmp_path)
    other = Project(tmp_path)
    other.root = tmp_path / "worktree"
    project.run("git", "worktree", "add", "-q", "-b", "other", str(other.root))
    for each in (project, other):
        each.environ["ISODENSE_CACHE"] = str(tmp_path / "cache")
        each.run("dvc", "cache", "dir", "--local", str(tmp_path / "objects"))
    running = [_repro(each) for each in (project, other)]
    said = [process.communicate()[0] for process in running]
    for each, text, process in zip((project, other), said, running, strict=True):
        if process.returncode:
            assert re.findall("error: (.*) in /", text) == [TRAINING], text
            each.run("dvc", "repro")
    assert {process.returncode for process in running} >= {0}, said
    assert project.lock() == other.lock()
    for each in (project, other):
        assert each.ran(each.run("dvc", "repro")) == []
    assert not [*tmp_path.rglob("*.tmp")]


def _repro(project):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = ["dvc", "repro"]
    return subprocess.Popen(command, cwd=project.root, env=project.environ, text=True, **pipes)


def _trained(project, name):
    """Return what dvc.lock has of an experiment's trained policy."""
    refs = project.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    (ref,) = (ref for ref in refs if ref.endswith(f"/{name}"))
    return yaml.safe_load(project.run("git", "show", f"{ref}:dvc.lock"))["stages"]["train"]["outs"]
