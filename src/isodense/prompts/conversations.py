"""Identity of prompts: canonical form, id, split and the text to embed.

A prompt is a conversation: a list of ``{"role", "content"}`` messages that ends with a user message
or a tool's result. The canonical form applies Unicode NFC and folds white space, and the id is a
hash of that form: a conversation has the same id in every data set and on every machine.

Calls of tools, the names of speakers and the tools on offer belong to the identity; the ids that
link a call to its result do not, since servers draw them at random.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from typing import Any

Message = dict[str, Any]

INSTRUCTIONS = ("system", "developer")  # roles that are not embedded


def canonical(messages: list[Message]) -> list[Message]:
    r"""Return the conversation with NFC text, runs of white space as one space, ends stripped.

    Of a tool call the name and the arguments are kept, as an object if they are JSON.

    Examples
    --------
    >>> canonical([{"role": "user", "content": "  What  is\nNFC? "}])
    [{'role': 'user', 'content': 'What is NFC?'}]
    """
    return [_canonical(message) for message in messages]


def _canonical(message: Message) -> Message:
    found = {"role": message["role"], "content": _folded(message["content"] or "")}
    if message.get("name"):
        found["name"] = message["name"]
    if message.get("tool_calls"):
        found["tool_calls"] = [_call(call["function"]) for call in message["tool_calls"]]
    return found


def _call(function: dict[str, Any]) -> dict[str, Any]:
    arguments = _decoded(function.get("arguments"))
    return {"function": {"name": function["name"], "arguments": arguments or {}}}


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _decoded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def prompt_id(messages: list[Message], tools: Any = None) -> str:
    """Return the id of a prompt: 32 hex digits of SHA-256 of the canonical conversation as JSON.

    Parameters
    ----------
    messages : list of dict
        The conversation.
    tools : list of dict or str, optional
        The JSON schemas of the tools on offer, or their JSON text. With any, the text hashed is
        ``{"messages": …, "tools": …}``.

    Examples
    --------
    >>> prompt_id([{"role": "user", "content": "2+2?"}])
    'ed60fcb984823fb08a61e2746b42e912'
    """
    held = _decoded(tools)
    found = canonical(messages)
    text = _compact({"messages": found, "tools": held} if held else found)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def id_of(row: Mapping[str, Any]) -> str:
    """Return the id of the prompt in an example or a row of prompts, its tools included."""
    return prompt_id(row["prompt"], row.get("tools"))


def is_heldout(identifier: str, fraction: float) -> bool:
    """Return whether a prompt is in the held-out split.

    The id is a uniform hash, so the split depends on the prompt only: appending data never moves a
    prompt from one split to the other, and a larger `fraction` only adds prompts.

    Parameters
    ----------
    identifier : str
        The prompt's id, hex digits.
    fraction : float
        Share of prompts held out, in [0, 1).
    """
    return int(identifier[:16], 16) < fraction * 2**64


def encoder_text(messages: list[Message]) -> str:
    """Return the text to embed: the user message, or the turns of a dialogue with their roles.

    System and developer messages and chat templates are left out, since text that many prompts
    share would make their embeddings similar. Calls of tools and their results are in it.

    Examples
    --------
    >>> call = {"function": {"name": "calc", "arguments": {"sum": "2+2"}}}
    >>> print(encoder_text([{"role": "user", "content": "2+2?"},
    ...                     {"role": "assistant", "content": None, "tool_calls": [call]},
    ...                     {"role": "tool", "content": "4", "name": "calc"}]))
    user: 2+2?
    assistant: calc({"sum":"2+2"})
    tool: 4
    """
    turns = [
        (message["role"], _spoken(message))
        for message in canonical(messages)
        if message["role"] not in INSTRUCTIONS
    ]
    turns = [(role, text) for role, text in turns if text]
    if len(turns) == 1:
        return turns[0][1]
    return "\n".join(f"{role}: {text}" for role, text in turns)


def _spoken(message: Message) -> str:
    """Return the text of a canonical message with its tool calls behind it."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    texts = [f"{call['name']}({_compact(call['arguments'])})" for call in calls]
    return " ".join(filter(None, (message["content"], *texts)))
