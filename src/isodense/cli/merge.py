"""Merging embeddings artifacts by linking their shards: no row is computed again.

Large sets are embedded in parts, on several machines or on several days. The merged artifact holds
the shards of the first part, then those of the second, and so on. Of duplicate prompts the first
row is kept, so only a shard that repeats a prompt of an earlier part is written again; all others
are hard-linked. Merging is appending: a transform that was fitted on the first part stays as it is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isodense.embeddings.postprocess import FILE as TRANSFORM
from isodense.embeddings.reader import HINT, ids_name, iter_shards, read_shard_ids, shard_name
from isodense.pipeline.artifact import (
    content_sha256,
    ids_sha256,
    publishing,
    read_manifest,
    require_same_ids,
    verify_files,
    write_manifest,
)
from isodense.pipeline.errors import ArtifactError
from isodense.prompts.deduplicate import write
from isodense.prompts.reader import load_prompts
from isodense.prompts.split import split_again

ABSENT = "(absent)"


@dataclass(frozen=True)
class _Part:
    """An embeddings artifact, verified, and the prompt ids of each shard."""

    folder: Path
    manifest: dict[str, Any]
    ids: list[list[str]]


def merge(parts: Sequence[Path], out: Path) -> dict[str, Any]:
    """Concatenate the artifacts `parts`, in order.

    Parameters
    ----------
    parts : sequence of Path
        Two or more embeddings artifacts; or data folders, each with the artifacts ``prompts`` and
        ``embeddings``, both of which are merged.
    out : Path
        The new folder, of the same kind as the parts.

    Returns
    -------
    dict
        ``rows`` and ``shards`` of the merged embeddings, and ``collapsed``, the number of rows
        left out as duplicates of a prompt in an earlier part.

    Raises
    ------
    ArtifactError
        If `out` exists, a part is incomplete or damaged, or the parts differ in settings that
        change the vectors; the message lists all settings that differ.
    """
    _check_paths(parts, out)
    if not (parts[0] / "embeddings").is_dir():
        embeddings = _checked_parts(parts, [{}] * len(parts))
        with publishing(out) as folder:
            return _write_embeddings(embeddings, folder, prompts_sha256=None)
    prompts = [_checked(part / "prompts", "prompts") for part in parts]
    embeddings = _checked_parts([part / "embeddings" for part in parts], prompts)
    for found, part in zip(prompts, embeddings, strict=True):
        require_same_ids(found["ids_sha256"], part.manifest, f"the vectors in {part.folder}")
    with publishing(out) as folder:
        folders = [part / "prompts" for part in parts]
        merged = _write_prompts(folders, prompts[0]["params"], folder / "prompts")
        (folder / "embeddings").mkdir()
        return _write_embeddings(embeddings, folder / "embeddings", content_sha256(merged))


def _check_paths(parts: Sequence[Path], out: Path) -> None:
    """Raise if the folders cannot be merged into `out`, before anything is read."""
    folders = [part.resolve() for part in parts]
    if len(set(folders)) < max(2, len(folders)):
        raise ArtifactError("merge takes two or more different folders", "name each part once")
    for folder in folders:
        if folder == out.resolve():
            raise ArtifactError(f"{out} would overwrite the part {folder}", "name a new folder")
    if out.exists():
        raise ArtifactError(f"{out} exists already", "name a new folder, or remove this one")
    data = [part for part in parts if (part / "embeddings").is_dir()]
    other = [part for part in parts if part not in data]
    if data and other:
        message = f"{data[0]} holds an artifact named embeddings, {other[0]} does not"
        raise ArtifactError(message, "name data folders only, or embeddings artifacts only")


def _checked(folder: Path, kind: str) -> dict[str, Any]:
    manifest = read_manifest(folder, kind)
    verify_files(folder, manifest)
    return manifest


def _checked_parts(folders: Sequence[Path], prompts: Sequence[dict[str, Any]]) -> list[_Part]:
    """Return the embeddings artifacts, after checking that their settings are the same."""
    manifests = [_checked(folder, "embeddings") for folder in folders]
    _require_same_settings(
        folders, [_settings(*pair) for pair in zip(manifests, prompts, strict=True)]
    )
    found = zip(folders, manifests, strict=True)
    return [_Part(folder, manifest, _shard_ids(folder, manifest)) for folder, manifest in found]


def _settings(embeddings: dict[str, Any], prompts: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in which two parts must agree, by the names used in an error."""
    settings = {name: embeddings[name] for name in ("dim", "dtype", "device")}
    settings |= {f"params.{name}": value for name, value in embeddings["params"].items()}
    settings["inputs.encoder"] = embeddings["inputs"]["encoder"]
    fitted = embeddings.get("transform") or {}
    settings |= {f"transform.{name}": fitted.get(name) for name in ("method", "components")}
    params = prompts.get("params", {})
    return settings | {f"prompts.params.{name}": value for name, value in params.items()}


def _require_same_settings(folders: Sequence[Path], settings: list[dict[str, Any]]) -> None:
    first, lines = settings[0], []
    for folder, other in zip(folders[1:], settings[1:], strict=True):
        for name in first | other:
            one, two = first.get(name, ABSENT), other.get(name, ABSENT)
            if one != two:
                lines.append(f"\n  {name}: {one} in {folders[0]}, {two} in {folder}")
    if lines:
        message = f"the parts were not made alike:{''.join(lines)}"
        raise ArtifactError(message, "make one of them again with the settings of the other")


def _shard_ids(folder: Path, manifest: dict[str, Any]) -> list[list[str]]:
    """Return the prompt ids of each shard, checked against the manifest."""
    ids = read_shard_ids(folder, manifest)
    rows = [shard.shape[0] for shard in iter_shards(folder, manifest)]
    whole = ids_sha256(identifier for shard in ids for identifier in shard)
    if [len(shard) for shard in ids] != rows or whole != manifest["ids_sha256"]:
        raise ArtifactError(f"the ids files of {folder} are not those of its manifest", HINT)
    return ids


def _write_embeddings(parts: list[_Part], out: Path, prompts_sha256: str | None) -> dict[str, Any]:
    first = parts[0].manifest
    shards, ids = _write_shards(parts, out)
    if TRANSFORM in first["files"]:
        _link(parts[0].folder / TRANSFORM, out / TRANSFORM)
    write_manifest(
        out,
        "embeddings",
        rows=len(ids),
        dim=first["dim"],
        dtype=first["dtype"],
        rows_per_shard=max(part.manifest["rows_per_shard"] for part in parts),
        ids_sha256=ids_sha256(ids),
        device=first["device"],
        params=first["params"],
        transform=first.get("transform"),
        inputs={"encoder": first["inputs"]["encoder"], "prompts": prompts_sha256},
    )
    rows = sum(part.manifest["rows"] for part in parts)
    return {"rows": len(ids), "shards": shards, "collapsed": rows - len(ids)}


def _write_shards(parts: list[_Part], out: Path) -> tuple[int, list[str]]:
    """Link or write the shards of all parts; return the number of shards and all prompt ids."""
    number = 0
    seen: dict[str, None] = {}
    for part in parts:
        for source, shard in enumerate(iter_shards(part.folder, part.manifest)):
            ids, keep = part.ids[source], []
            for row, identifier in enumerate(ids):
                if identifier not in seen:
                    seen[identifier] = None
                    keep.append(row)
            names = shard_name(number), ids_name(number)
            if keep and len(keep) == len(ids):
                _link(part.folder / shard_name(source), out / names[0])
                _link(part.folder / ids_name(source), out / names[1])
            elif keep:
                np.save(out / names[0], shard[keep], allow_pickle=False)
                kept = "\n".join(ids[row] for row in keep)
                (out / names[1]).write_text(kept, encoding="ascii")
            number += bool(keep)
    return number, list(seen)


def _write_prompts(folders: list[Path], params: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write the prompts of `folders` as one artifact and return its manifest.

    Which of them are held out is decided anew, as for a set that has grown: each part knew only its
    own near-duplicates. The prompts of the first part stay as they are, but for those that the data
    of another part holds out.
    """
    rows: dict[str, dict[str, Any]] = {}
    kept = read_manifest(folders[0], "prompts")["rows"]
    for row in (row for folder in folders for row in load_prompts(folder).rows):
        first = rows.setdefault(row["id"], row)
        if first is not row:
            first["count"] += row["count"]
            for source, count in row["sources"].items():
                first["sources"][source] = first["sources"].get(source, 0) + count
            for name in ("label", "heldout"):
                if row.get(name):
                    first.setdefault(name, row[name])
    out.mkdir()
    return write(split_again(rows, params, kept), params, None, out)


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, not a symbolic link to it; copy it where hard links are impossible."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
