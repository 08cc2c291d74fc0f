"""A checkout as the checks see it: params, metrics, DVC's settings, and what is computed."""

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

Level = Literal["ok", "warning", "problem"]

SECTIONS = {
    "base": "isodense.pipeline.runtime:BaseParams",
    "download": "isodense.download.collect:DownloadParams",
    "models": "isodense.models.publish:ModelsParams",
    "prompts": "isodense.prompts.deduplicate:PromptsParams",
    "embeddings": "isodense.embeddings.build:EmbeddingsParams",
    "neighbors": "isodense.neighbors.build:NeighborsParams",
    "density": "isodense.density.estimate:DensityParams",
    "map": "isodense.map.layout:MapParams",
    "reward": "isodense.reward.fit:RewardParams",
    "train": "isodense.train.train:TrainParams",
    "evaluate": "isodense.evaluate.evaluate:EvaluateParams",
}
PROCESSES = re.compile(r"--(?:nproc[-_]per[-_]node|num[-_]processes)[= ](\d+)")


def section_class(section: str) -> Any:
    """Return the dataclass that a section of ``params.yaml`` is loaded into."""
    module, _, name = SECTIONS[section].partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes
    ----------
    name : str
        What was looked at.
    level : {"ok", "warning", "problem"}
        A problem makes a stage fail, or what it computes wrong or lost.
    text : str
        How it is.
    hint : str
        What to do about it; empty where all is well.
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
        """Sections of ``params.yaml`` without faults, as the stages read them."""
        return self._loaded[0]

    @property
    def faults(self) -> list[str]:
        """All faults of ``params.yaml``."""
        return self._loaded[1]

    def folder(self, artifact: str) -> Path:
        """Return where the project has an artifact, named as in :mod:`isodense.pipeline.layout`."""
        return self.root / ARTIFACTS[artifact].path

    def metrics(self, path: Path) -> dict[str, Any]:
        """Return what the JSON file `path` holds; empty where it cannot be read."""
        try:
            found = json.loads((self.root / path).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def launcher(self) -> list[str]:
        """Words of ``ISODENSE_LAUNCH``."""
        command = os.environ.get("ISODENSE_LAUNCH", "")
        try:
            return shlex.split(command)
        except ValueError:  # a quote that is not closed
            return command.split()

    @property
    def processes(self) -> int:
        """How many processes the launcher starts on this machine; 1 where it does not say."""
        found = PROCESSES.search(" ".join(self.launcher))
        return int(found[1]) if found else 1

    @cached_property
    def dvc(self) -> Any:
        """DVC's settings from all its files: system, global, the repository's, local.

        Raises
        ------
        IsodenseError
            If one of them is malformed.
        """
        from dvc.config import Config, ConfigError

        try:
            return Config(str(self.root / ".dvc"))
        except ConfigError as error:
            message = f"DVC's settings cannot be read: {error}"
            raise IsodenseError(message, "correct .dvc/config or .dvc/config.local") from None

    @property
    def cache(self) -> Path:
        """DVC's cache."""
        return Path(self.dvc["cache"].get("dir") or self.root / ".dvc" / "cache")

    @property
    def scratch(self) -> Path:
        """Where stages keep what spares them work."""
        return Path(os.environ.get("ISODENSE_CACHE", self.root / ".cache" / "isodense"))


def size(number: float) -> str:
    """Return bytes as people write them.

    Examples
    --------
    >>> size(1_500_000_000)
    '1.5 GB'
    """
    units = ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.{0 if number >= 10 or units[0] == 'B' else 1}f} {units[0]}"
