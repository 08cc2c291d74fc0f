r"""Anthropic's HH-RLHF: about 169,000 pairs of dialogues about help and harm (MIT).

A row holds two whole dialogues as strings, with ``\n\nHuman:`` and ``\n\nAssistant:`` before the
turns. The prompt is their common prefix; the answers are the first assistant turns that differ.

Irregularities of the published files are treated as follows: white space around a turn is stripped;
two turns of one side in a row are joined by an empty line, since chat templates require alternating
turns; an empty answer is kept (people preferred it to the other answer); a row whose dialogues are
equal, or first differ at a human turn, holds no pair and is counted as unusable. The split
``red-team-attempts`` is not preference data and cannot be chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

from pydantic import Field

from isodense.download import examples
from isodense.download.markup import hh_messages
from isodense.download.snapshot import SKIP, Snapshot
from isodense.pipeline.jsonl import OnBadRow, read_jsonl
from isodense.pipeline.params import Params

REPO = "Anthropic/hh-rlhf"


class HhParams(Params):
    """Section ``download.hh``: the subsets are read in order, up to `limit` pairs (null: all)."""

    revision: str
    subsets: list[
        Literal["harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"]
    ] = Field(min_length=1)
    split: Literal["train", "test"]
    limit: int | None = Field(ge=1)


def load(params: HhParams, on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    """Yield the pairs of the subsets, in order.

    Parameters
    ----------
    params : HhParams
        Subsets to read, at which commit.
    on_bad_row : callable
        Called with an `UnusableRow` or another `DataError` for a row without a pair.

    Raises
    ------
    DataError
        If the Hub cannot be reached, or a file is missing or damaged.
    """
    return islice(_all(params, on_bad_row), params.limit)


def _all(params: HhParams, on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    snapshot = Snapshot(REPO, params.revision)
    for subset in params.subsets:
        for name, path in snapshot.matching(f"{subset}/{params.split}.jsonl.gz"):
            yield from _pairs(name, read_jsonl(path, on_bad_row), on_bad_row)


def _pairs(
    name: str, rows: Iterator[tuple[int, dict[str, Any]]], on_bad_row: OnBadRow
) -> Iterator[dict[str, Any]]:
    for line, row in rows:
        pair = pair_of(row.get("chosen"), row.get("rejected"))
        if isinstance(pair, str):
            on_bad_row(examples.bad_row(pair, name, line, SKIP))
        else:
            yield pair


def pair_of(chosen: Any, rejected: Any) -> dict[str, Any] | str:
    """Return the pair of two HH dialogues, or the reason why there is none."""
    dialogues = []
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        dialogue = parse(text)
        if isinstance(dialogue, str):
            return f"{name}: {dialogue}"
        dialogues.append(dialogue)
    pair = examples.from_dialogues(*dialogues)
    return pair if isinstance(pair, str) else examples.fault(pair) or pair


def parse(text: Any) -> list[examples.Message] | str:
    r"""Return the messages of a dialogue, or the reason why it cannot be parsed.

    Examples
    --------
    >>> parse("\n\nHuman: Hi\n\nAssistant: Hello!")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello!'}]
    """
    if not isinstance(text, str):
        return f"is {type(text).__name__}, not a string"
    messages = hh_messages(text)
    if not isinstance(messages, str) and messages[-1]["role"] != "assistant":
        return "ends with the human, not with the assistant"
    return messages
