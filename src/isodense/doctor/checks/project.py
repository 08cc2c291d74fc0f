"""A checkout as the checks see it: params, metrics, DVC's settings, results."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from isodense.pipeline import params
from isodense.pipeline.errors import IsodenseError, ParamsError
from isodense.pipeline.layout import ARTIFACTS
from isodense.pipeline.runtime import BaseParams

Level = Literal["ok", "warning", "problem"]

PROCESSES = re.compile(r"--(?:nproc[-_]per[-_]node|num[-_]processes)[= ](\d+)")


def section_class(section: str) -> type[params.Params]:
    """Return the model that a section of ``params.yaml`` is checked against."""
    if section == "base":
        return BaseParams
    module = importlib.import_module(f"isodense.{section}.params")
    found: type[params.Params] = getattr(module, f"{section.capitalize()}Params")
    return found


@dataclass(frozen=True)
class Finding:
    """Result of a check.

    Attributes
    ----------
    name : str
        Name of the thing that was checked.
    level : {"ok", "warning", "problem"}
        A problem makes a stage fail, or makes results wrong or lost.
    text : str
        Description of the state.
    hint : str
        What to do about it; empty if nothing.
    """

    name: str
    level: Level
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Project:
    """A checkout.

    Attributes
    ----------
    root : Path
        The folder of ``dvc.yaml``.
    """

    root: Path

    @cached_property
    def stages(self) -> dict[str, Any]:
        """The stages of ``dvc.yaml``; empty where it cannot be read."""
        try:
            loaded = yaml.safe_load((self.root / "dvc.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        stages = loaded.get("stages") if isinstance(loaded, dict) else None
        named = stages.items() if isinstance(stages, dict) else ()
        return {name: stage for name, stage in named if isinstance(stage, dict)}

    @cached_property
    def _loaded(self) -> tuple[dict[str, Any], list[str]]:
        """Valid sections by name, and all faults."""
        sections, faults = {}, []
        for name in params.SECTIONS:
            try:
                cls = section_class(name)
                sections[name] = params.load(self.root / "params.yaml", name, cls)
            except ParamsError as error:
                faults += error.faults
        return sections, list(dict.fromkeys(faults))  # each section repeats those of the top level

    @property
    def sections(self) -> dict[str, Any]:
        """Params objects of the sections without faults, by name."""
        return self._loaded[0]

    @property
    def faults(self) -> list[str]:
        """All faults of ``params.yaml``."""
        return self._loaded[1]

    def folder(self, artifact: str) -> Path:
        """Return where the project has an artifact, named as in :mod:`isodense.pipeline.layout`."""
        return self.root / ARTIFACTS[artifact].path

    def metrics(self, path: Path) -> dict[str, Any]:
        """Return the contents of the JSON file `path`; empty if it cannot be read."""
        try:
            found = json.loads((self.root / path).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def launcher(self) -> list[str]:
        """Command in ``ISODENSE_LAUNCH``, split into words."""
        command = os.environ.get("ISODENSE_LAUNCH", "")
        try:
            return shlex.split(command)
        except ValueError:  # a quote that is not closed
            return command.split()

    @property
    def processes(self) -> int:
        """Number of processes that the launcher starts on this machine; 1 if not given."""
        found = PROCESSES.search(" ".join(self.launcher))
        return int(found[1]) if found else 1

    @cached_property
    def dvc(self) -> Any:
        """DVC's settings of all levels: system, global, repository and local.

        Raises
        ------
        IsodenseError
            If one of the settings files is malformed.
        """
        from dvc.config import Config, ConfigError

        try:
            return Config(str(self.root / ".dvc"))
        except ConfigError as error:
            message = f"DVC's settings cannot be read: {error}"
            raise IsodenseError(message, "correct .dvc/config or .dvc/config.local") from None

    @property
    def dvc_cache(self) -> Path:
        """DVC's cache."""
        return Path(self.dvc["cache"].get("dir") or self.root / ".dvc" / "cache")

    @property
    def cache(self) -> Path:
        """Folder of intermediate results of the stages, outside DVC outputs."""
        return Path(os.environ.get("ISODENSE_CACHE", self.root / ".cache" / "isodense"))
