from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.rl import FLAGS, ROOT, run_stage, snapshot, write_inputs

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


RIGHT = """\
def correct(completions, answer):
    return [float(expected in made[0]["content"]) for made, expected in zip(completions, answer)]


def brief(completions, completion_ids, most):
    return [None if len(ids) > most else 1.0 for ids in completion_ids]


def nothing(completions):
    return [0.0] * len(completions)
"""
LETTERS = "aeiou"


@pytest.fixture
def unpaired(tmp_path: Path) -> Path:
    """Prompts with a column to check answers with, and no pairs."""
    write_inputs(tmp_path, count=60, pairs=0, answer=lambda number: LETTERS[number % 5])
    (tmp_path / "rewards.py").write_text(RIGHT)
    return tmp_path


def test_without_pairs_the_policys_completions_are_scored(unpaired: Path):
    functions = ["rewards:correct", {"name": "rewards:brief", "weight": 0.25, "args": {"most": 5}}]
    done = run_stage("reward", unpaired, reward={"kind": "function", "functions": functions})
    assert done.returncode == 0, done.stderr
    assert "of 4 completions each of 8 training prompts" in done.stderr
    report = json.loads((unpaired / "reports/metrics/reward.json").read_text())["reward"]
    assert set(report) == {"kind", "sampled", "functions"}
    assert set(report["functions"]) == {"correct", "brief"}
    assert report["functions"]["correct"]["no_opinion"] == 0
    assert 0 < report["functions"]["brief"]["no_opinion"] < 1
    assert report["functions"]["brief"]["mean"] == 1
    folder = unpaired / "models/reward"
    rows = [json.loads(line) for line in (folder / "sampled.jsonl").read_text().splitlines()]
    for row in rows:
        right = float(row["columns"]["answer"] in row["completion"])
        assert row["rewards"]["correct"] == right
        assert row["reward"] == right + 0.25 * (row["rewards"]["brief"] or 0)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["check"] == {"sampled": report["sampled"]}
    assert manifest["params"]["check"]["prompts"] == 8
    before = snapshot(folder)
    shutil.rmtree(unpaired / ".cache")
    run_stage("reward", unpaired, reward={"kind": "function", "functions": functions})
    assert snapshot(folder) == before


def test_nothing_to_learn_is_said_and_trained_on_all_the_same(unpaired: Path):
    settings = {"kind": "function", "functions": ["rewards:nothing"]}
    done = run_stage("reward", unpaired, reward=settings)
    assert done.returncode == 0, done.stderr
    assert "no completion of 8 prompts was solved and no group has two different" in done.stderr
    assert "8 never solved, 0 sometimes, 0 always" in done.stderr
    done = run_stage("train", unpaired, reward=settings)
    assert done.returncode == 0, done.stderr
    assert "no group of 8 prompts had two different rewards" in done.stderr
    assert "the policy is unchanged" in done.stderr


def test_a_reward_model_needs_no_pairs(unpaired: Path):
    policy = unpaired / "models/policy"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    model.save_pretrained(unpaired / "source")
    AutoTokenizer.from_pretrained(policy).save_pretrained(unpaired / "source")
    source = {"source": "folder", "name": "source", "version": None}
    done = run_stage("reward", unpaired, reward={"kind": "model", "model": source})
    assert done.returncode == 0, done.stderr
    report = json.loads((unpaired / "reports/metrics/reward.json").read_text())["reward"]
    assert set(report) == {"kind", "sampled"}
    assert report["sampled"]["frac_reward_zero_std"] < 1


@pytest.mark.parametrize("kind", ["head", "full"])
def test_a_kind_that_is_fitted_says_at_once_that_there_are_no_pairs(unpaired: Path, kind: str):
    text = refuse(unpaired, kind=kind)
    assert f"reward.kind {kind} needs preference pairs, this data has none" in text
    assert "function or model" in text


def test_a_column_that_is_missing_is_said_before_the_policy_is_read(unpaired: Path):
    shutil.rmtree(unpaired / "models/policy")
    text = refuse(unpaired, kind="function", functions=["trl.rewards:accuracy_reward"])
    assert "needs the column solution" in text or "isodense[math]" in text
    (unpaired / "rewards.py").write_text(RIGHT.replace("answer", "truth"))
    text = refuse(unpaired, kind="function", functions=["rewards:correct"])
    assert "rewards:correct needs the column truth; the data has answer" in text
    assert "set download.local.columns: {truth: answer}" in text


def test_what_fails_before_heavy_work_imports_none(unpaired: Path):
    script = (
        "import sys; sys.argv = ['stages/reward.py']; sys.path.insert(0, {root!r})\n"
        "from stages import reward\n"
        "try:\n"
        "    reward.main({flags!r})\n"
        "except Exception as error:\n"
        "    print(error, 'torch' in sys.modules)\n"
    )
    run_stage("reward", unpaired)  # writes params.yaml
    code = script.format(root=str(ROOT), flags=FLAGS["reward"].split())
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=unpaired, capture_output=True, text=True, check=True
    )
    assert "needs preference pairs" in done.stdout
    assert done.stdout.strip().endswith("False")


def test_pairs_of_some_prompts_are_fitted_and_counted(tmp_path: Path):
    train = len(write_inputs(tmp_path, count=100, pairs=70).split("train"))
    done = run_stage("reward", tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "reports/metrics/reward.json").read_text())["reward"]
    assert report["train_pairs"] + report["heldout_pairs"] == 70
    assert f"{report['train_pairs']} of {train} training prompts have pairs" in done.stderr
