from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.report.test_page import read, write_artifacts, write_results
from tests.rl import ROOT, write_inputs


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    base = "--prompts data/prompts --density data/density --out reports/index.html"
    return subprocess.run(
        [sys.executable, ROOT / "stages/report.py", *base.split(), "--images", "images", *flags],
        cwd=folder,
        env={**os.environ, "CI": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_the_stage_writes_page_and_pictures_that_repeat(tmp_path: Path):
    made = []
    for name in ("one", "two"):
        folder = tmp_path / name
        write_artifacts(folder / "data")
        write_results(folder / "reports")
        done = run(
            folder,
            *"--neighbors data/neighbors --map data/map --inputs reports/metrics/density.json "
            "--training reports/train/plots/metrics --realised reports/train/realised.csv "
            "--deciles reports/plots/reward_by_decile.csv "
            "--completions reports/completions.jsonl --manifests data/prompts/manifest.json "
            "data/map/manifest.json".split(),
        )
        assert done.returncode == 0, done.stderr
        assert "reports/index.html, " in done.stderr
        images = {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}
        made.append(((folder / "reports/index.html").read_bytes(), images))
    assert made[0] == made[1]
    assert list(made[0][1]) == ["heldout_distance.png", "map.png", "weight_rank.png"]
    text = read(tmp_path / "one/reports/index.html").text
    assert "data/map" in text
    assert "There is no" not in text


def test_prompts_and_density_without_labels_are_enough(tmp_path: Path):
    write_inputs(tmp_path, count=20)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "There is no training yet" in read(tmp_path / "reports/index.html").text


def test_a_missing_artifact_is_one_message_without_a_traceback(tmp_path: Path):
    write_inputs(tmp_path, count=20)
    done = run(tmp_path, "--map", "data/map")
    assert done.returncode == 1
    assert "dvc repro map" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "reports/index.html").exists()
