"""Which outputs are up to date by ``dvc.lock``, in the workspace or in any commit.

A stage is up to date at a revision if ``dvc.lock`` records for it what the revision holds: the
command, the params, the code, and outputs of stages that are up to date themselves.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CODE = "src/"  # folders whose contents git has whole


@dataclass(frozen=True)
class Revision:
    """Files of the workspace or of a commit.

    Attributes
    ----------
    read : callable
        ``(path) -> bytes or None``: content of a file; None where there is none.
    files : callable
        ``(path) -> iterable of str``: paths of all files in a folder, from that folder.
    """

    read: Callable[[str], bytes | None]
    files: Callable[[str], Iterator[str]]


def stale_outputs(revision: Revision) -> set[str]:
    """Return the outputs and metrics of the stages that are not up to date at a revision.

    Parameters
    ----------
    revision : Revision
        Holds ``dvc.yaml``, ``dvc.lock``, params and code.

    Returns
    -------
    set of str
        Paths of outputs that were made from other inputs than the revision holds, or never.
    """
    stages = _yaml(revision, "dvc.yaml").get("stages", {})
    locked = _yaml(revision, "dvc.lock").get("stages", {})
    maker = {path: name for name, stage in stages.items() for path in _outputs(stage)}
    known: dict[str, bool] = {}

    def current(name: str) -> bool:
        if name not in known:
            lock = locked.get(name)
            upstream = {maker[dep] for dep in _paths(stages[name], "deps") if dep in maker}
            known[name] = (
                lock is not None
                and lock["cmd"] == stages[name]["cmd"]
                and all(current(other) for other in upstream)
                and _same_deps(stages[name], lock, locked, maker, revision)
                and _same_params(stages[name], lock, revision)
            )
        return known[name]

    return {path for path, name in maker.items() if not current(name)}


def outdated_outputs(lock: Path) -> set[str]:
    """Return the outputs of stages that have not run since an output they depend on has changed.

    Only outputs are compared, not params and code.

    Parameters
    ----------
    lock : Path
        ``dvc.lock``; where it does not exist, nothing is outdated.

    Returns
    -------
    set of str
        Paths of the outdated outputs.
    """
    locked = _parsed(lock.read_bytes())["stages"] if lock.is_file() else {}
    made = {out["path"]: (name, out.get("md5")) for name in locked for out in _outs(locked[name])}

    @functools.cache
    def current(name: str) -> bool:
        used = [dep for dep in locked[name].get("deps", []) if dep["path"] in made]
        return all(
            made[dep["path"]][1] == dep.get("md5") and current(made[dep["path"]][0]) for dep in used
        )

    return {path for path, (name, _) in made.items() if not current(name)}


def _outs(lock: Mapping[str, Any]) -> list[dict[str, Any]]:
    return lock.get("outs", [])


def _same_deps(
    stage: Mapping[str, Any],
    lock: Mapping[str, Any],
    locked: Mapping[str, Any],
    maker: Mapping[str, str],
    revision: Revision,
) -> bool:
    """Return whether a stage last ran on the code and the outputs that the revision holds."""
    used = {dep["path"]: dep.get("md5") for dep in lock.get("deps", [])}
    if set(used) != set(_paths(stage, "deps")):
        return False
    for path, md5 in used.items():
        if path in maker:
            made = {out["path"]: out.get("md5") for out in _outs(locked[maker[path]])}
            if made.get(path) != md5:
                return False
            continue
        found = _md5(revision, path)  # None where git has no such file: nothing to compare
        if found is not None and found != md5:
            return False
    return True


def _md5(revision: Revision, path: str) -> str | None:
    """Return the hash that DVC gives a file or a folder of code; None of all else."""
    if (content := revision.read(path)) is not None:
        return hashlib.md5(content, usedforsecurity=False).hexdigest()
    if not path.startswith(CODE):
        return None  # a folder of the user's, whose files need not be in git
    ignored = _ignored(revision.read(".dvcignore") or b"")
    names = [name for name in revision.files(path) if not ignored.match_file(f"{path}/{name}")]
    entries = [
        {"md5": _md5(revision, f"{path}/{name}"), "relpath": name}
        for name in sorted(names, key=lambda name: name.split("/"))
    ]
    text = json.dumps(entries, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


@functools.lru_cache(maxsize=16)
def _ignored(content: bytes) -> Any:
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(content.decode().splitlines())


def _same_params(stage: Mapping[str, Any], lock: Mapping[str, Any], revision: Revision) -> bool:
    used = lock.get("params", {}).get("params.yaml", {})
    tree = dict(nested_items(_yaml(revision, "params.yaml"), ""))
    return set(used) == set(stage.get("params", [])) and all(
        key in tree and tree[key] == value for key, value in used.items()
    )


def nested_items(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield ``(dotted name, value)`` of every node of a tree, branches included."""
    for key, value in tree.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from nested_items(value, f"{prefix}{key}.")


def _yaml(revision: Revision, path: str) -> dict[str, Any]:
    content = revision.read(path)
    return _parsed(content) if content else {}


@functools.lru_cache(maxsize=256)
def _parsed(content: bytes) -> dict[str, Any]:
    """Parse YAML 1.2, as DVC does: there 1e-05 is a number."""
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(content) or {}


def _paths(stage: Mapping[str, Any], kind: str) -> list[str]:
    return [item if isinstance(item, str) else next(iter(item)) for item in stage.get(kind, [])]


def _outputs(stage: Mapping[str, Any]) -> list[str]:
    return [path for kind in ("outs", "metrics", "plots") for path in _paths(stage, kind)]
