"""Section ``prompts`` of ``params.yaml``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from isodense.pipeline.params import CrossFieldError, Params

HeldoutBy = Literal["id", "label"]

MOST = 0.9  # share held out


class PromptsParams(Params):
    """Section ``prompts`` of ``params.yaml``.

    Attributes
    ----------
    heldout : float
        Share of prompts held out of training: by id hash, near-duplicates together. By label also a
        whole number: so many of every label, at most half of its prompts.
    heldout_by : {"id", "label"}
        Whether that is of all prompts or of every label.
    near_duplicate : float or None
        Similarity of the words from which on two prompts are near-duplicates, see
        :mod:`isodense.prompts.near_duplicates`; null: prompts are held out by id hash alone.
    drop_conflicting : list of str
        Columns; a prompt whose examples disagree in one of them is left out.
    """

    heldout: float = Field(ge=0.0)
    heldout_by: HeldoutBy
    near_duplicate: float | None = Field(ge=0.1, le=1.0)
    drop_conflicting: list[str]

    @model_validator(mode="after")
    def _heldout_fits(self) -> Self:
        heldout, by = self.heldout, self.heldout_by
        if heldout <= MOST or (heldout >= 1 and heldout.is_integer() and by == "label"):
            return self
        message = (
            f"heldout = {heldout:g} with heldout_by = {by}: a share is at most {MOST}, and a whole "
            "number of prompts takes heldout_by: label"
        )
        raise CrossFieldError([message])
