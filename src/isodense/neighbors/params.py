"""Section ``neighbors`` of ``params.yaml``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from isodense.pipeline.params import Params

Method = Literal["auto", "exact", "ivf", "pynndescent"]


class NeighborsParams(Params):
    """Section ``neighbors`` of ``params.yaml``.

    Attributes
    ----------
    k_max : int
        Neighbours kept per prompt; ``density.k`` may be any number up to it.
    method : {"auto", "exact", "ivf", "pynndescent"}
        ``auto`` is exact up to 80,000 prompts, and beyond that where there is a GPU, else
        ``pynndescent``, nearest-neighbour descent; with a `recall_floor` above 0.98 it is ``ivf``,
        an inverted file.
    recall_sample, recall_floor : int, float
        An approximate graph is compared with the exact neighbours of this many prompts, and fails
        below the floor; either method looks as far as it takes to get a third of the way from there
        to 1.
    n_jobs : int
        Threads of ``pynndescent``; speed only.
    rows_per_slice : int
        Prompts whose vectors a worker of ``exact`` or ``ivf`` holds at once; changes memory only.
    """

    k_max: int = Field(ge=1, le=1000)
    method: Method
    recall_sample: int = Field(ge=1)
    recall_floor: float = Field(ge=0.0, le=1.0)
    n_jobs: int = Field(ge=1)
    rows_per_slice: int = Field(ge=1)
