"""Identity of prompts: canonical form, id, split and the text to embed.

A prompt is a conversation: a list of ``{"role", "content"}`` messages that ends with a user
message. The canonical form applies Unicode NFC and folds white space, and the id is a hash of that
form: a conversation has the same id in every data set and on every machine.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from typing import Any

Message = dict[str, str]


def canonical(messages: list[Message]) -> list[Message]:
    r"""Return the conversation with NFC text, runs of white space as one space, ends stripped.

    Examples
    --------
    >>> canonical([{"role": "user", "content": "  What  is\nNFC? "}])
    [{'role': 'user', 'content': 'What is NFC?'}]
    """
    return [
        {
            "role": message["role"],
            "content": " ".join(unicodedata.normalize("NFC", message["content"]).split()),
        }
        for message in messages
    ]


def prompt_id(messages: list[Message], tools: Any = None) -> str:
    """Return the id of a prompt: 32 hex digits of SHA-256 of the canonical conversation as JSON."""
    text = json.dumps(
        canonical(messages), sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


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

    System messages and chat templates are left out, since text that many prompts share would make
    their embeddings similar.
    """
    messages = [
        message
        for message in canonical(messages)
        if message["content"] and message["role"] != "system"
    ]
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
