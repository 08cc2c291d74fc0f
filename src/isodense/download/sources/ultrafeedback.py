"""UltraFeedback, binarized: 61,135 prompts with a good and a worse answer by GPT-4's marks (MIT).

Both answers come as whole conversations, prompt included. A row whose answers are the same, or
whose prompt is empty, holds no pair and is counted as unusable.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from isodense.download import pairs
from isodense.download.sources import hub
from isodense.download.sources.local import read_parquet
from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import OnBadRow
from isodense.pipeline.params import param

REPO = "HuggingFaceH4/ultrafeedback_binarized"


@dataclass(frozen=True)
class UltrafeedbackParams:
    """Section ``download.ultrafeedback``: up to `limit` pairs of one split (null: all)."""

    revision: str = param()
    split: Literal["train_prefs", "test_prefs"] = param()
    limit: int | None = param(minimum=1)


def load(params: UltrafeedbackParams, on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    """Yield the pairs of a split, in order.

    Parameters
    ----------
    params : UltrafeedbackParams
        What to read, at which commit.
    on_bad_row : callable
        Called with an `UnusableRow` or another `DataError` for a row that is no pair.

    Raises
    ------
    DataError
        If the Hub or a file fails.
    """
    return islice(_all(params, on_bad_row), params.limit)


def _all(params: UltrafeedbackParams, on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    snapshot = hub.Snapshot(REPO, params.revision)
    for name, path in snapshot.matching(f"data/{params.split}-*.parquet"):
        for number, row in read_parquet(path):
            pair = _pair(row)
            if isinstance(pair, str):
                kind = DataError if _fault(row) else pairs.UnusableRow
                on_bad_row(kind(pair, name, number, hub.SKIP))
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
    pair = pairs.from_dialogues(chosen, rejected)
    return pair if isinstance(pair, str) else pairs.fault(pair) or pair


def _fault(row: dict[str, Any]) -> str | None:
    for name in ("chosen", "rejected"):
        found = pairs.messages_fault(row.get(name))
        if found:
            return f"{name}: {found}"
    return None
