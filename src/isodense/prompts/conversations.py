"""What makes two prompts the same prompt, and which prompts are held out.

A prompt is a conversation: a list of ``{"role", "content"}`` messages whose last one is the
user's. Its canonical form applies Unicode NFC and folds white space, and its id is a hash of that
form: the same conversation has the same id in every data set, on every machine, for ever.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata

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


def prompt_id(messages: list[Message]) -> str:
    """Return the prompt's id: 32 hex digits of SHA-256 of the canonical conversation as JSON."""
    text = json.dumps(
        canonical(messages), sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_heldout(identifier: str, fraction: float) -> bool:
    """Return whether a prompt is in the held-out split.

    The id is itself a uniform hash, so this depends on nothing but the prompt: appending data
    never moves a prompt from one split to the other, and a larger `fraction` only adds prompts.

    Parameters
    ----------
    identifier : str
        The prompt's id, hex digits.
    fraction : float
        Share of prompts held out, in [0, 1).
    """
    return int(identifier[:16], 16) < fraction * 2**64


def encoder_text(messages: list[Message]) -> str:
    """Return what the encoder reads: the user's words, or the labelled turns of a dialogue.

    System messages and chat templates are left out: boilerplate that many prompts share would draw
    them all together.
    """
    messages = [
        message
        for message in canonical(messages)
        if message["content"] and message["role"] != "system"
    ]
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
