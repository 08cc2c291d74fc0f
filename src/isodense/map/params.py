"""Section ``map`` of ``params.yaml``."""

from __future__ import annotations

from pydantic import Field

from isodense.pipeline.params import Params


class MapParams(Params):
    """Section ``map`` of ``params.yaml``.

    Attributes
    ----------
    neighbors : int
        Nearest prompts that each is drawn to, at most those in the graph: few show small groups,
        many the whole.
    min_dist : float
        How near neighbours may come in the plane, in units of about a neighbourhood.
    epochs : int or None
        Rounds of the layout; None: 500 up to 10,000 prompts, 200 up to 200,000, 100 beyond.
    """

    neighbors: int = Field(ge=1, le=1000)
    min_dist: float = Field(ge=0.0, le=1.0)
    epochs: int | None = Field(ge=1, le=10_000)
