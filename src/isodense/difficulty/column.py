"""Pass rates that the data comes with: many sets have those of another policy in a column."""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np

from isodense.pipeline.errors import DataError
from isodense.prompts.reader import PromptSet

WHERE = "difficulty.column"


def counts_from(prompts: PromptSet, column: str, completions: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each prompt was solved, and of how many completions, from its rate.

    Parameters
    ----------
    prompts : PromptSet
        The training prompts.
    column : str
        Holds the share of the completions that solve the prompt.
    completions : int
        Completions behind each rate.

    Returns
    -------
    solved, completions : ndarray of shape (n_prompts,), int32
        Rounded to whole completions; none of a prompt without a rate.

    Raises
    ------
    DataError
        If there is no such column, or a value is no number from 0 to 1.
    """
    if column not in prompts.columns:
        near = difflib.get_close_matches(column, prompts.columns, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        has = ", ".join(prompts.columns) or "no column beside the prompt"
        message = f"the prompts have no column {column!r}{hint}; they have {has}"
        hint = "correct it, or set it to null to let the policy answer"
        raise DataError(message, WHERE, hint=hint)
    solved = np.zeros(len(prompts), dtype=np.int32)
    known = np.zeros(len(prompts), dtype=np.int32)
    for number, row in enumerate(prompts.rows):
        if (rate := _rate(row.get(column), column, row["id"])) is not None:
            solved[number] = round(rate * completions)
            known[number] = completions
    return solved, known


def _rate(value: Any, column: str, identifier: str) -> float | None:
    """Return a rate, also from text, which is all that CSV has; None where there is none."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if 0 <= number <= 1:
        return number
    hint = "pass rates are numbers from 0 to 1: divide percentages by 100 in the data"
    raise DataError(f"{column} is {value!r:.80} for prompt {identifier}", WHERE, hint=hint)
