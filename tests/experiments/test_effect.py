"""The short form of the experiment in docs/experiments.md, from a fresh clone to its outcome."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_density_trains_better_than_the_wrong_sign(tmp_path: Path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    for key, value in (("user.name", "test"), ("user.email", "test@example.org")):
        subprocess.run(["git", "config", key, value], cwd=clone, check=True)
    cache = str(ROOT / ".cache/isodense")  # so that no wheel is downloaded twice
    environ = {**os.environ, "PYTHONPATH": str(clone / "src"), "ISODENSE_CACHE": cache}
    command = [sys.executable, "benchmarks/effect.py", "--quick", "--jobs", "2"]
    subprocess.run(command, cwd=clone, env=environ, check=True)
    results = json.loads((clone / "benchmarks/effect/quick/results.json").read_text())
    (row,) = (
        row
        for row in results["rows"]
        if row["arm"] == "density" and row["measure"] == results["measure"]
    )
    assert results["measure"] == "eval.trained.answer_probability_over_labels"
    assert len(row["differences"]) == 2
    assert min(row["differences"]) > 0
