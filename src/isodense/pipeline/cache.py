"""Keeping what is costly to make outside all outputs, under a name of all that it depends on.

DVC deletes a stage's outputs before it runs and cannot know that a density experiment leaves a
uniformly sampled reward, or the answers of the untrained policy, as they are. What is kept here
spares such runs minutes. Folders that nobody has used for a week are deleted.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.artifact import content_sha256, read_manifest, sha256_file

FORMAT_VERSION = 1
KEPT = 7 * 86_400  # seconds for which a folder is kept after its last use
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate")
CODE = (
    "models/generation",
    "train/grpo",
    "models/policy",
    "models/backbone",
    "reward/classifier",
    "reward/trl",
    "reward/load",
)


def folder_name(policy: Path, settings: dict[str, Any], numbers: Iterable[Sequence[int]]) -> str:
    """Return the name of what depends on a policy, settings and tokens.

    Parameters
    ----------
    policy : Path
        The policy's artifact.
    settings : dict
        Of JSON values.
    numbers : iterable of sequence of int
        Tokens and the like; their lengths enter as well.

    Returns
    -------
    str
        40 hex digits, also of the format here, of the code that computes what is kept, and of the
        libraries' versions.
    """
    recipe = {
        "format_version": FORMAT_VERSION,
        "code": [sha256_file(Path(__file__).parents[1] / f"{name}.py") for name in CODE],
        "versions": [importlib.metadata.version(library) for library in LIBRARIES],
        "policy": content_sha256(read_manifest(policy, "models")),
        **settings,
    }
    found = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    for values in numbers:
        found.update(np.array([len(values), *values], dtype="<u4").tobytes())
    return found.hexdigest()[:40]


def mark_used(folder: Path) -> None:
    """Note that `folder` was used, and delete those beside it that nobody uses."""
    folder.touch()
    for other in folder.parent.iterdir():
        with suppress(FileNotFoundError):  # another run has deleted it
            if time.time() - other.stat().st_mtime > KEPT:
                shutil.rmtree(other, ignore_errors=True)
