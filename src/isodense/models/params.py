"""Section ``models`` of ``params.yaml``."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, Self

from pydantic import model_validator

from isodense.pipeline.params import CrossFieldError, Params

CHECKPOINT = re.compile(r"(base|mid|sft|rl)(/[^/]+(/[0-9]+)?)?")


class ModelParams(Params):
    """One model.

    Attributes
    ----------
    source : {"wheel", "hub", "folder", "nanochat", "skills"}
        A PyPI wheel that carries weights, a Hugging Face Hub repository, a local folder,
        nanochat's base directory, or a small policy that the stage makes
        (:mod:`isodense.models.skills`).
    name : str
        The package, the repository id, or the path of the folder or directory; of source
        ``skills``, ``even`` or ``lopsided``.
    version : str or None
        The wheel's version, the repository's revision, or the seed of source ``skills``; null
        otherwise.
    sha256 : str or None
        The wheel's SHA-256; null otherwise.
    path : str or None
        The model's folder or ``.gguf`` file inside the source; null for all of it. Of nanochat,
        the checkpoint as ``source``, ``source/tag`` or ``source/tag/step``: ``sft``, ``mid/d20``,
        ``base/d20/21400``.
    """

    source: Literal["wheel", "hub", "folder", "nanochat", "skills"]
    name: str
    version: str | None
    sha256: str | None
    path: str | None

    @model_validator(mode="after")
    def _keys_are_the_sources(self) -> Self:
        """Refuse a source without a key that it needs, or with one that means nothing for it."""
        needed = {"wheel": {"version", "sha256"}, "hub": {"version"}, "skills": {"version"}}
        wanted = needed.get(self.source, set())
        faults = []
        if self.source == "nanochat" and not CHECKPOINT.fullmatch(self.path or ""):
            faults.append("source 'nanochat' needs path: base, mid, sft or rl, then /tag and /step")
        if self.source == "skills" and self.name not in ("even", "lopsided"):
            faults.append("source 'skills' needs name: even or lopsided")
        if self.source == "skills" and not (self.version or "").isdecimal():
            faults.append("source 'skills' needs version: a seed in quotes, as '0'")
        for key in ("version", "sha256"):
            if key in wanted and not getattr(self, key):
                faults.append(f"source {self.source!r} needs {key}")
            if key not in wanted and getattr(self, key) is not None:
                faults.append(f"{key} has no meaning for source {self.source!r}; set it to null")
        if faults:
            raise CrossFieldError(faults)
        return self


class PolicyParams(ModelParams):
    """The policy.

    Attributes
    ----------
    chat_template_kwargs : dict
        Settings of the chat template by name, ``{enable_thinking: false}`` say. The stage writes
        them into the published template as defaults, so that all stages, and whatever else reads
        the folder, give a prompt the same tokens.
    """

    chat_template_kwargs: dict[str, Any]

    @model_validator(mode="after")
    def _settings_are_plain(self) -> Self:
        """Refuse what has no notation in Jinja: names that are none, dates and the like."""
        faults = []
        for name, value in self.chat_template_kwargs.items():
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                faults.append(f"chat_template_kwargs: {name!r} is no name of a template's variable")
            if not _is_plain(value):
                what = "null, a boolean, a finite number, text, or a list or mapping of these"
                faults.append(f"chat_template_kwargs.{name} must be {what}")
        if faults:
            raise CrossFieldError(faults)
        return self


class ModelsParams(Params):
    """Section ``models`` of ``params.yaml``."""

    encoder: ModelParams
    policy: PolicyParams


def _is_plain(value: Any) -> bool:
    """Return whether `value` can be written in JSON."""
    if isinstance(value, dict):
        return all(isinstance(name, str) for name in value) and all(map(_is_plain, value.values()))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int | str)
