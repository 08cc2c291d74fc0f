"""What the weights are computed with: the values that ``params.yaml`` ships, changed by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isodense.density.params import DensityParams
from isodense.embeddings.params import EmbeddingsParams
from isodense.map.params import MapParams
from isodense.models.params import ModelParams
from isodense.neighbors.params import NeighborsParams
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.params import build, value_of
from isodense.pipeline.runtime import BaseParams

DEFAULTS = Path(__file__).with_name("defaults.yaml")
REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")  # of the Hub, at a revision


@dataclass(frozen=True)
class Settings:
    """The sections of ``params.yaml`` that shape weights.

    Attributes
    ----------
    base : BaseParams
    encoder : ModelParams
    embeddings : EmbeddingsParams
    neighbors : NeighborsParams
    map : MapParams
    density : DensityParams
    """

    base: BaseParams
    encoder: ModelParams
    embeddings: EmbeddingsParams
    neighbors: NeighborsParams
    map: MapParams
    density: DensityParams


def settings(changes: Mapping[str, Any], encoder: str | Path | None = None) -> Settings:
    """Return the defaults with some values changed.

    Parameters
    ----------
    changes : mapping of str to Any
        By their names in ``params.yaml``, such as ``embeddings.precision``. ``neighbors.k_max``
        follows a larger ``density.k``.
    encoder : str or Path, optional
        A folder, or a repository of the Hub as ``owner/name`` or ``owner/name@revision``; by
        default the encoder that ``params.yaml`` names, which comes from PyPI.

    Raises
    ------
    IsodenseError
        If there is no such param, a value is none of it, or the encoder is neither.
    """
    values = value_of(DEFAULTS.read_text(encoding="utf-8"))
    for key, value in changes.items():
        _change(values, key, value)
    graph, k = values["neighbors"], values["density"]["k"]
    if "neighbors.k_max" not in changes and isinstance(k, int):
        graph["k_max"] = max(graph["k_max"], k)
    model = values["models"]["encoder"] if encoder is None else _encoder(encoder)
    density = build(DensityParams, values["density"], "section density")  # first: k_max follows k
    return Settings(
        build(BaseParams, values["base"], "section base"),
        build(ModelParams, model, "the encoder"),
        build(EmbeddingsParams, values["embeddings"], "section embeddings"),
        build(NeighborsParams, graph, "section neighbors"),
        build(MapParams, values["map"], "section map"),
        density,
    )


def _change(values: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    inside: Any = values
    for part in section.split("."):
        inside = inside.get(part) if isinstance(inside, dict) else None
    if not isinstance(inside, dict) or name not in inside:
        known = [f"{one}.{field}" for one in values for field in values[one]]
        near = difflib.get_close_matches(key, known, n=1)
        guess = f" (did you mean {near[0]}?)" if near else ""
        message = f"weigh has no param {key}{guess}"
        raise IsodenseError(message, f"it has those of the sections {', '.join(values)}")
    inside[name] = value


def _encoder(name: str | Path) -> dict[str, Any]:
    if Path(name).expanduser().is_dir():
        folder = str(Path(name).expanduser())
        return {"source": "folder", "name": folder, "version": None, "sha256": None, "path": None}
    match = REPOSITORY.fullmatch(str(name))
    if not match:
        message = f"the encoder {name} is no folder here"
        raise IsodenseError(message, "name one, or a repository of the Hub as owner/name")
    version = match[2] or "main"
    return {"source": "hub", "name": match[1], "version": version, "sha256": None, "path": None}
