"""Weights from a Hugging Face Hub repository at a pinned revision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isodense.models.params import ModelParams
from isodense.pipeline.hub_errors import clear_errors

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
HINT = (
    "check the connection, HF_ENDPOINT (a mirror) and HF_HUB_OFFLINE, then run again: finished "
    "files are kept; or fetch the model on another machine and use source: folder"
)


@contextmanager
def fetched(model: ModelParams, cache: Path) -> Iterator[Path]:
    """Give the path of a snapshot of the repository, in the cache of ``huggingface_hub``.

    Parameters
    ----------
    model : ModelParams
        Repository, revision and path in the repository.
    cache : Path
        Not used; every source accepts it.

    Raises
    ------
    DataError
        If the repository or revision cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    gguf = [model.path] if model.path and model.path.endswith(".gguf") else None
    with clear_errors(model.name, f"revision {model.version!r}", HINT):
        folder = snapshot_download(
            model.name, revision=model.version, allow_patterns=gguf or PATTERNS
        )
    yield Path(folder, model.path or "")
