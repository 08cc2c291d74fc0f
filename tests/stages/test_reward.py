from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.rl import run_stage, snapshot, write_inputs

FULL = {"epochs": 6.0, "batch_size": 8, "learning_rate": 0.003, "trainer": {}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_inputs(tmp_path, count=100)
    return tmp_path


def make(folder: Path, **changes: object) -> dict:
    """Run the stage and return its metrics."""
    done = run_stage("reward", folder, reward=changes)
    assert done.returncode == 0, done.stderr
    assert "held-out accuracy" in done.stderr
    return json.loads((folder / "reports/metrics/reward.json").read_text())["reward"]


def refuse(folder: Path, **changes: object) -> str:
    """Run the stage, which must stop with one message, and return it."""
    done = run_stage("reward", folder, reward=changes)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not (folder / "models/reward").exists()
    return done.stderr


def test_the_stage_writes_the_reward_and_its_accuracy(folder: Path):
    report = make(folder)
    assert report["heldout"]["accuracy"] > 0.9
    assert {"accuracy", "low", "high", "prefers"} == set(report["length_only"])
    assert {"difference", "low", "high"} == set(report["over_length"])
    assert report["beats_chance"] is True
    assert sorted(snapshot(folder / "models/reward")) == ["head.safetensors", "manifest.json"]


def test_weights_enter_only_if_they_are_asked_for(folder: Path):
    make(folder, sampling="density")
    manifest = json.loads((folder / "models/reward/manifest.json").read_text())
    assert set(manifest["inputs"]) == {"pairs", "prompts", "policy", "density"}
    shutil.rmtree(folder / "data/density")
    make(folder)
    manifest = json.loads((folder / "models/reward/manifest.json").read_text())
    assert set(manifest["inputs"]) == {"pairs", "prompts", "policy"}


def test_no_held_out_pair_is_one_message_without_a_traceback(tmp_path: Path):
    write_inputs(tmp_path, count=10, heldout=0.0)
    assert "raise prompts.heldout" in refuse(tmp_path)


def test_kind_full_is_trained_in_the_stage(folder: Path):
    report = make(folder, kind="full", full=FULL)
    assert report["heldout"]["accuracy"] > 0.8
    assert (folder / "models/reward/model/model.safetensors").is_file()
    assert not list((folder / "models").rglob("*.bin"))


def test_kind_model_is_published_and_checked(folder: Path, tmp_path: Path):
    policy = folder / "models/policy"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    model.save_pretrained(tmp_path / "source")
    AutoTokenizer.from_pretrained(policy).save_pretrained(tmp_path / "source")
    source = {"source": "folder", "name": "source", "version": None}
    report = make(folder, kind="model", model=source)
    assert 0 <= report["heldout"]["accuracy"] <= 1
    assert "log_loss" not in report["heldout"]
    assert (folder / "models/reward/model/model.safetensors").is_file()


def test_a_function_is_found_in_the_projects_root_and_judged(folder: Path):
    (folder / "rewards.py").write_text(
        "def wrong(completions, **_):\n"
        "    return [-answer[-1]['content'].count('.') for answer in completions]\n"
    )
    done = run_stage("reward", folder, reward={"kind": "function", "functions": ["rewards:wrong"]})
    assert done.returncode == 0, done.stderr
    assert "not shown to be better than length alone" in done.stderr
    report = json.loads((folder / "reports/metrics/reward.json").read_text())["reward"]
    assert report["heldout"]["accuracy"] == 0
    assert report["beats_chance"] is False
    assert "train" not in report
    assert sorted(snapshot(folder / "models/reward")) == ["manifest.json"]


def test_a_function_that_raises_stops_the_stage_with_one_message(folder: Path):
    (folder / "rewards.py").write_text("def right(completions, **_):\n    return 1 / 0\n")
    text = refuse(folder, kind="function", functions=["rewards:right"])
    assert "reward.functions: rewards:right raised ZeroDivisionError" in text
