"""Artifact folders: published whole, described by a manifest, tied to their prompts by hash.

A stage writes into a folder beside its output, ``manifest.json`` last, which then takes the
output's place: a manifest that exists describes a complete artifact. Readers compare each file that
they read with its SHA-256 (:func:`checked`), once per process. Manifests hold no times, hosts or
paths, so the same inputs give the same bytes. Row ``i`` of every array belongs to prompt ``i``; the
manifest of each carries ``ids_sha256``, the SHA-256 of the newline-joined prompt ids, and whoever
loads two artifacts compares them with :func:`require_same_ids`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from isodense.pipeline.errors import ArtifactError, FormatError
from isodense.pipeline.storage import beside, require_place, staged, storing, sync

FORMAT_VERSION = 1
VERSIONS = {
    "density": 2,
    "download": 2,
    "prompts": 2,
}  # format versions of the kinds that have changed
RENAMED = {"pairs": "examples"}  # inputs in manifests that are not named as their folder is
WEIGHED = ("prompts", "embeddings", "neighbors", "map", "density")  # what weigh keeps, too
MANIFEST = "manifest.json"
QUIET = 2_000_000_000  # nanoseconds: what changed since may change again with the same time

_hashed: dict[tuple[int, ...], str] = {}  # SHA-256 of files that this process has read


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as hex digits."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def ids_sha256(ids: Iterable[str]) -> str:
    """Return the SHA-256 of the newline-joined ids as hex digits."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


@contextmanager
def publishing(out: str | Path) -> Iterator[Path]:
    """Give a staging folder that replaces `out` when the block ends without an error.

    Parameters
    ----------
    out : str or Path
        The artifact's folder.

    Yields
    ------
    Path
        An empty folder in ``<out>.<uuid>.tmp``: runs side by side may write the same artifact.

    Raises
    ------
    StorageError
        If the disk is full or may not be written.
    """
    with storing(Path(out)), staged(Path(out)) as staging:
        yield staging


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name for a file that becomes `path` when the block ends without an error.

    It is a name of its own, so runs side by side may write the same file.
    """
    path = Path(path)
    require_place(path)
    with storing(path.parent), beside(path) as folder:
        staging = folder / path.name
        yield staging
        sync(staging)
        staging.replace(path)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with replacing(path) as staging:
        staging.write_text(_json(value), encoding="utf-8")


def write_manifest(folder: str | Path, kind: str, **fields: Any) -> dict[str, Any]:
    """Describe all files of `folder` and write its manifest, the last file of an artifact.

    Parameters
    ----------
    folder : str or Path
        A folder that holds the artifact's finished files.
    kind : str
        What the artifact is (the stage's name).
    **fields
        What else the manifest records: ``rows``, ``ids_sha256``, ``params``, ``inputs``, …

    Returns
    -------
    dict
        The manifest.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {"format_version": _version(kind), "kind": kind, **fields}
    manifest["files"] = {
        path.relative_to(folder).as_posix(): _describe(path)
        for path in files
        if path != folder / MANIFEST
    }
    (folder / MANIFEST).write_text(_json(manifest), encoding="utf-8")
    return manifest


def read_manifest(folder: str | Path, kind: str) -> dict[str, Any]:
    """Read the manifest of `folder` and check that it is a complete artifact of `kind`.

    Files are looked at, not read: whoever reads one does so through :func:`checked`.

    Raises
    ------
    FormatError
        If it is of another format version.
    ArtifactError
        If it is missing or of another kind, or if a file is absent or of another size.
    """
    folder = Path(folder)
    hint = f"run `dvc repro {kind}`, or `dvc pull {kind}` if a teammate has pushed it"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        hint += _without_project(folder, kind)
        raise ArtifactError(f"{folder} {_absent(folder)}", hint) from None
    except ValueError as error:
        raise ArtifactError(f"{folder / MANIFEST} is not JSON: {error}", hint) from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ArtifactError(f"{folder / MANIFEST} is not a manifest", hint)
    if manifest.get("kind") != kind:
        raise ArtifactError(f"{folder} holds {manifest.get('kind')!r}, not {kind!r}", hint)
    if manifest.get("format_version") != _version(kind):
        raise _unread(folder, kind, manifest.get("format_version"))
    for name, entry in manifest["files"].items():
        _check_file(folder, name, entry.get("bytes"), hint)
    return manifest


def _absent(folder: Path) -> str:
    """Return what is wrong with a folder that has no manifest."""
    if folder.is_file():
        return "is a file, and weights are read from a folder such as data/density"
    return f"has no {MANIFEST}: it is not complete" if folder.is_dir() else "is not there"


def _without_project(folder: Path, kind: str) -> str:
    """Return what else to do about a missing artifact where there is no project to run."""
    if in_project(folder):
        return ""
    hint = "; there is no project here (no dvc.yaml): do it in the folder of one"
    if kind in WEIGHED:
        hint += ", or point at the folder that `isodense weigh --work DIR` keeps: --data DIR, in "
        hint += f"Python 'DIR/{kind}'"
    return hint


def in_project(folder: Path) -> bool:
    """Return whether DVC has a project here, or where an artifact such as data/density is."""
    places = (Path.cwd(), folder.absolute().parent.parent)
    return any((place / "dvc.yaml").is_file() for place in places)


def checked(folder: str | Path, manifest: dict[str, Any], name: str) -> Path:
    """Return the path of a file of an artifact, having compared its SHA-256 with the manifest.

    A file is hashed once per process, and again if it has changed since (by inode, size and times).

    Parameters
    ----------
    folder : str or Path
        The artifact's folder.
    manifest : dict
        Its manifest.
    name : str
        The file, as the manifest names it.

    Raises
    ------
    ArtifactError
        If the manifest has no such file, or its content is another.
    """
    path, entry = Path(folder) / name, manifest["files"].get(name)
    if entry is None:
        raise ArtifactError(f"{path} is not in the artifact's {MANIFEST}", _restore(folder))
    try:
        found = _sha256_once(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing", _restore(folder)) from None
    _compare(found, path, entry, folder)
    return path


def read_checked(folder: str | Path, kind: str) -> dict[str, Any]:
    """Do as :func:`read_manifest` does, and compare all files as :func:`checked` does."""
    manifest = read_manifest(folder, kind)
    for name in manifest["files"]:
        checked(folder, manifest, name)
    return manifest


def verify_files(folder: str | Path, manifest: dict[str, Any]) -> None:
    """Compare the SHA-256 of every file of an artifact with its manifest, reading each anew.

    Raises
    ------
    ArtifactError
        Naming the first file that differs.
    """
    for name, entry in manifest["files"].items():
        path = Path(folder) / name
        _compare(sha256_file(path), path, entry, folder)


def content_sha256(manifest: dict[str, Any]) -> str:
    """Return the hash by which other artifacts know this one, as hex digits.

    It covers the whole manifest: a reward function has no files, only a name and the hash of its
    source. A frozen model is its files alone, wherever they came from.
    """
    content = manifest["files"] if manifest["kind"] == "models" else manifest
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def require_same_ids(
    expected: str, manifest: dict[str, Any], what: str, key: str = "ids_sha256"
) -> None:
    """Raise unless an artifact was made for the prompts whose hash, under `key`, is `expected`.

    Raises
    ------
    ArtifactError
        Naming `what` and both hashes.
    """
    found = manifest.get(key)
    if found != expected:
        message = f"{what} belong to other prompts ({key} {found!s:.12}, not {expected:.12})"
        raise ArtifactError(message, f"run `dvc repro {manifest['kind']}`")


def made_from_others(manifests: Mapping[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the artifacts that were made from another version of one of the others.

    Parameters
    ----------
    manifests : mapping of str to dict
        By the name of the artifact's folder.

    Returns
    -------
    list of tuple of str
        Names of the artifact and of its input.
    """
    return [
        (name, RENAMED.get(source, source))
        for name, manifest in manifests.items()
        for source, digest in manifest.get("inputs", {}).items()
        if (found := manifests.get(RENAMED.get(source, source))) is not None
        and content_sha256(found) != digest
    ]


def load_array(path: str | Path, mmap: bool = False) -> np.ndarray:
    """Load one ``.npy`` file, never unpickling.

    Raises
    ------
    ArtifactError
        If the file is missing, not an array, or holds pickled objects.
    """
    try:
        return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file", "run the stage that writes it") from None
    except (ValueError, EOFError, OSError) as error:
        raise ArtifactError(f"{path} is not a plain .npy array: {error}") from None


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _version(kind: str) -> int:
    return VERSIONS.get(kind, FORMAT_VERSION)


def _unread(folder: Path, kind: str, version: Any) -> FormatError:
    message = f"{folder} has format version {version!r}; this code reads {_version(kind)}"
    newer = isinstance(version, int) and version > _version(kind)
    again = f"run `dvc repro --force --single-item {kind}`"
    hint = "upgrade isodense: a newer one has written it" if newer else again
    return FormatError(message, newer, hint)


def _describe(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    if path.suffix == ".npy":
        array = load_array(path, mmap=True)
        entry |= {"dtype": str(array.dtype), "shape": list(array.shape)}
    return entry


def _sha256_once(path: Path) -> str:
    """Return the SHA-256 of a file, from memory if this process has read it and it is the same."""
    state = path.stat()
    key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if key in _hashed:
        return _hashed[key]
    began = time.time_ns()
    found = sha256_file(path)
    if began - max(state.st_mtime_ns, state.st_ctime_ns) > QUIET:
        _hashed[key] = found
    return found


def _compare(found: str, path: Path, entry: dict[str, Any], folder: str | Path) -> None:
    if found != entry.get("sha256"):
        message = f"{path} is damaged: its SHA-256 is not the manifest's"
        raise ArtifactError(message, _restore(folder))


def _restore(folder: str | Path) -> str:
    return f"run `dvc checkout --force {folder}` or the stage again"


def _check_file(folder: Path, name: str, size: int | None, hint: str) -> None:
    path = folder / name
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise ArtifactError(f"the manifest of {folder} names a file outside it: {name!r}")
    if not path.is_file():
        raise ArtifactError(f"{path} is missing", hint)
    if path.stat().st_size != size:
        message = f"{path} has {path.stat().st_size} bytes, not {size}"
        raise ArtifactError(message, _restore(folder))
