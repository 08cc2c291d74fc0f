r"""Anthropic's HH-RLHF: about 169,000 pairs of dialogues about help and harm (MIT).

A row holds two whole dialogues as strings, with ``\n\nHuman:`` and ``\n\nAssistant:`` before the
turns. The prompt is what they share; the answers are the first assistant turns that differ.

What is odd in the published files, and what becomes of it: white space around a turn is stripped;
two turns of one side in a row are joined by an empty line, since chat templates want turns to
alternate; an empty answer is kept (people preferred silence to the other answer); a row whose
dialogues are the same, or part at a human turn, holds no pair and is counted as unusable. The
split ``red-team-attempts`` is not preference data and is not offered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from isodense.download import pairs
from isodense.download.sources import hub
from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import OnBadRow, read_jsonl
from isodense.pipeline.params import param

REPO = "Anthropic/hh-rlhf"
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLE = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class HhParams:
    """Section ``download.hh``: the subsets are read in order, up to `limit` pairs (null: all)."""

    revision: str = param()
    subsets: list[
        Literal["harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"]
    ] = param(minimum=1)
    split: Literal["train", "test"] = param()
    limit: int | None = param(minimum=1)


def load(params: HhParams, on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    """Yield the pairs of the subsets, in order.

    Parameters
    ----------
    params : HhParams
        What to read, at which commit.
    on_bad_row : callable
        Called with an `UnusableRow` or another `DataError` for a row that is no pair.

    Raises
    ------
    DataError
        If the Hub or a file fails.
    """
    return islice(_all(params, on_bad_row), params.limit)


def _all(params: HhParams, on_bad_row: OnBadRow) -> Iterator[dict[str, Any]]:
    snapshot = hub.Snapshot(REPO, params.revision)
    for subset in params.subsets:
        for name, path in snapshot.matching(f"{subset}/{params.split}.jsonl.gz"):
            yield from _pairs(name, read_jsonl(path, on_bad_row), on_bad_row)


def _pairs(
    name: str, rows: Iterator[tuple[int, dict[str, Any]]], on_bad_row: OnBadRow
) -> Iterator[dict[str, Any]]:
    for line, row in rows:
        pair = pair_of(row.get("chosen"), row.get("rejected"))
        if isinstance(pair, str):
            kind = pairs.UnusableRow if _is_sound(row) else DataError
            on_bad_row(kind(pair, name, line, hub.SKIP))
        else:
            yield pair


def pair_of(chosen: Any, rejected: Any) -> dict[str, Any] | str:
    """Return the pair of two HH dialogues, or why there is none."""
    dialogues = []
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        dialogue = parse(text)
        if isinstance(dialogue, str):
            return f"{name}: {dialogue}"
        dialogues.append(dialogue)
    pair = pairs.from_dialogues(*dialogues)
    return pair if isinstance(pair, str) else pairs.fault(pair) or pair


def parse(text: Any) -> list[pairs.Message] | str:
    r"""Return the messages of one dialogue, or what is wrong with it.

    Examples
    --------
    >>> parse("\n\nHuman: Hi\n\nAssistant: Hello!")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello!'}]
    """
    if not isinstance(text, str):
        return f"is {type(text).__name__}, not a string"
    before, *parts = TURN.split(text)
    if before.strip() or not parts:
        return r"does not start with '\n\nHuman:'"
    messages = _merged(zip(parts[::2], parts[1::2], strict=True))
    if messages[0]["role"] != "user":
        return "starts with the assistant, not with the human"
    if messages[-1]["role"] != "assistant":
        return "ends with the human, not with the assistant"
    return messages


def _merged(turns: Iterator[tuple[str, str]]) -> list[pairs.Message]:
    messages: list[pairs.Message] = []
    for side, text in turns:
        role, content = ROLE[side], text.strip()
        if messages and messages[-1]["role"] == role:
            content = "\n\n".join(filter(None, (messages.pop()["content"], content)))
        messages.append({"role": role, "content": content})
    return messages


def _is_sound(row: dict[str, Any]) -> bool:
    return not any(isinstance(parse(row.get(name)), str) for name in ("chosen", "rejected"))
