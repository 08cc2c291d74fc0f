"""Checks of an encoder on a few of the texts to embed, before a long run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from isodense.pipeline.errors import ModelError

if TYPE_CHECKING:
    from isodense.embeddings.encoder import Encoder

TEXTS = 8  # texts to check

log = logging.getLogger("isodense")


def preflight(encoder: Encoder, texts: list[str]) -> float:
    """Compare the vectors of texts in a batch of mixed lengths with those of each text alone.

    Parameters
    ----------
    encoder : Encoder
        The encoder to check.
    texts : list of str
        Candidates; ``TEXTS`` of them, evenly spread over the lengths, are embedded.

    Returns
    -------
    float
        The smallest cosine.

    Raises
    ------
    ModelError
        If a vector differs, is not finite or is zero, or if long texts are not truncated on the
        left, or not read in windows as they should be.
    """
    from isodense.embeddings.encoder import SAME
    from isodense.models.inference.backbone import FAILURES

    chosen = _mixed_lengths(texts)
    _check_long(encoder)
    windows = encoder.windows(encoder.tokenize(chosen)[0])
    firsts = np.cumsum(windows.counts) - windows.counts  # of a long text, one window will do
    ids = [windows.ids[first] for first in firsts]
    try:
        alone = np.stack([encoder.encode_alone(row) for row in ids])
        cosines = (encoder.encode_tokens(ids) * alone).sum(axis=1)
    except FAILURES as error:
        message = f"preflight: the encoder does not run: {type(error).__name__}: {error}"
        raise ModelError(message, "choose another encoder") from None
    worst = int(cosines.argmin())
    if cosines[worst] < SAME[encoder.precision]:
        message = (
            f"preflight: a text of {len(ids[worst])} tokens has another vector in a batch than "
            f"alone (cosine {cosines[worst]:.5f}, expected {SAME[encoder.precision]})"
        )
        raise ModelError(message, "the model does not suit batches; choose another encoder")
    log.info(
        "preflight: %d texts of %d to %d tokens, cosine batched against alone at least %.6f",
        len(ids),
        min(map(len, ids)),
        max(map(len, ids)),
        cosines[worst],
    )
    return float(cosines[worst])


def _mixed_lengths(texts: list[str]) -> list[str]:
    order = sorted(range(len(texts)), key=lambda row: (len(texts[row]), row))
    places = np.unique(np.linspace(0, len(order) - 1, TEXTS).round().astype(int))
    return [texts[order[place]] for place in places]


def _check_long(encoder: Encoder) -> None:
    """Check that truncation keeps the end of a text that is too long, or that windows are right."""
    if encoder.long == "cut":
        _check_cut(encoder)
    elif not encoder.windows_are_texts("question " * (encoder.max_tokens + 1)):
        message = "preflight: windows of a long text lack tokens that the tokenizer puts around one"
        raise ModelError(message, "set embeddings.long: cut, or choose another encoder")


def _check_cut(encoder: Encoder) -> None:
    """Check that truncation keeps the end of a text that is too long."""
    long = " ".join(["question"] * (encoder.max_tokens + 1))
    (plain, started, ended), cut = encoder.tokenize([long, f"isodense {long}", f"{long} isodense"])
    if cut != 3 or len(plain) > encoder.max_tokens or plain != started or plain == ended:
        message = "preflight: the tokenizer does not cut long texts at their start"
        raise ModelError(message, "its fast tokenizer is not usable; choose another encoder")
