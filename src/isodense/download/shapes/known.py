"""The shapes that are recognised without a map, in the order in which they are tried.

Columns that no shape uses are kept, so a shape says only where the prompt and the answers are. The
first one whose columns are all there, with values of a fitting type, decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from isodense.download import markup
from isodense.download.messages import json_messages
from isodense.download.shapes.columns import lookup

Row = dict[str, Any]
Fits = Callable[[Any], bool]


def is_messages(value: Any) -> bool:
    """Return whether a value looks like a list of messages, or is one as JSON text."""
    if isinstance(value, str):
        return json_messages(value) is not None
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def is_prompt(value: Any) -> bool:
    """Return whether a value is a string or looks like a list of messages."""
    return isinstance(value, str) or is_messages(value)


def is_answer(value: Any) -> bool:
    """Return whether a value may be an answer: a string, messages, or null, as in other rows."""
    return value is None or is_prompt(value)


def is_dialogue(value: Any) -> bool:
    """Return whether a value is a whole conversation: messages, or a string of chat markup."""
    return is_messages(value) or (
        isinstance(value, str) and markup.parse(value, whole=True) is not None
    )


@dataclass(frozen=True)
class Known:
    """A known shape.

    Attributes
    ----------
    name : str
    prompt : str or None
        The column of the prompt, nested ones with dots. None: what both answers share.
    needs : dict of str to callable
        Columns beside the prompt's, and whether a value fits.
    answers : tuple of str
        The columns of the chosen and of the rejected answer, if there are any.
    kind : {"prompt", "conversation", "votes"}
        A conversation may end with the assistant, whose answer is no part of the prompt; votes say
        which of the answers was preferred.
    more : str or None
        A column whose text follows the prompt's after an empty line.
    fit : callable
        Whether a value may be the prompt.
    mapped : mapping of str to str
        A column map that belongs to the shape: once applied, its columns have our names.
    """

    name: str
    prompt: str | None
    needs: dict[str, Fits]
    answers: tuple[str, ...] = ()
    kind: Literal["prompt", "conversation", "votes"] = "prompt"
    more: str | None = None
    fit: Fits = is_prompt
    mapped: Mapping[str, str] = field(default_factory=dict)

    def fits(self, row: Row) -> bool:
        """Return whether a row has this shape."""
        if self.prompt is not None:
            if not self.fit(lookup(row, self.prompt)):
                return False
        return all(name in row and fit(row[name]) for name, fit in self.needs.items())

    def named(self) -> Known:
        """Return the shape as it is once its own map is applied."""
        answers = tuple(name for name in ("chosen", "rejected") if name in self.mapped)
        return replace(self, prompt="prompt", answers=answers)

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the columns that become the prompt and the answers."""
        extra = ("winner",) if self.kind == "votes" else ()
        return tuple(filter(None, (self.prompt, *self.answers, *extra)))


def _is(*kinds: type) -> Fits:
    return lambda value: type(value) in kinds


def _pairs(prompt: str) -> Known:
    name = "preference" if prompt == "prompt" else f"preference, {prompt}"
    needs: dict[str, Fits] = {"chosen": is_answer, "rejected": is_answer}
    more = "input" if prompt == "instruction" else None
    return Known(name, prompt, needs, ("chosen", "rejected"), more=more)


KNOWN = (
    *map(_pairs, ("prompt", "question", "instruction", "query", "problem", "input")),
    Known(
        "implicit preference",
        None,
        {"chosen": is_dialogue, "rejected": is_dialogue},
        ("chosen", "rejected"),
    ),
    Known(
        "arena votes",
        None,
        {"conversation_a": is_messages, "conversation_b": is_messages, "winner": _is(str)},
        ("conversation_a", "conversation_b"),
        kind="votes",
    ),
    Known(
        "NeMo Gym",
        "responses_create_params.input",
        {},
        mapped={
            "prompt": "responses_create_params.input",
            "system": "responses_create_params.instructions",
            "tools": "responses_create_params.tools",
        },
    ),
    Known(
        "OpenAI preference",
        "input.messages",
        {"preferred_output": is_messages, "non_preferred_output": is_messages},
        mapped={
            "prompt": "input.messages",
            "tools": "input.tools",
            "chosen": "preferred_output",
            "rejected": "non_preferred_output",
        },
    ),
    Known("verl", "prompt", {"reward_model": _is(dict)}),
    Known("unpaired preference", "prompt", {"completion": is_answer, "label": _is(bool)}),
    Known("prompt-completion", "prompt", {"completion": is_answer}),
    Known("prompt-only", "prompt", {}),
    Known("context_messages", "context_messages", {}),
    *(
        Known(name, column, {}, kind="conversation", fit=is_messages)
        for name, column in (
            ("messages", "messages"),
            ("ShareGPT", "conversations"),
            ("conversation", "conversation"),
        )
    ),
    Known("question", "question", {}),
    Known("problem", "problem", {}),
    Known("query", "query", {}),
    Known("instruction", "instruction", {}, more="input"),
    Known("inputs", "inputs", {}),
    Known("input", "input", {}),
    Known("text", "text", {}, kind="conversation"),
)
