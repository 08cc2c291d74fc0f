"""What a project's ``dvc.lock`` says of the artifacts in a data folder, compared with the disk."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

from isodense.pipeline.artifact import MANIFEST
from isodense.pipeline.errors import ArtifactError
from isodense.report.provenance import checkout, git, read

ARTIFACTS = ("prompts", "density", "map")
MD5 = partial(hashlib.md5, usedforsecurity=False)


def pinned(data: Path) -> dict[str, str]:
    """Return what ``dvc.lock`` pins of a project's data folder; nothing of another folder.

    Parameters
    ----------
    data : Path

    Returns
    -------
    dict of str to str
        DVC's hash of each artifact that is there, by name.

    Raises
    ------
    ArtifactError
        If one on disk is another than the one that is pinned.
    """
    data = data.absolute()
    locked = {path: md5 for _, path, md5 in checkout(data.parent)["locked"]}
    there = [name for name in ARTIFACTS if (data / name / MANIFEST).is_file()]
    pins = {name: locked[path] for name in there if (path := f"{data.name}/{name}") in locked}
    if "density" not in pins:
        return {}
    for name, md5 in pins.items():
        if _md5(data / name) != md5:
            path = f"{data.name}/{name}"
            hint = f"`dvc checkout --force {path}` takes the pinned one, `dvc repro` pins a new one"
            raise ArtifactError(f"{path} is not the one that dvc.lock pins", hint)
    return pins


def commit_of(data: Path) -> str | None:
    """Return the git commit that holds the ``dvc.lock`` of a project as it is now, if one does."""
    root = data.absolute().parent
    changed = git(root, "status", "--porcelain", "--", "dvc.lock")
    return git(root, "rev-parse", "HEAD") if changed == "" else None


def _md5(folder: Path) -> str:
    """Return DVC's hash of an artifact: of the list of its files and their hashes."""
    names = sorted([MANIFEST, *read(folder / MANIFEST)["files"]], key=lambda one: one.split("/"))
    entries = [{"md5": _file_md5(folder / name), "relpath": name} for name in names]
    text = json.dumps(entries, sort_keys=True)
    return MD5(text.encode()).hexdigest() + ".dir"


def _file_md5(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, MD5).hexdigest()
    except FileNotFoundError:
        return ""
