"""Section ``prompts`` of ``params.yaml``."""

from __future__ import annotations

from pydantic import Field

from isodense.pipeline.params import Params


class PromptsParams(Params):
    """Section ``prompts`` of ``params.yaml``.

    Attributes
    ----------
    heldout : float
        Share of prompts held out of training: by id hash, near-duplicates together.
    near_duplicate : float or None
        Similarity of the words from which on two prompts are near-duplicates, see
        :mod:`isodense.prompts.near_duplicates`; null: prompts are held out by id hash alone.
    drop_conflicting : list of str
        Columns; a prompt whose examples disagree in one of them is left out.
    """

    heldout: float = Field(ge=0.0, le=0.9)
    near_duplicate: float | None = Field(ge=0.1, le=1.0)
    drop_conflicting: list[str]
