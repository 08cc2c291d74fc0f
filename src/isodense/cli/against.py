"""Comparing what the pipeline made here with what a commit pins: same, drifted or different."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isodense.pipeline.artifact import MANIFEST
from isodense.pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from dvc.fs.dvc import DVCFileSystem

DRIFT = 1e-3  # largest difference that another kind of processor explains
OTHER = float("inf")  # difference of what has other rows, names or words


def against(rev: str) -> Iterator[tuple[str, str]]:
    """Compare each stage's outputs with those that a commit pins.

    Parameters
    ----------
    rev : str
        A commit, branch or tag of the project in the working directory.

    Yields
    ------
    stage : str
    verdict : str
        ``same`` (to the byte); ``drifted by … (file)``, where numbers differ a little, as on
        another kind of processor: the largest difference relative to the largest value, or the
        share of whole numbers that are others; ``different (file)``; ``other bytes (output)`` where
        there are no numbers to compare, or what the commit pins is not at hand; ``not in …``.

    Raises
    ------
    ArtifactError
        If there is no such commit, or it or the working directory has no ``dvc.lock``.
    """
    from dvc.exceptions import DvcException
    from dvc.fs.dvc import DVCFileSystem
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    try:
        with Repo(rev=rev) as repo:
            files = DVCFileSystem(repo=repo)
            then = _outputs(files.read_text("dvc.lock"))
            now = _outputs(Path("dvc.lock").read_text(encoding="utf-8"))
            for stage, outs in now.items():
                yield stage, _verdict(files, outs, then.get(stage), rev)
    except (DvcException, SCMError, OSError) as error:
        hint = "name a commit, branch or tag of this project that has a dvc.lock"
        raise ArtifactError(f"cannot compare with {rev}: {error}", hint) from None


def _outputs(lock: str) -> dict[str, dict[str, str]]:
    """Return the hash of each output of each stage that a ``dvc.lock`` names."""
    from ruamel.yaml import YAML

    stages = YAML(typ="safe").load(lock)["stages"]
    return {
        name: {out["path"]: out["md5"] for out in stage.get("outs", [])}
        for name, stage in stages.items()
    }


def _verdict(
    files: DVCFileSystem, now: Mapping[str, str], then: Mapping[str, str] | None, rev: str
) -> str:
    if then is None:
        return f"not in {rev}"
    changed = [path for path, md5 in now.items() if then.get(path) != md5]
    if not changed and len(now) == len(then):
        return "same"
    found = {name: size for path in changed for name, size in _differences(files, path)}
    if not found:
        return f"other bytes ({', '.join(changed) or 'fewer outputs'})"
    worst = max(found, key=lambda name: found[name])
    if found[worst] > DRIFT:
        return f"different ({worst})"
    return f"drifted by {found[worst]:.1e} ({worst})"


def _differences(files: DVCFileSystem, path: str) -> Iterator[tuple[str, float]]:
    """Yield name and difference of the files of an output that have numbers and differ."""
    from dvc_data.index import DataIndexDirError

    here = Path(path)
    names = sorted(one.as_posix() for one in here.rglob("*")) if here.is_dir() else [path]
    for name in names:
        if Path(name).suffix not in (".npy", ".json") or Path(name).name == MANIFEST:
            continue
        try:
            before = files.read_bytes(name)
        except (OSError, DataIndexDirError):  # not in the cache nor in a remote
            continue
        if (after := Path(name).read_bytes()) != before:
            yield name, _difference(_numbers(name, before), _numbers(name, after))


def _numbers(name: str, content: bytes) -> dict[str, np.ndarray]:
    if name.endswith(".npy"):
        return {"": np.load(io.BytesIO(content))}
    return {
        key: np.asarray(value)
        for key, value in _leaves(json.loads(content))
        if isinstance(value, (int, float))
    }


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict | list):
        yield prefix, tree
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _leaves(value, f"{prefix}.{key}")


def _difference(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> float:
    """Return the largest difference of numbers of the same names."""
    if set(before) != set(after):
        return OTHER
    return max((_distance(before[name], after[name]) for name in before), default=OTHER)


def _distance(one: np.ndarray, two: np.ndarray) -> float:
    if one.shape != two.shape or not (_real(one) and _real(two)):
        return 0.0 if np.array_equal(one, two) else OTHER
    if one.dtype.kind in "iub" and one.ndim:
        return float((one != two).mean())
    gap = np.abs(one.astype(np.float64) - two.astype(np.float64))
    return float(gap.max(initial=0) / max(np.abs(one).max(initial=0), 1e-12))


def _real(values: np.ndarray) -> bool:
    return values.dtype.kind in "fiub"
