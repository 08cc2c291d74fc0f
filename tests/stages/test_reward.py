from __future__ import annotations

import json
from pathlib import Path

from tests.rl import run_stage, write_inputs


def test_the_stage_writes_the_reward_and_its_accuracy(tmp_path: Path):
    write_inputs(tmp_path, count=100)
    done = run_stage("reward", tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "reports/metrics/reward.json").read_text())["reward"]
    assert report["heldout"]["accuracy"] > 0.9
    assert {"accuracy", "low", "high", "prefers"} == set(report["length_only"])
    assert "held-out accuracy" in done.stderr
    names = sorted(path.name for path in (tmp_path / "models/reward").iterdir())
    assert names == ["head.safetensors", "manifest.json"]


def test_no_held_out_pair_is_one_message_without_a_traceback(tmp_path: Path):
    write_inputs(tmp_path, count=10, heldout=0.0)
    done = run_stage("reward", tmp_path)
    assert done.returncode == 1
    assert "raise prompts.heldout" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "models/reward").exists()
