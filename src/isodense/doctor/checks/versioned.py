"""Checks of the workspace against what git and DVC have recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from isodense.doctor.checks.project import Finding, Project
from isodense.report.provenance import git, refused

SHOWN = 4
LINKS = {"hardlink", "symlink"}
BUSY = ("Unable to acquire lock", "is busy")  # in DVC's messages while another DVC process runs
TIMEOUT = 120.0  # seconds; DVC hashes files that have changed


def check_code(project: Project) -> Iterator[Finding]:
    """Whether the code that the stages depend on is committed to git."""
    name, code = "code", sorted(_code(project))
    if (said := refused(project.root)) is not None:
        yield Finding(name, "problem", *said)
        return
    if git(project.root, "rev-parse", "HEAD") is None:
        hint = "commit: dvc.lock is only valid together with the code of the run"
        yield Finding(name, "warning", "there is no git repository with a commit", hint)
        return
    if not code:
        return
    others = ("ls-files", "--others", "--exclude-standard", "-z", "--")
    untracked = sorted(_listed(project, *others, *code))
    changed = _listed(project, "diff", "--name-only", "--relative", "-z", "HEAD", "--", *code)
    absent = sorted(path for path in {*code, *changed} if not (project.root / path).exists())
    dirty = [path for path in changed if path not in absent]
    if absent:
        hint = "git checkout them, or correct deps in dvc.yaml"
        yield Finding(name, "problem", f"stages depend on {_some(absent)}, not there", hint)
    if untracked:
        hint = "git add and commit: a clone lacks them"
        yield Finding(name, "problem", f"stages depend on {_some(untracked)}, not in git", hint)
    if dirty:
        hint = "commit, so that a result can be traced to its code; or git restore"
        yield Finding(name, "warning", f"{_some(dirty)} changed since the last commit", hint)
    if not absent and not untracked and not dirty:
        yield Finding(name, "ok", f"all {len(code)} files that stages depend on are committed")


def _listed(project: Project, *command: str) -> list[str]:
    """Return the paths that a git command ends with NUL."""
    return [path for path in (git(project.root, *command) or "").split("\0") if path]


def check_lock(project: Project) -> Iterator[Finding]:
    """Whether ``dvc.lock`` is up to date with ``dvc.yaml``, params, code and data."""
    if not (project.root / "dvc.lock").exists():
        yield Finding("dvc.lock", "ok", "not there: nothing has been run yet", "dvc repro")
        return
    name, command = "dvc.lock", [sys.executable, "-m", "dvc", "repro", "--allow-missing", "--dry"]
    try:
        done = subprocess.run(
            command, cwd=project.root, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        text = f"dvc took more than {TIMEOUT:.0f} s to compare it with the workspace"
        yield Finding(name, "warning", text, "run `dvc repro --allow-missing --dry`")
        return
    said = (done.stdout + done.stderr).splitlines()
    behind = [line.split("'")[1] for line in said if line.startswith("Running stage '")]
    if done.returncode and any(words in done.stderr for words in BUSY):
        text = "another DVC process is at work here, so it could not be compared"
        yield Finding(name, "warning", text, "wait for it, or look at it with `dvc queue status`")
    elif behind:  # even if dvc failed: in a dry run, outputs of these stages may be missing
        text = f"{_some(behind)} would run: params, code or data are not those of dvc.lock"
        yield Finding(name, "warning", text, "dvc repro; or dvc checkout, to go back to dvc.lock")
    elif done.returncode and "No such file or directory" in done.stderr:
        text = "stages would run, and what they read has not been computed here"
        yield Finding(name, "warning", text, "dvc repro, or dvc pull if a teammate has pushed it")
    elif done.returncode:
        errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
        text = f"dvc cannot read it: {(errors or said or [''])[0]}"
        yield Finding(name, "problem", text, "run `dvc repro --dry` and do what it says")
    else:
        yield Finding(name, "ok", "in step with dvc.yaml, params, code and data")


def check_links(project: Project) -> Iterator[Finding]:
    """Whether files are linked to DVC's cache while the user is root.

    DVC makes linked files read-only, which does not stop root. Editing such a file in place also
    changes the cache, and ``dvc checkout`` then takes it for up to date.
    """
    kinds = project.dvc["cache"].get("type") or ["reflink", "copy"]
    kinds = [kinds] if isinstance(kinds, str) else kinds
    root, name = os.geteuid() == 0, "cache links"
    linked = [kind for kind in kinds if kind in LINKS]
    if linked and root:
        text = f"cache.type is {', '.join(kinds)} and you are root: an edited file edits the cache"
        hint = f"dvc config{_where(project)} --unset cache.type && dvc checkout --relink"
        yield Finding(name, "problem", text, hint)
    elif root and (found := _linked_outputs(project)):
        text = f"{_some(found)} still linked to the cache, and you are root"
        yield Finding(name, "problem", text, "dvc checkout --relink")
    else:
        yield Finding(name, "ok", f"cache.type is {', '.join(kinds)}")


def _code(project: Project) -> set[str]:
    """Return the dependencies of the stages that belong in git: code."""
    deps = [dep for stage in project.stages.values() for dep in stage.get("deps") or []]
    return {dep for dep in deps if isinstance(dep, str) and dep.startswith(("src/", "stages/"))}


def _linked_outputs(project: Project) -> list[str]:
    """Return a file of every output that is a symbolic or hard link to DVC's cache."""
    found = []
    for stage in project.stages.values():
        for out in stage.get("outs") or []:
            path = project.root / (next(iter(out)) if isinstance(out, dict) else out)
            first = path / "manifest.json" if path.is_dir() else path
            if first.is_symlink() or (first.is_file() and first.stat().st_nlink > 1):
                found.append(first.relative_to(project.root).as_posix())
    return found


def _where(project: Project) -> str:
    """Return the option of ``dvc config`` for the level at which ``cache.type`` is set."""
    for level in ("local", "repo", "global", "system"):
        if "type" in project.dvc.load_one(level).get("cache", {}):
            return "" if level == "repo" else f" --{level}"
    return ""


def _some(names: list[str] | list[Path]) -> str:
    shown = ", ".join(str(name) for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
