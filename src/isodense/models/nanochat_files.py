"""Finding a checkpoint of nanochat and its tokenizer in a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isodense.pipeline.errors import ModelError

FOLDERS = {"base": "base", "mid": "mid", "sft": "chatsft", "rl": "chatrl"}  # …_checkpoints
WEIGHTS = re.compile(r"model_([0-9]+)\.pt")
DEPTH = re.compile(r"d([0-9]+)(\D.*)?")  # of a tag: d20, d20_x

Steps = dict[int, Path]


def find_weights(base: Path, source: str, tag: str | None, step: int | None) -> Path:
    """Return the path of a checkpoint's weights.

    A folder that has weights itself, and no ``…_checkpoints``, is taken for those of `source`.

    Parameters
    ----------
    base : Path
        nanochat's base directory, or a folder with everything in one place.
    source : {"base", "mid", "sft", "rl"}
    tag : str, optional
        The model's folder; the deepest by default. Of a folder that has weights itself, its name.
    step : int, optional
        The last by default.

    Raises
    ------
    ModelError
        If there is no such checkpoint, or several models are the deepest; the hint lists those
        that are there.
    """
    found = {name: _tags(base / f"{stem}_checkpoints") for name, stem in FOLDERS.items()}
    sources = {name: tags for name, tags in found.items() if tags}
    if not sources and source in FOLDERS and (steps := _steps(base)):
        if tag not in (None, base.name):
            message = f"{base} has its checkpoints in the folder itself, and no tag {tag!r}"
            raise ModelError(message, f"leave the tag out, or give {base.name!r}")
        return _pick(steps, max(steps) if step is None else step, base, "step")
    folder = base / f"{FOLDERS.get(source)}_checkpoints"
    tags = _pick(sources, source, base, "source", _elsewhere(base) if not sources else "")
    steps = _pick(tags, tag or _deepest(tags, folder), folder, "tag")
    return _pick(steps, max(steps) if step is None else step, steps[max(steps)].parent, "step")


def find_tokenizer(base: Path) -> Path:
    """Return the path of the tokenizer: nanochat's, or that of a folder with all in one place."""
    usual, flat = base / "tokenizer" / "tokenizer.pkl", base / "tokenizer.pkl"
    return flat if flat.exists() and not usual.exists() else usual


def _deepest(tags: Mapping[str, Any], folder: Path) -> str:
    """Return the tag of the deepest model, ``d<N>`` itself before others of that depth."""
    depths = {tag: int(match[1]) for tag in tags if (match := DEPTH.fullmatch(tag))}
    if not depths:
        return "d<N>"
    most = max(depths.values())
    deepest = sorted(tag for tag, depth in depths.items() if depth == most)
    if len(deepest) == 1 or f"d{most}" in deepest:
        return deepest[0] if len(deepest) == 1 else f"d{most}"
    message = f"{folder} has {len(deepest)} models of depth {most}: {', '.join(deepest)}"
    raise ModelError(message, f"name the tag, as in {deepest[0]!r}")


def _pick(existing: dict[Any, Any], wanted: Any, folder: Path, what: str, more: str = "") -> Any:
    """Return the value of `wanted`, or raise a `ModelError` that lists the keys."""
    if wanted not in existing:
        hint = f"it has: {', '.join(map(str, sorted(existing))) or 'none'}{more}"
        raise ModelError(f"{folder} has no nanochat checkpoint of {what} {wanted!r}", hint)
    return existing[wanted]


def _tags(folder: Path) -> dict[str, Steps]:
    """Return the paths of all checkpoints in a folder, by tag and step."""
    found = {path.name: _steps(path) for path in folder.glob("*") if path.is_dir()}
    return {tag: steps for tag, steps in found.items() if steps}


def _steps(folder: Path) -> Steps:
    """Return the paths of the checkpoints of one model, by step."""
    paths = [(WEIGHTS.fullmatch(path.name), path) for path in folder.glob("model_*.pt")]
    return {int(match[1]): path for match, path in paths if match}


def _elsewhere(base: Path) -> str:
    """Return where there are checkpoints that are not where nanochat puts them, for a hint."""
    places = {path.parent for depth in ("*", "*/*") for path in base.glob(f"{depth}/model_*.pt")}
    if not places:
        return ""
    named = ", ".join(str(place.relative_to(base)) for place in sorted(places)[:8])
    usual = ", ".join(f"{stem}_checkpoints" for stem in FOLDERS.values())
    return (
        f" in {usual}; there are some in {named}: give such a folder, "
        "with tokenizer.pkl beside the weights"
    )
