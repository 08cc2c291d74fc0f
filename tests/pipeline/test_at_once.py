"""Two runs at once: of one stage on one output and one cache, and of clones that share a cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isodense.pipeline.artifact import read_checked
from tests import tiny
from tests.project import ROOT, SMALL
from tests.trials import digest, write_params

STAGE = [sys.executable, str(ROOT / "stages" / "embeddings.py"), "--prompts", "data/prompts"]
STAGE += ["--encoder", "models/encoder", "--out", "data/embeddings", "--metrics", "metrics.json"]


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
