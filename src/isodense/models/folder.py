"""Weights in a local folder, a ``.gguf`` file, or nanochat's base directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isodense.models.params import ModelParams
from isodense.pipeline.errors import ModelError


@contextmanager
def fetched(model: ModelParams, cache: Path) -> Iterator[Path]:
    """Give the path of a local model; nothing is fetched.

    Parameters
    ----------
    model : ModelParams
        Where the model is.
    cache : Path
        Not used; every source accepts it.

    Raises
    ------
    ModelError
        If the path does not exist.
    """
    inside = "" if model.source == "nanochat" else model.path or ""
    path = Path(model.name, inside).expanduser()
    if not path.exists():
        raise ModelError(f"{path}: no such folder or file", "correct models.*.name and .path")
    yield path
