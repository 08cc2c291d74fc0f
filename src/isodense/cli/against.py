"""Comparing what the pipeline made here with what a commit pins: same, drifted or different."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isodense.pipeline.artifact import MANIFEST
from isodense.pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from dvc.fs.dvc import DVCFileSystem

LOCK = "dvc.lock"
DRIFT = 1e-3  # largest difference that another kind of processor explains
OTHER = float("inf")  # difference of what has other rows, names or words

Outputs = dict[str, str]  # hashes by path
Numbers = dict[str, np.ndarray]


def against(rev: str) -> Iterator[tuple[str, str]]:
    """Compare each stage's outputs with those that a commit pins.

    Outputs are those in the working directory; one that is not there counts as ``dvc.lock`` has it.

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
        share of whole numbers that are others; ``different (file)``; ``other bytes (file)`` where
        there are no numbers to compare, or what the commit pins is not at hand; ``not in …`` and
        ``only in …``.

    Raises
    ------
    ArtifactError
        If there is no such commit, or it or the working directory has no ``dvc.lock``.
    """
    from dvc.exceptions import DvcException
    from dvc.fs.dvc import DVCFileSystem
    from dvc.repo import Repo
    from dvc.repo.brancher import switch
    from scmrepo.exceptions import SCMError

    now, changed = _here()
    try:
        with Repo() as repo, switch(repo, rev):  # unlike Repo(rev=…) it knows projects in folders
            files = _Then(DVCFileSystem(repo=repo))
            then = _outputs(files.read(LOCK).decode(), f"{LOCK} in {rev}")
            for stage, outs in now.items():
                made = {path: "changed" if path in changed else md5 for path, md5 in outs.items()}
                yield stage, _verdict(files, made, then.get(stage), rev)
            yield from ((stage, f"only in {rev}") for stage in then if stage not in now)
    except (DvcException, SCMError, OSError) as error:
        hint = f"name a commit, branch or tag of this project that has a {LOCK}"
        raise ArtifactError(f"cannot compare with {rev}: {error}", hint) from None


def _here() -> tuple[dict[str, Outputs], set[str]]:
    """Return the outputs that the working directory's lock names, and which were changed since."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        outputs, here = _outputs(Path(LOCK).read_text(encoding="utf-8"), LOCK), Path.cwd()
        with Repo() as repo:
            changed = {
                Path(out.fs_path).relative_to(here).as_posix()
                for out in repo.index.outs
                if Path(out.fs_path).is_relative_to(here)
                and "modified" in out.workspace_status().values()
            }
    except (DvcException, OSError) as error:
        hint = "run it in the project's folder, after `dvc repro`"
        raise ArtifactError(f"there is nothing to compare: {error}", hint) from None
    return outputs, changed


class _Then:
    """The files of a commit, named from the working directory."""

    def __init__(self, files: DVCFileSystem) -> None:
        self._files = files

    def read(self, name: str) -> bytes:
        content: bytes = self._files.read_bytes(name)
        return content

    def md5(self, name: str) -> str | None:
        """Return the hash of a file, which is not read where DVC knows it; None if it is away."""
        try:
            known: str | None = self._files.info(name).get("md5")
            return known or _md5(self.read(name))
        except OSError:
            return None

    def under(self, path: str) -> set[str] | None:
        """Return the files of an output, None where the list of them is not at hand."""
        from dvc_data.index import DataIndexDirError

        try:
            found = list(self._files.find(path))
        except (OSError, DataIndexDirError):
            return None
        return {self._files.relpath(name) for name in found} or None


def _outputs(lock: str, what: str) -> dict[str, Outputs]:
    """Return the hash of each output of each stage that a ``dvc.lock`` names."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return {
            name: {out["path"]: out["md5"] for out in stage.get("outs", [])}
            for name, stage in YAML(typ="safe").load(lock)["stages"].items()
        }
    except (YAMLError, KeyError, TypeError, AttributeError):
        hint = f"`git checkout {LOCK}`, or `dvc repro`, makes a whole one"
        raise ArtifactError(f"{what} is no list of stages with outputs", hint) from None


def _verdict(files: _Then, now: Outputs, then: Outputs | None, rev: str) -> str:
    if then is None:
        return f"not in {rev}"
    changed = sorted(path for path in now | then if now.get(path) != then.get(path))
    if not changed:
        return "same"
    found = {name: size for path in changed for name, size in _differences(files, path)}
    sizes = {name: size for name, size in found.items() if size is not None}
    worst = max(sizes, key=lambda name: sizes[name], default="")
    if worst and sizes[worst] > DRIFT:
        return f"different ({worst})"
    if len(sizes) < len(found) or not found:
        return f"other bytes ({', '.join(sorted(found.keys() - sizes) or changed)})"
    return f"drifted by {sizes[worst]:.1e} ({worst})"


def _differences(files: _Then, path: str) -> Iterator[tuple[str, float | None]]:
    """Yield the files of an output that differ, by how much where there are numbers to compare.

    A manifest differs with any of its files, and is left out where one does.
    """
    here = Path(path)
    now = {one.as_posix() for one in here.rglob("*") if one.is_file()} if here.is_dir() else {path}
    then = files.under(path)
    if then is None or not here.exists():
        yield path, None
        return
    yield from ((name, OTHER) for name in now ^ then)
    others = [name for name in sorted(now & then) if _md5(Path(name)) != files.md5(name)]
    for name in [one for one in others if Path(one).name != MANIFEST] or others:
        yield name, _difference(files, name)


def _md5(content: bytes | Path) -> str:
    """Return the hash by which DVC knows a file."""
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as stream:
        return hashlib.file_digest(stream, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def _difference(files: _Then, name: str) -> float | None:
    """Return the largest difference of the numbers in a file, None where they are not at hand."""
    if Path(name).suffix not in (".npy", ".json") or Path(name).name == MANIFEST:
        return None
    try:
        before = files.read(name)
    except OSError:  # not in the cache nor in a remote
        return None
    try:
        one, two = (_parts(name, content) for content in (before, Path(name).read_bytes()))
    except (ValueError, EOFError):  # one of them is broken
        return OTHER
    if one[1] != two[1] or one[0].keys() != two[0].keys():
        return OTHER
    return max((_distance(one[0][key], two[0][key]) for key in one[0]), default=0.0)


def _parts(name: str, content: bytes) -> tuple[Numbers, dict[str, Any]]:
    """Return the numbers of a file, and all else in it."""
    if name.endswith(".npy"):
        return {"": np.load(io.BytesIO(content))}, {}
    leaves = dict(_leaves(json.loads(content)))
    numbers = {key: one for key, one in leaves.items() if isinstance(one, (int, float))}
    words = {key: one for key, one in leaves.items() if key not in numbers}
    return {key: np.asarray(one) for key, one in numbers.items()}, words


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict | list):
        yield prefix, tree
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _leaves(value, f"{prefix}.{key}")


def _distance(one: np.ndarray, two: np.ndarray) -> float:
    if one.shape != two.shape or (one.ndim and one.dtype != two.dtype):
        return OTHER
    if not (_real(one) and _real(two)) or not one.size:
        return 0.0 if np.array_equal(one, two) else OTHER
    if one.dtype.kind in "iub" and one.ndim:
        return float((one != two).mean())
    one, two = one.astype(np.float64), two.astype(np.float64)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    if not np.isfinite(one[~same]).all() or not np.isfinite(two[~same]).all():
        return OTHER
    gap = np.abs(one[~same] - two[~same])
    largest = np.abs(one[np.isfinite(one)]).max(initial=1e-12)
    return float(gap.max(initial=0) / largest)


def _real(values: np.ndarray) -> bool:
    return values.dtype.kind in "fiub"
