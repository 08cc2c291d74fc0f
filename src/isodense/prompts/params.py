"""Section ``prompts`` of ``params.yaml``."""

from __future__ import annotations

from pydantic import Field

from isodense.pipeline.params import Params


class PromptsParams(Params):
    """Section ``prompts`` of ``params.yaml``.

    Attributes
    ----------
    heldout : float
        Share of prompts held out of training, chosen by id hash.
    drop_conflicting : list of str
        Columns; a prompt whose examples disagree in one of them is left out.
    """

    heldout: float = Field(ge=0.0, le=0.9)
    drop_conflicting: list[str]
