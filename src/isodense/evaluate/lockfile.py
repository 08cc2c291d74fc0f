"""Which outputs are up to date by ``dvc.lock``, in the workspace or in any commit.

A stage is up to date at a revision if ``dvc.lock`` records for it what the revision holds: the
command, the params, the code, and outputs of stages that are up to date themselves.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Read = Callable[[str], bytes | None]  # a file of a revision, or None where it has none


def stale_outputs(read: Read) -> set[str]:
    """Return the outputs and metrics of the stages that are not up to date at a revision.

    Parameters
    ----------
    read : callable
        ``(path) -> bytes or None``: reads ``dvc.yaml``, ``dvc.lock``, params and code of the
        revision.

    Returns
    -------
    set of str
        Paths of outputs that were made from other inputs than the revision holds, or never.
    """
    stages = _yaml(read, "dvc.yaml").get("stages", {})
    locked = _yaml(read, "dvc.lock").get("stages", {})
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
                and _same_deps(stages[name], lock, locked, maker, read)
                and _same_params(stages[name], lock, read)
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
    read: Read,
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
        content = read(path)  # None where git has no such file: then there is nothing to compare
        if content is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            return False
    return True


def _same_params(stage: Mapping[str, Any], lock: Mapping[str, Any], read: Read) -> bool:
    used = lock.get("params", {}).get("params.yaml", {})
    tree = dict(nested_items(_yaml(read, "params.yaml"), ""))
    return set(used) == set(stage.get("params", [])) and all(
        key in tree and tree[key] == value for key, value in used.items()
    )


def nested_items(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield ``(dotted name, value)`` of every node of a tree, branches included."""
    for key, value in tree.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from nested_items(value, f"{prefix}{key}.")


def _yaml(read: Read, path: str) -> dict[str, Any]:
    content = read(path)
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
