"""Section ``models`` of ``params.yaml``."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import model_validator

from isodense.pipeline.params import CrossFieldError, Params

CHECKPOINT = re.compile(r"(base|mid|sft|rl)(/[^/]+(/[0-9]+)?)?")


class ModelParams(Params):
    """One model.

    Attributes
    ----------
    source : {"wheel", "hub", "folder", "nanochat"}
        A PyPI wheel that carries weights, a Hugging Face Hub repository, a local folder, or
        nanochat's base directory.
    name : str
        The package, the repository id, or the path of the folder or directory.
    version : str or None
        The wheel's version or the repository's revision; null otherwise.
    sha256 : str or None
        The wheel's SHA-256; null otherwise.
    path : str or None
        The model's folder or ``.gguf`` file inside the source; null for all of it. Of nanochat,
        the checkpoint as ``source``, ``source/tag`` or ``source/tag/step``: ``sft``, ``mid/d20``,
        ``base/d20/21400``.
    """

    source: Literal["wheel", "hub", "folder", "nanochat"]
    name: str
    version: str | None
    sha256: str | None
    path: str | None

    @model_validator(mode="after")
    def _keys_are_the_sources(self) -> Self:
        """Refuse a source without a key that it needs, or with one that means nothing for it."""
        needed = {"wheel": {"version", "sha256"}, "hub": {"version"}}
        wanted = needed.get(self.source, set())
        faults = []
        if self.source == "nanochat" and not CHECKPOINT.fullmatch(self.path or ""):
            faults.append("source 'nanochat' needs path: base, mid, sft or rl, then /tag and /step")
        for key in ("version", "sha256"):
            if key in wanted and not getattr(self, key):
                faults.append(f"source {self.source!r} needs {key}")
            if key not in wanted and getattr(self, key) is not None:
                faults.append(f"{key} has no meaning for source {self.source!r}; set it to null")
        if faults:
            raise CrossFieldError(faults)
        return self


class ModelsParams(Params):
    """Section ``models`` of ``params.yaml``."""

    encoder: ModelParams
    policy: ModelParams
