"""Section ``evaluate`` of ``params.yaml``."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from isodense.pipeline.params import CrossFieldError, Params


class EvaluateParams(Params):
    """Section ``evaluate`` of ``params.yaml``.

    Attributes
    ----------
    max_prompts : int or None
        Held-out prompts used at most, None for all: those with the smallest hashes of their ids, as
        many of each label where labels are kinds.
    answer : str or None
        Column with the ground truth, whose probability under each policy is measured.
    num_generations : int
        Completions of each prompt by each policy.
    max_completion_tokens : int
        Completions are cut there.
    temperature : float
        0 for the likeliest token at each step.
    batch_tokens : int
        Padded tokens per batch, prompts and completions.
    """

    max_prompts: int | None = Field(ge=2)
    answer: str | None
    num_generations: int = Field(ge=1)
    max_completion_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0.0, le=10.0)
    batch_tokens: int = Field(ge=64)

    @model_validator(mode="after")
    def _completions_differ(self) -> Self:
        if self.temperature == 0 and self.num_generations > 1:
            message = (
                f"num_generations = {self.num_generations} at temperature = 0, where a prompt's "
                "completions are all equal; set it to 1, or raise the temperature"
            )
            raise CrossFieldError([message])
        return self
