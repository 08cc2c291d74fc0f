"""Section ``difficulty`` of ``params.yaml``."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from isodense.pipeline.params import CrossFieldError, Params


class DifficultyParams(Params):
    """Section ``difficulty`` of ``params.yaml``.

    Attributes
    ----------
    completions : int
        Completions of each training prompt by the untrained policy, or behind each rate in
        `column`; 0 switches the stage off.
    column : str or None
        A column of the data with pass rates from 0 to 1, to be used instead of the policy's.
    max_completion_tokens : int
        Completions are cut there.
    temperature : float
        Sampling temperature of the completions.
    batch_tokens : int
        Padded tokens per batch, prompts and completions.
    """

    completions: int = Field(ge=0, le=100_000)
    column: str | None = Field(min_length=1)
    max_completion_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0.01, le=10.0)
    batch_tokens: int = Field(ge=64)

    @model_validator(mode="after")
    def _rates_have_a_size(self) -> Self:
        if self.column is not None and not self.completions:
            message = (
                f"column = {self.column!r} with completions = 0: set completions to the number of "
                "completions behind each rate, or column to null"
            )
            raise CrossFieldError([message])
        return self
