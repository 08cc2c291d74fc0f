from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from isodense.download.examples import load_pairs
from tests.download.sources import test_hh, test_stack_exchange, test_ultrafeedback
from tests.download.test_collect import SECTION
from tests.hub import Fault, Hub

STAGE = Path(__file__).parents[2] / "stages/download.py"


FLAGS = ("--raw", "data/raw", "--out", "data/examples", "--metrics", "reports/download.json")


def run(folder: Path, environ: dict[str, str] | None = None, **changes: object):
    """Run the stage as DVC does, in `folder`."""
    base = {"seed": 1, "device": "cpu"}
    text = yaml.safe_dump({"base": base, "download": SECTION | changes})
    (folder / "params.yaml").write_text(text)
    return subprocess.run(
        [sys.executable, STAGE, *FLAGS],
        cwd=folder,
        env={**os.environ, "CI": "1", **(environ or {})},
        capture_output=True,
        text=True,
    )


def test_the_sample_runs_from_a_bare_folder_and_repeats_to_the_byte(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        done = run(tmp_path / name)
        assert done.returncode == 0, done.stderr
    for name in (
        "data/examples/shard-00000.parquet",
        "data/examples/manifest.json",
        "reports/download.json",
    ):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    metrics = json.loads((tmp_path / "one/reports/download.json").read_text())["download"]
    assert metrics["pairs"] == len(load_pairs(tmp_path / "one/data/examples"))
    assert f"{metrics['pairs']} examples ({metrics['pairs']} from sample)" in done.stderr


def test_mistakes_are_one_message_without_a_traceback(tmp_path: Path):
    done = run(tmp_path, sources=["local"])
    assert done.returncode == 1
    assert "list your files there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data/examples").exists()


@pytest.fixture
def served(hub: Hub, tmp_path: Path) -> Hub:
    rows = {test_hh.TRAIN: [test_hh.row("hh")]}
    hub.add(test_hh.hh.REPO, test_hh.repository(tmp_path / "hh", rows), revision=test_hh.REVISION)
    test_ultrafeedback.serve(
        hub, tmp_path / "ultrafeedback", [test_ultrafeedback.row("uf", "a", "b")]
    )
    site = test_stack_exchange.MATH
    shards = {f"{site}/train-00000-of-00001.parquet": [test_stack_exchange.question(1, [1, 2])]}
    test_stack_exchange.serve(hub, tmp_path / "stack", shards)
    return hub


def from_the_hub(folder: Path, served: Hub):
    names = ["hh", "ultrafeedback", "stack_exchange"]
    pinned = {name: SECTION[name] | {"revision": "1" * 40} for name in names}
    return run(folder, served.environ(folder / "home"), sources=names, **pinned)


def test_all_data_sets_of_the_hub_in_one_run(served: Hub, tmp_path: Path):
    done = from_the_hub(tmp_path, served)
    assert done.returncode == 0, done.stderr
    pairs = load_pairs(tmp_path / "data/examples")
    assert [pair["source"] for pair in pairs] == ["hh", "ultrafeedback", "stack_exchange"]


def test_a_truncated_download_publishes_nothing(served: Hub, tmp_path: Path):
    served.faults[test_ultrafeedback.FILE] = Fault(truncate_to=100)
    done = from_the_hub(tmp_path, served)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "HF_ENDPOINT" in done.stderr
    assert not (tmp_path / "data/examples").exists()
    assert not (tmp_path / "reports/download.json").exists()
