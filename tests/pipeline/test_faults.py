"""A step of a stage's writing fails; what is left is whole, and the next run ends as ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names open files by /proc")
COMMAND = [sys.executable, str(Path(__file__).parents[2] / "benchmarks" / "faults.py")]


def outcome(*arguments: str) -> list[str]:
    """Return the cells of the table's last row, having run the trials in their own process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*COMMAND, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    last = next(line for line in done.stdout.splitlines() if line.startswith("| **all**"))
    return [cell.strip() for cell in last.strip("|").split("|")][2:]


@pytest.mark.slow
def test_some_steps_of_a_quick_stage_fail():
    """Every seventh; all of them, of all stages, by the command and when slow tests run."""
    points, killed, line, finished, *_, wrong = outcome("--stages", "download", "--every", "7")
    assert int(points) == int(killed) + int(line) + int(finished) >= 10
    assert int(killed) >= 4
    assert int(line) >= 2
    assert wrong == "0"


@pytest.mark.slow
def test_every_step_of_every_stage_fails():
    points, *_, kept, wrong = outcome()
    assert int(points) >= 500
    assert int(kept) > 100
    assert wrong == "0"
