from __future__ import annotations

import csv
import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from isodense.pipeline.artifact import content_sha256, read_manifest, write_manifest
from tests import tiny
from tests.rl import ROOT, run_stage, write_inputs, write_reward


def test_the_stage_compares_two_policies(tmp_path: Path):
    prompts = write_inputs(tmp_path)
    write_reward(tmp_path, prompts)
    tiny.encoder(tmp_path / "models/encoder")
    source = content_sha256(read_manifest(tmp_path / "models/policy", "models"))
    grpo, inputs = tiny.policy(tmp_path / "models/grpo"), {"policy": source}
    write_manifest(grpo, "train", inputs=inputs, ids_sha256=prompts.ids_sha256)
    done = run_stage("evaluate", tmp_path)
    assert done.returncode == 1
    assert "belong to other prompts" in done.stderr  # trained on the held-out ones, too
    assert "dvc repro train" in done.stderr
    ids_sha256 = prompts.split("train").ids_sha256
    write_manifest(grpo, "train", inputs=inputs, ids_sha256=ids_sha256)
    done = run_stage("evaluate", tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "reports/metrics/evaluate.json").read_text())["eval"]
    assert report["prompts"] == 8
    assert report["gain"]["reward"] == 0
    assert [report["trained"].pop(name) for name in ("kl", "kl_low", "kl_high")] == [0, 0, 0]
    assert report["trained"].pop("kl_per_token") == 0
    assert report["base"] == report["trained"]
    assert 1 <= report["base"]["vendi_within"] <= 2
    assert 1 <= report["base"]["vendi"] <= 8
    with (tmp_path / "reports/plots/reward_by_decile.csv").open() as stream:
        assert {row["policy"] for row in csv.DictReader(stream)} == {"base", "trained"}
    lines = (tmp_path / "reports/completions.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["trained"]) for line in lines] == [2] * 8
    assert "on 8 held-out prompts" in done.stderr
    assert not (tmp_path / "reports/index.html").exists()  # the report stage writes it


def test_the_last_line_tells_solved_prompts_and_likely_answers_over_labels():
    summary = runpy.run_path(str(ROOT / "stages/evaluate.py"))["summary"]
    policy = {"pass_at_1": 0.5, "pass_at_1_over_labels": 0.25, "answer_probability": 0.125}
    ends = {"_low": -0.1, "_high": 0.3, "": 0.1}
    names = ("reward", "reward_over_labels", *policy)
    gain = {f"{name}{end}": value for name in names for end, value in ends.items()}
    metrics = {"prompts": 8, "labels": 3, "gain": gain, "clean": {"prompts": 8}}
    metrics |= {"base": policy, "trained": {name: value + 0.1 for name, value in policy.items()}}
    line = summary(SimpleNamespace(changed=True), metrics)
    assert line.startswith("reward +0.10 (-0.10 to +0.30) on 8 held-out prompts, +0.10 (")
    assert "over 3 labels; solved 50.0% before, 60.0% after (+0.10" in line
    assert "; solved over labels 25.0% before, 35.0% after" in line
    assert "; probability of the answer 12.5% before, 22.5% after" in line


def test_an_empty_heldout_split_is_one_message_without_a_traceback(tmp_path: Path):
    write_inputs(tmp_path, count=10, heldout=0.0)
    done = run_stage("evaluate", tmp_path)
    assert done.returncode == 1
    assert "raise prompts.heldout" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["reward", "train", "evaluate"])
def test_params_are_checked_before_anything_heavy_is_imported(module: str):
    code = (
        f"import sys, isodense.{module}, isodense.pipeline.stage;"
        "print({'torch', 'transformers', 'trl', 'scipy', 'datasets'} & set(sys.modules))"
    )
    environ = {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert done.stdout.strip() == "set()", done.stderr
