"""A prompt or an answer, as a string or as messages, read into messages."""

from __future__ import annotations

import logging
from typing import Any

from isodense.download import markup
from isodense.download.messages import Message, json_messages, messages_fault, normalised

log = logging.getLogger("isodense")


class Text:
    """A prompt or an answer as messages, or the reason why it is none.

    A string is a message of the user, or, as an answer, of the assistant.

    Parameters
    ----------
    value : str or list of dict
    noted : set of str
        Keys of messages that were said to be left out; each is said once.
    family : str
        Of an answer: the markup in which its prompt is written.
    whole : bool
        Whether the value is an answer or a conversation with its answer.

    Attributes
    ----------
    family : str
        The markup that the value was parsed from, empty if it was none.
    messages : list of dict
        Valid messages, empty if there is a reason.
    reason : str
        Why there are none.
    """

    def __init__(
        self,
        value: Any,
        noted: set[str],
        family: str = "",
        whole: bool = False,
    ) -> None:
        self.value = value
        self.family = ""
        self.messages: list[Message] = []
        self.reason = ""
        found = self._strings(value, family, whole) if isinstance(value, str) else None
        if found is None:
            left_out: set[str] = set()
            found = normalised(value, left_out)
            _note_keys(left_out, noted)
            if not isinstance(found, str):
                found = self._unwrapped(found) if not whole else _without_end(found, family)
        fault = found if isinstance(found, str) else messages_fault(found)
        if isinstance(found, str) or fault:
            self.reason = fault or ""
        else:
            self.messages = found

    def _strings(self, text: str, family: str, whole: bool) -> list[Message] | str | None:
        held = json_messages(text)
        if held is not None:
            return normalised(held)
        parsed = markup.parse(text, whole)
        if isinstance(parsed, str):
            return parsed
        if parsed is not None:
            self.family = parsed.family
            return parsed.messages
        if whole:
            return [{"role": "assistant", "content": markup.without_end(text, family)}]
        return [{"role": "user", "content": text}]

    def _unwrapped(self, messages: list[Message]) -> list[Message] | str:
        """Return messages of which a user's only one may hold a whole conversation as markup."""
        for number, message in enumerate(messages, start=1):
            if message["role"] != "user":
                continue
            parsed = markup.parse(message["content"])
            if not isinstance(parsed, markup.Parsed) or parsed.family in ("HH", "Alpaca"):
                continue
            if len(messages) > 1:
                return f"message {number} holds {parsed.family}'s chat markup"
            self.family = parsed.family
            return parsed.messages
        return messages


def _without_end(messages: list[Message], family: str) -> list[Message]:
    """Return messages of which the last has no end token of the markup of its prompt."""
    last = messages[-1]
    if not family or last["role"] != "assistant" or not last["content"]:
        return messages
    return [*messages[:-1], last | {"content": markup.without_end(last["content"], family)}]


def _note_keys(left_out: set[str], noted: set[str]) -> None:
    for key in sorted(left_out - noted):
        log.warning("messages have the key %s, which is left out", key)
    noted |= left_out
