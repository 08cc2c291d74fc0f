"""Section ``embeddings`` of ``params.yaml``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from isodense.pipeline.params import Params


class EmbeddingsParams(Params):
    """Section ``embeddings`` of ``params.yaml``.

    See :func:`isodense.embeddings.encoder.load_encoder` for what shapes a vector.

    Attributes
    ----------
    prefix : str or None
        Put before every prompt; null for the default prompt that a sentence-transformers folder
        names.
    long : {"cut", "windows"}
        Prompts of more than `max_tokens` are cut at their start, or read in windows whose vectors
        are averaged.
    rows_per_shard : int
        Prompts per shard file.
    dtype : {"float32", "float16"}
        Of the stored vectors.
    postprocess : {"auto", "none", "all_but_the_top"}
        What is fitted on the training prompts and applied when vectors are read; ``auto`` is
        ``all_but_the_top`` for the hidden states of decoders.
    components : int
        Directions that all-but-the-top removes; 0 only centres.
    fit_rows : int
        It is fitted on the first so many training prompts, so that it stays what it is when more
        are appended.
    """

    space: Literal["hidden", "logits", "logits_projected", "logits_full"]
    pooling: Literal["auto", "mean", "mean_without_first", "cls", "last"]
    layer: int | None = Field(ge=1)
    prefix: str | None
    projection: int = Field(ge=1)
    max_tokens: int = Field(ge=8)
    long: Literal["cut", "windows"]
    precision: Literal["float64", "float32", "bfloat16"]
    batch_tokens: int | None = Field(ge=64)
    rows_per_shard: int = Field(ge=1)
    dtype: Literal["float32", "float16"]
    postprocess: Literal["auto", "none", "all_but_the_top"]
    components: int = Field(ge=0)
    fit_rows: int = Field(ge=10)
