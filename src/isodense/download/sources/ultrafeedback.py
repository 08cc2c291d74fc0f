"""UltraFeedback, binarized: 61,135 prompts with two answers rated by GPT-4 (MIT).

Both answers are stored as whole conversations, prompt included. A row with equal answers or an
empty prompt holds no pair and is counted as unusable.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

from pydantic import Field

from isodense.download import examples
from isodense.download.files import read
from isodense.download.snapshot import SKIP, Snapshot
from isodense.pipeline.jsonl import OnBadRow
from isodense.pipeline.params import Params

REPO = "HuggingFaceH4/ultrafeedback_binarized"


class UltrafeedbackParams(Params):
    """Section ``download.ultrafeedback``: up to `limit` pairs of one split (null: all)."""

    revision: str
    split: Literal["train_prefs", "test_prefs"]
    limit: int | None = Field(ge=1)


def load(params: UltrafeedbackParams, on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    """Yield the pairs of a split, in order.

    Parameters
    ----------
    params : UltrafeedbackParams
        Split to read, at which commit.
    on_bad_row : callable
        Called with an `UnusableRow` or another `DataError` for a row without a pair.

    Raises
    ------
    DataError
        If the Hub cannot be reached, or a file is missing or damaged.
    """
    return islice(_all(params, on_bad_row), params.limit)


def _all(params: UltrafeedbackParams, on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    snapshot = Snapshot(REPO, params.revision)
    for name, path in snapshot.matching(f"data/{params.split}-*.parquet"):
        for number, row in read(path, on_bad_row):
            pair = _pair(row)
            if isinstance(pair, str):
                on_bad_row(examples.bad_row(pair, name, number, SKIP))
            else:
                yield pair


def _pair(row: dict[str, Any]) -> dict[str, Any] | str:
    found = _fault(row)
    if found:
        return found
    chosen, rejected = (
        [{key: message[key] for key in ("role", "content")} for message in row[name]]
        for name in ("chosen", "rejected")
    )
    pair = examples.from_dialogues(chosen, rejected)
    return pair if isinstance(pair, str) else examples.fault(pair) or pair


def _fault(row: dict[str, Any]) -> str | None:
    for name in ("chosen", "rejected"):
        found = examples.messages_fault(row.get(name))
        if found:
            return f"{name}: {found}"
    return None
