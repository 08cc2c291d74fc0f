"""Section ``density`` of ``params.yaml``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from isodense.pipeline.params import CrossFieldError, Params

Method = Literal["soft_count", "knn", "balance", "uniform", "semdedup", "clusters"]

QUOTAS = 1e-6  # of which their sum may differ from 1


class DensityParams(Params):
    """Section ``density`` of ``params.yaml``; see :func:`isodense.density_weights`."""

    k: int = Field(ge=1, le=1000)
    method: Method
    ess: float = Field(ge=0.05, le=1.0)
    bandwidth: float = Field(ge=0.01, le=10.0)
    dup: float = Field(ge=0.0, le=1.0)
    paraphrases: float = Field(ge=0.0, lt=1.0)
    alpha_max: float = Field(ge=0.0, le=20.0)
    count_power: float = Field(ge=0.0, le=1.0)
    semdedup: float = Field(ge=0.0, le=2.0)
    clusters: int | None = Field(ge=1)
    balance_by: str | None = Field(min_length=1)
    balance_power: float = Field(ge=0.0, le=1.0)
    quotas: dict[str, Annotated[float, Field(gt=0.0, le=1.0)]] | None

    @model_validator(mode="after")
    def _quotas_are_of_kinds(self) -> Self:
        faults = []
        if self.quotas is not None:
            total = sum(self.quotas.values())
            if self.balance_by is None:
                faults.append(
                    "quotas needs balance_by: say by which column, as in balance_by: source"
                )
            if abs(total - 1) > QUOTAS:
                faults.append(f"quotas sum to {total:.6g}, and not to 1")
        if faults:
            raise CrossFieldError(faults)
        return self
