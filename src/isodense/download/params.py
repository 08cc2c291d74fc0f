"""Section ``download`` of ``params.yaml``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from isodense.download.sources.hh import HhParams
from isodense.download.sources.hub import HubParams
from isodense.download.sources.local import LocalParams
from isodense.download.sources.sample import SampleParams
from isodense.download.sources.stack_exchange import StackExchangeParams
from isodense.download.sources.ultrafeedback import UltrafeedbackParams
from isodense.pipeline.params import CrossFieldError, Params, as_dict
from isodense.synthetic.requests import SkillsParams

Source = Literal["sample", "skills", "hh", "ultrafeedback", "stack_exchange", "hub", "local"]


class DownloadParams(Params):
    """Section ``download`` of ``params.yaml``; only the sources listed are read."""

    sources: list[
        Literal["sample", "skills", "hh", "ultrafeedback", "stack_exchange", "hub", "local"]
    ] = Field(min_length=1)
    on_bad_row: Literal["error", "skip"]
    max_skipped: float = Field(ge=0.0, le=1.0)  # share of the rows
    sample: SampleParams
    skills: SkillsParams
    hh: HhParams
    ultrafeedback: UltrafeedbackParams
    stack_exchange: StackExchangeParams
    hub: HubParams
    local: LocalParams

    @model_validator(mode="after")
    def _lists_are_sound(self) -> Self:
        """Refuse an item that a list names twice, and local files that are not listed."""
        named: dict[str, list[Any]] = {
            "sources": self.sources,
            "hh.subsets": self.hh.subsets,
            "stack_exchange.sites": self.stack_exchange.sites,
            "local.files": self.local.files,
            "local.heldout": self.local.heldout,
        }
        faults = [
            f"{key} names {item!r} {count} times"
            for key, items in named.items()
            for item, count in Counter(items).items()
            if count > 1
        ]
        faults += self.hub.missing() if "hub" in self.sources else []
        faults += [
            f"local.heldout names {file!r}, and so does local.files: name it in one of them"
            for file in self.local.heldout
            if file in self.local.files
        ]
        if "local" in self.sources and not (self.local.files or self.local.heldout):
            faults.append("sources names 'local', but local.files is []: list your files there")
        if faults:
            raise CrossFieldError(faults)
        return self

    def in_use(self) -> dict[str, Any]:
        """Return the section without the sources that are not listed, as manifests record it.

        Absolute paths of local files, which differ between machines, are cut to their names.
        """
        section = as_dict(self)
        used = {
            name: section[name] for name in ("sources", "on_bad_row", "max_skipped", *self.sources)
        }
        if "local" in used:
            for name in ("files", "heldout"):
                files = [Path(file) for file in used["local"][name]]
                used["local"][name] = [f.name if f.is_absolute() else f.as_posix() for f in files]
        return used
