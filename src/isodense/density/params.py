"""Section ``density`` of ``params.yaml``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from isodense.pipeline.params import Params

Method = Literal["soft_count", "knn", "balance", "uniform", "semdedup", "clusters"]

ALPHA_MIN = 0.5  # least exponent


class DensityParams(Params):
    """Section ``density`` of ``params.yaml``; see :func:`isodense.density_weights`."""

    k: int = Field(ge=1, le=1000)
    method: Method
    ess: float = Field(ge=0.05, le=1.0)
    bandwidth: float = Field(ge=0.01, le=10.0)
    dup: float = Field(ge=0.0, le=1.0)
    alpha_max: float = Field(ge=ALPHA_MIN, le=20.0)
    count_power: float = Field(ge=0.0, le=1.0)
    semdedup: float = Field(ge=0.0, le=2.0)
    clusters: int | None = Field(ge=1)
