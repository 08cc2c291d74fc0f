"""Weights from a Hugging Face Hub repository at a pinned revision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from isodense.errors import ModelError

if TYPE_CHECKING:
    from isodense.models.publish import ModelParams

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


@contextmanager
def fetched(model: ModelParams, cache: Path) -> Iterator[Path]:
    """Give the path of a snapshot of the repository in the Hub library's own cache.

    Raises
    ------
    ModelError
        If the repository or revision cannot be fetched.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    gguf = [model.path] if model.path and model.path.endswith(".gguf") else None
    try:
        folder = snapshot_download(
            model.name, revision=model.version, allow_patterns=gguf or PATTERNS
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        remedy = "check the name, the revision, HF_ENDPOINT and HF_TOKEN, or use source: folder"
        message = f"Hub repository {model.name}@{model.version}: {reason}"
        raise ModelError(message, remedy) from None
    yield Path(folder, model.path or "")
