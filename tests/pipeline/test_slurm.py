"""The scripts of ``examples/slurm``, with commands that stand in for SLURM's on this machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.project import Project

SCRIPTS = Path(__file__).parents[2] / "examples" / "slurm"
COMMANDS = {
    "srun": """
        while [[ $1 == --* ]]; do
            [[ $1 == --output ]] && exec >>"$2" 2>&1
            [[ $1 == --overlap ]] && shift || shift 2
        done
        echo $$ >>steps.txt
        exec "$@" """,
    "scancel": "for step in $(<steps.txt); do kill -TERM -- -$step; done 2>/dev/null",
    "scontrol": '[[ $1 == show ]] && printf "%s\\n" ${3//,/ } || echo "$@" >>scontrol.txt',
    "sinfo": 'echo "127.0.0.${4#node}"',  # --noheader --Node --nodes NAME
}
STAGE = """
import signal, time
asked = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: asked.append(1))
while not asked:
    time.sleep(0.1)
time.sleep(2)  # it ends its step
open("kept.txt", "w").write("what it had")
raise SystemExit(130)
"""


def prepare(made: Project) -> None:
    """Put the commands on PATH, and the environment where the scripts look for it."""
    commands = made.root.parent / "commands"
    commands.mkdir()
    for name, body in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    (made.root / ".venv/bin").mkdir(parents=True)
    own = f"{Path(sys.executable).parent}:{commands}"
    (made.root / ".venv/bin/activate").write_text(f'PATH="{own}:$PATH"\n')
    made.environ |= {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node2,node3",
        "SLURM_CPUS_ON_NODE": "1",
        "SLURM_RESTART_COUNT": "1",
        "PYTHONPATH": str(made.root / "src"),
    }


@pytest.mark.slow
def test_a_job_of_several_nodes_computes_on_all_of_them(finished, tmp_path):
    pytest.importorskip("ray")
    made = finished.copy(tmp_path)
    prepare(made)
    before = made.lock()
    shutil.rmtree(made.root / ".cache")
    stages = ("--force", "--single-item", "embeddings", "neighbors")
    made.run("bash", str(SCRIPTS / "many-nodes.sbatch"), *stages)
    assert made.lock() == before  # the bytes of one process
    logs = [file.read_text() for file in sorted((made.root / "logs").glob("ray-*-node?.log"))]
    nodes = [re.search(r"Local node IP: (\S+)", log)[1] for log in logs]
    assert nodes == ["127.0.0.2", "127.0.0.3"]
    folders = [Path(re.search(r"saved to: (/\w+/ray-\w+)", log)[1]) for log in logs]
    assert len(set(folders)) == 2
    assert not any(folder.exists() for folder in folders)


@pytest.mark.parametrize(
    ("number", "whom", "again"),
    [
        (signal.SIGUSR1, "script", True),  # of --signal=B:, before the time is over
        (signal.SIGTERM, "script", False),
        (signal.SIGTERM, "all", False),  # preempted, requeued or cancelled
    ],
)
def test_a_signal_interrupts_the_stage_and_a_job_out_of_time_queues_again(
    tmp_path, number, whom, again
):
    made = Project(tmp_path)
    made.root.mkdir()
    prepare(made)
    (made.root / "stage.py").write_text(STAGE)
    (made.root / "dvc.yaml").write_text("stages: {train: {cmd: python stage.py}}\n")
    for command in ("git init -q", "dvc init -q"):
        made.run(*command.split())
    with (made.root / "out.txt").open("w") as out:
        job = subprocess.Popen(
            ["bash", SCRIPTS / "one-node.sbatch", "train"],
            cwd=made.root, env=made.environ, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        _wait(lambda: "> python stage.py" in (made.root / "out.txt").read_text())
        time.sleep(1)  # python starts
        one = psutil.Process(job.pid)
        for process in [one, *(one.children(recursive=True) if whom == "all" else ())]:
            process.send_signal(number)
        assert job.wait(timeout=60) != 0
    finally:
        job.kill()
    assert (made.root / "kept.txt").read_text() == "what it had"
    asked = made.root / "scontrol.txt"
    assert asked.exists() == again
    assert not again or asked.read_text() == f"requeue {os.getpid()}\n"


def _wait(condition) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.1)
