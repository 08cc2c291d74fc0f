"""Trackers beside dvclive get what dvclive wrote, and by default there is none.

trackio needs an older Pillow than the lock file has: `pip install trackio` for its test.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import ValidationError

from isodense.pipeline.errors import TrainingError
from isodense.train.settings import make_config
from tests.rl import snapshot
from tests.train.test_train import Length, run, section, world

__all__ = ["world"]
PARAMS = {"manifest.json"}  # which names the tracker
STEPS = {"max_steps": 3, "prompts_per_step": 2}


def series(folder: Path, name: str) -> list[float]:
    path = next((folder / "reports/train").rglob(f"{name}.tsv"))
    with path.open(newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream, delimiter="\t")]


def test_without_a_tracker_none_is_called_whatever_is_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/space")
    assert make_config(section(), 0, "cpu", tmp_path).report_to == []


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"wandb, which is not installed\n  -> pip install wan"):
        make_config(section(report_to=["dvclive", "wandb"]), 0, "cpu", tmp_path)


@pytest.mark.parametrize("names", [[], ["trackio"], ["dvclive", "dvclive"], ["dvclive", "comet"]])
def test_dvclive_is_always_named_and_nothing_unknown_or_twice(names):
    with pytest.raises(ValidationError, match="report_to"):
        section(report_to=names)


def test_a_run_is_named_like_its_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    config = make_config(section(), 0, "cpu", tmp_path / "0123456789abcdef")
    assert (config.run_name, config.project) == ("01234567", tmp_path.name)
    monkeypatch.setenv("DVC_EXP_NAME", "wavy-kiln")
    assert make_config(section(), 0, "cpu", tmp_path).run_name == "wavy-kiln"


@pytest.mark.parametrize("tracker", ["trackio", "tensorboard"])
def test_a_tracker_gets_what_dvclive_wrote_and_changes_no_byte(
    world, tracker, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    pytest.importorskip(tracker)
    folder = world[0]
    plain = run(world, "plain", Length(), **STEPS)
    told = run(world, tracker, Length(), report_to=["dvclive", tracker], **STEPS)
    assert told == plain
    weights = [snapshot(folder / name / "models/grpo") for name in ("plain", tracker)]
    assert {name for name in weights[0] if weights[0][name] != weights[1][name]} <= PARAMS
    read = {"trackio": _trackio, "tensorboard": _tensorboard}[tracker]
    assert read(tmp_path / tracker) == pytest.approx(series(folder / tracker, "reward"))


def _trackio(folder: Path) -> list[float]:
    (path,) = folder.glob("*.db")
    with closing(sqlite3.connect(path)) as base:
        rows = base.execute("SELECT metrics FROM metrics ORDER BY step, id").fetchall()
    logged = [json.loads(text) for (text,) in rows]
    return [one["train/reward"] for one in logged if "train/reward" in one]


def _tensorboard(folder: Path) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [point.value for point in events.Scalars("train/reward")]
