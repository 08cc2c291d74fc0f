from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isodense.prompts.reader import PromptSet, load_prompts
from tests.rl import run_stage, write_density, write_inputs, write_reward


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_reward(tmp_path, write_inputs(tmp_path))
    return tmp_path


def test_the_stage_trains_and_touches_neither_git_nor_dvc(folder: Path):
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / ".gitignore").write_text("/data\n/models\n/reports\n/logs\n/.cache\n/site\n")
    environ = os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder / "site")}
    me = ["-c", "user.name=me", "-c", "user.email=me@localhost"]
    for command in (
        ["git", "init", "-q"],
        [sys.executable, "-m", "dvc", "init", "-q"],
        ["git", "add", "-A"],
        ["git", *me, "commit", "-qm", "start"],
    ):
        subprocess.run(command, cwd=folder, check=True, env=environ)
    done = run_stage("train", folder)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((folder / "reports/train/metrics.json").read_text())
    assert metrics["step"] == 2
    assert metrics["train"]["draws"] == 4
    assert (folder / "reports/train/plots/metrics/train/reward.tsv").is_file()
    assert (folder / "models/grpo/manifest.json").is_file()
    assert "4 draws of" in done.stderr
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=folder, check=True, capture_output=True, text=True
    )
    assert status.stdout == "?? params.yaml\n"


def test_mistakes_show_before_a_model_is_loaded(folder: Path):
    done = run_stage("train", folder, train={"grpo": {"num_iteration": 2}})
    assert done.returncode == 1
    assert "did you mean 'num_iterations'?" in done.stderr
    assert "Traceback" not in done.stderr
    prompts = load_prompts(folder / "data/prompts")
    write_density(folder / "data/density", PromptSet(prompts.rows[1:]))
    done = run_stage("train", folder)
    assert done.returncode == 1
    assert "the weights belong to other prompts" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "models/grpo").exists()
