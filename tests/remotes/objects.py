"""Which objects a clone and a remote hold, by name and bytes."""

from __future__ import annotations

import json

import yaml

from tests.project import Project
from tests.remotes import servers


def outputs(project: Project, *paths: str) -> dict[str, int]:
    """Return name and bytes of the objects of outputs, from dvc.lock and the clone's cache."""
    found = {}
    for stage in yaml.safe_load(project.lock())["stages"].values():
        for out in stage["outs"]:
            if out["path"] in paths:
                found |= _objects(project, out["md5"])
    return found


def _files(project: Project) -> set[str]:
    """Return the names of the objects of outputs that are files, not folders."""
    outs = (
        out for stage in yaml.safe_load(project.lock())["stages"].values() for out in stage["outs"]
    )
    return {f"{out['md5'][:2]}/{out['md5'][2:]}" for out in outs if not out["md5"].endswith(".dir")}


def _objects(project: Project, md5: str) -> dict[str, int]:
    name = f"{md5[:2]}/{md5[2:]}"
    path = project.root / ".dvc" / "cache" / "files" / "md5" / name
    found = {name: path.stat().st_size}
    if name.endswith(".dir"):
        for entry in json.loads(path.read_text()):
            found |= _objects(project, entry["md5"])
    return found


def cached(project: Project) -> dict[str, int]:
    """Return name and bytes of every object in the clone's cache, without what is half-written."""
    paths = (project.root / ".dvc" / "cache" / "files").rglob("*")
    named = ((servers.object_name(path.as_posix()), path) for path in paths)
    return {name: path.stat().st_size for name, path in named if name}


def moved(project: Project, remote: servers.Remote, before: dict[str, int]) -> dict[str, int]:
    """Return what the server sent since the last call, or what is new in the cache."""
    new = {name: size for name, size in cached(project).items() if name not in before}
    if not remote.counts:
        return new
    sent = remote.sent()
    files = [name for name, _ in sent if not servers.is_list(name)]
    # each once; DVC reads its lists of folders several times, over HTTP also a file by itself
    within = [name for name in files if name not in _files(project)]
    assert len(within) == len(set(within))
    assert set(files) <= set(new)  # and nothing that the clone had
    assert dict(sent).items() <= cached(project).items()
    return {name: size for name, size in sent if name not in before}


def same(one: Project, other: Project, folder: str) -> bool:
    """Return whether a folder has the same files and bytes in both clones."""
    left, right = (
        {path.name: path.read_bytes() for path in (project.root / folder).iterdir()}
        for project in (one, other)
    )
    return left == right
