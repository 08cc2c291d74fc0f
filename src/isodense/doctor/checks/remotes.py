"""Checks of whether each of DVC's remotes answers, and whether its files are verified."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from isodense.doctor.checks.probe import WRONG
from isodense.doctor.checks.project import Finding, Level, Project
from isodense.sampling.remote import without_password

TIMEOUT = 15.0  # seconds for all remotes, which are asked in parallel
PROBE = Path(__file__).with_name("probe.py")


def check_remotes(project: Project) -> Iterator[Finding]:
    """Whether every remote can list its files; all are asked in parallel."""
    remotes = project.dvc["remote"]
    default = project.dvc["core"].get("remote")
    if not remotes:
        text = "there is none: nothing can be shared"
        yield Finding("remotes", "warning", text, "dvc remote add -d storage URL")
        return
    if default not in remotes:
        text = f"the default remote {default!r} is not configured" if default else "none is default"
        yield Finding("remotes", "warning", text, f"dvc remote default {next(iter(remotes))}")
    processes = {name: _ask(project, name) for name in remotes}
    end = time.monotonic() + TIMEOUT
    for name, settings in remotes.items():
        level, text, hint = _answer(processes[name], end - time.monotonic())
        shown = without_password(f"{settings.get('url')} {text}")
        yield Finding(f"remote {name}", level, shown, hint)
        if not settings.get("verify"):
            text = "verify is off: a damaged file in it is taken for good"
            hint = f"dvc remote modify {name} verify true"
            yield Finding(f"remote {name}", "warning", text, hint)


def _ask(project: Project, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", str(PROBE), str(project.root), name]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=project.root, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
    )


def _answer(process: subprocess.Popen[str], timeout: float) -> tuple[Level, str, str]:
    try:
        out, error = process.communicate(timeout=max(timeout, 0.1))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "problem", f"has not answered within {TIMEOUT:.0f} s", WRONG
    if process.returncode:
        lines = [line for line in error.splitlines() if line.strip()]
        return "problem", f"fails: {lines[-1] if lines else process.returncode}", WRONG
    level, text, hint = json.loads(out)
    return level, text, hint
