"""How likely a policy is to answer with the ground truth, computed and not drawn.

The probability is that of the tokens of the text and of the end of the turn, one after the other,
each given the ones before it (teacher forcing), at temperature 1. No draw adds noise, and a rare
answer counts for what it is worth: pass@1 of four completions is 0, ¼, ½, ¾ or 1. Another way to
cut the same text into tokens is not counted, nor the same answer in other words, so that it is at
most the chance that an exact match succeeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.errors import DataError

PARAM = "evaluate.answer"


def ground_truths(rows: Sequence[Mapping[str, Any]], column: str) -> list[str | None]:
    """Return the ground truth of each prompt as text, without white space around it.

    Parameters
    ----------
    rows : sequence of dict
        Rows of the prompts.
    column : str
        Where it is; a prompt may have none, or a blank one, as CSV writes it, which is none.

    Raises
    ------
    DataError
        If no prompt has one, or one is neither a text nor a whole number.

    Examples
    --------
    >>> ground_truths([{"answer": " four "}, {"answer": 4}, {}], "answer")
    ['four', '4', None]
    """
    values = [None if _is_blank(row.get(column)) else row.get(column) for row in rows]
    if all(value is None for value in values):
        known = ", ".join(sorted({name for row in rows for name in row}))
        message = f"names {column!r}, which no held-out prompt has; they have {known}"
        raise DataError(message, PARAM, hint="correct the name, or set it to null")
    for value in values:
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
            message = f"names {column!r}, which holds {value!r}: not a text or a whole number"
            raise DataError(message, PARAM, hint="name a column of texts, or set it to null")
    return [None if value is None else str(value).strip() for value in values]


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def ground_truth_log_probs(
    policy: Path,
    template: Path,
    rows: Sequence[Mapping[str, Any]],
    column: str,
    device: str,
    batch_tokens: int,
) -> np.ndarray:
    """Return the log-probability of each prompt's ground truth under a policy.

    Parameters
    ----------
    policy : Path
        A model folder.
    template : Path
        The model folder whose tokenizer and chat template render the prompts.
    rows : sequence of dict
        Rows of the prompts.
    column : str
        Where the ground truth is.
    device : str
        A torch device.
    batch_tokens : int
        Padded tokens per batch.

    Returns
    -------
    ndarray of shape (n_prompts,), float64
        In nats; NaN for a prompt without ground truth.

    Raises
    ------
    DataError
        See :func:`ground_truths`.
    """
    from isodense.models.inference.completions import log_probs_of
    from isodense.models.inference.generation import Completion
    from isodense.models.inference.policy import answer_tokens, load_tokenizer

    texts = ground_truths(rows, column)
    known = [row for row, text in enumerate(texts) if text is not None]
    wanted = [text for text in texts if text is not None]
    tokens = answer_tokens(load_tokenizer(template), wanted)
    answers = [
        [Completion(text, tuple(ids), truncated=False)]
        for text, ids in zip(wanted, tokens, strict=True)
    ]
    found = np.full(len(rows), np.nan)
    asked = [rows[row] for row in known]
    settings = {"temperature": 1.0, "batch_tokens": batch_tokens}
    found[known] = log_probs_of(policy, template, asked, answers, device, **settings)[:, 0]
    return found
