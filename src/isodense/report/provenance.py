"""Where a report comes from: contents of the artifacts, versions, and what git and DVC know.

The stage's own page names contents only. A git revision in it would change ``dvc.lock`` at every
commit; ``isodense report`` adds revision and ``dvc.lock`` to the page that it writes.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from isodense.pipeline.artifact import content_sha256
from isodense.pipeline.errors import ArtifactError

DUBIOUS = re.compile(r"dubious ownership in repository at '(.+)'")
PACKAGES = (
    "isodense",
    "accelerate",
    "bokeh",
    "dvc",
    "faiss-cpu",
    "matplotlib",
    "numpy",
    "peft",
    "pynndescent",
    "scikit-learn",
    "scipy",
    "torch",
    "transformers",
    "trl",
    "umap-learn",
)


def flat(nested: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the leaves of nested mappings, with their dotted names."""
    for name, value in nested.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def artifact(manifest: Path) -> dict[str, Any]:
    """Return what the page says of an artifact.

    Parameters
    ----------
    manifest : Path
        The artifact's ``manifest.json``; the files that it describes need not be there.

    Returns
    -------
    dict
        ``name``, ``sha256`` of its content, ``inputs`` and ``params``, as pairs.
    """
    entry = read(manifest)
    return {
        "name": manifest.parent.as_posix(),
        "sha256": content_sha256(entry),
        "inputs": list(flat(entry.get("inputs", {}))),
        "params": list(flat(entry.get("params", {}))),
    }


def read(manifest: Path) -> dict[str, Any]:
    """Return a manifest; the files that it describes need not be there.

    Raises
    ------
    ArtifactError
        If it is missing, or none.
    """
    hint = f"run `dvc checkout --force {manifest.parent}`"
    try:
        entry: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
        content_sha256(entry)
        for name in ("inputs", "params"):
            list(flat(entry.get(name, {})))
        return entry
    except FileNotFoundError:
        raise ArtifactError(f"{manifest}: no such file", hint) from None
    except (ValueError, KeyError, AttributeError):
        raise ArtifactError(f"{manifest} is not a manifest", hint) from None


def versions() -> list[tuple[str, str]]:
    """Return the versions of Python and of the libraries that are installed."""
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def checkout(root: Path) -> dict[str, Any]:
    """Return what git and DVC know of the checkout in `root`.

    Returns
    -------
    dict
        ``revision``, or None outside a git repository; ``refused``, what git says and what to do,
        or None, see :func:`refused`; ``changed``, the files that differ from it,
        untracked ones included; ``locked``, the md5 of every output in ``dvc.lock``, with its
        stage; ``params``, all of ``params.yaml``.
    """
    revision = git(root, "rev-parse", "HEAD")
    changed = git(root, "status", "--porcelain") if revision else None
    lock = _yaml(root / "dvc.lock").get("stages") or {}
    return {
        "revision": revision,
        "refused": None if revision else refused(root),
        "changed": (changed or "").splitlines(),
        "locked": [
            (stage, out["path"], out.get("md5", ""))
            for stage, entry in lock.items()
            for out in entry.get("outs", [])
        ],
        "params": list(flat(_yaml(root / "params.yaml"))),
    }


def _yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except yaml.YAMLError:
        message = f"{path} is not YAML"
        raise ArtifactError(message, "resolve its merge conflict, or `git checkout` it") from None
    return loaded if isinstance(loaded, dict) else {}


def refused(root: Path) -> tuple[str, str] | None:
    """Return why git reads nothing of a repository that another user owns, and the remedy.

    Returns
    -------
    tuple of str or None
        What is wrong and the command that mends it; None if git does read it, or there is none.
    """
    found = DUBIOUS.search(_run(root, "rev-parse", "HEAD")[1])
    if found is None:
        return None
    text = f"git reads nothing of {found[1]}, which another user owns (dubious ownership)"
    return text, f"git config --global --add safe.directory {shlex.quote(found[1])}"


def git(root: Path, *arguments: str) -> str | None:
    """Return what git prints, or None where there is no git or no repository."""
    return _run(root, *arguments)[0]


def _run(root: Path, *arguments: str) -> tuple[str | None, str]:
    """Return what git prints, or None if it fails, and what it complains of."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=root,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None, ""
    return (done.stdout.rstrip("\n") if done.returncode == 0 else None), done.stderr
