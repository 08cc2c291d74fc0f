"""Reading a folder of a model: what is loaded is what its manifest describes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from isodense.pipeline.artifact import MANIFEST, checked
from isodense.pipeline.errors import ArtifactError

LOADED = {".json", ".safetensors", ".txt", ".model", ".jinja"}  # suffixes of files that are read
KINDS = ("models", "train")


def require_undamaged(folder: str | Path, weights: bool = True) -> None:
    """Compare the files of a model with its manifest; a folder without one of ours is any model's.

    An adapter beside the merged weights is left out: isodense does not load it.

    Parameters
    ----------
    folder : str or Path
        The model's folder.
    weights : bool
        Whether the weights are to be loaded, or the tokenizer and the configuration only.

    Raises
    ------
    ArtifactError
        Naming the first file that is missing or damaged.
    """
    try:
        manifest = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(manifest, dict) and manifest.get("kind") in KINDS:
        check_files(folder, manifest, weights=weights)
        _refuse_others(Path(folder), manifest)


def _refuse_others(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise if a file is there that transformers would load and the manifest does not have."""
    for path in sorted(folder.iterdir()):
        known = path.name in manifest["files"] or path.name == MANIFEST
        if path.suffix in LOADED and path.is_file() and not known:
            message = f"{path} is not part of the artifact {folder}, and would be loaded"
            raise ArtifactError(message, f"remove it, or run `dvc checkout --force {folder}`")


def parameter_count(folder: str | Path) -> int:
    """Return the number of parameters of a model, 0 if there are no weights.

    Raises
    ------
    ArtifactError
        If a weights file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    count = 0
    for path in Path(folder).glob("*.safetensors"):
        try:
            with safe_open(path, framework="numpy") as tensors:
                for name in tensors.keys():
                    count += math.prod(tensors.get_slice(name).get_shape())
        except SafetensorError as error:
            message = f"{path} cannot be read: {error}"
            raise ArtifactError(message, "run `dvc checkout --force models`") from None
    return count


def check_files(
    folder: str | Path, manifest: dict[str, Any], under: str = "", weights: bool = True
) -> None:
    """Compare the files that a model is loaded from, those of the subfolder `under`."""
    for name in manifest["files"]:
        inside = Path(name)
        loaded = inside.suffix in LOADED and inside.parts[0] != "adapter"
        wanted = weights or inside.suffix != ".safetensors"
        if loaded and wanted and (not under or inside.parts[0] == under):
            checked(folder, manifest, name)
