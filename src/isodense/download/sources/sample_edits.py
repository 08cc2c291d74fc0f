"""Light edits of a prompt, which make near-duplicates of the sample."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from isodense.download.sources.sample_intents import pick

Turns = tuple[str, ...]
Edit = Callable[[str, np.random.Generator], str]

_GREETINGS = ("Hi! ", "Hello! ", "Hey! ", "Hi there. ", "Good morning! ", "Quick question. ")
_THANKS = (" Thanks!", " Thank you!", " Thanks in advance.", " Cheers!", " Please and thank you.")
_PLEAS = (" please", " thanks", " thx", " pls", " plz", ", please")


def edit(turns: Turns, times: int, rng: np.random.Generator) -> Turns:
    """Edit the last turn until it has changed `times` times."""
    text = turns[-1]
    edits = _EDITS if len(turns) == 1 else _EDITS_WITHIN
    while times:
        changed = pick(edits, rng)(text, rng)
        times -= changed != text
        text = changed
    return (*turns[:-1], text)


def careless(text: str, rng: np.random.Generator) -> str:
    """Return short, plain text in lower case, without its full stop or question mark."""
    if len(text) > 100 or re.search(r'["“`:°\n]', text):
        return text
    text = text.lower()
    return text if text.endswith("..") else text.removesuffix(".").removesuffix("?")


def _end_differently(text: str, rng: np.random.Generator) -> str:
    if text.endswith("?"):
        return pick((text[:-1], text + "?", text[:-1] + " ?"), rng)
    if text.endswith((".", "!")):
        return text[:-1]
    return text + "." if text[-1:].isalnum() else text


def _greet(text: str, rng: np.random.Generator) -> str:
    if re.match("(hi|hello|hey|good|quick|ok|and|so|yes|yeah)\\b", text, re.IGNORECASE):
        return text
    greeting: str = pick(_GREETINGS, rng)
    return (greeting.lower() if text[:1].islower() else greeting) + text


def _thank(text: str, rng: np.random.Generator) -> str:
    if re.search("please|pls|plz|thank|thx|cheers", text, re.IGNORECASE):
        return text
    return text + pick(_PLEAS if text[-1:].isalnum() else _THANKS, rng)


def _drop_apostrophe(text: str, rng: np.random.Generator) -> str:
    return re.sub(r"(?<=[a-zI])'(?=(s|m|t|d|ll|re|ve)\b)", "", text)


def _mistype(text: str, rng: np.random.Generator) -> str:
    """Swap, drop or double one letter inside a lower-case word."""
    words = list(re.finditer(r"\b[a-z]{5,}\b", text))
    if not words:
        return text
    word = pick(words, rng)
    at = word.start() + int(rng.integers(1, len(word.group()) - 2))
    one, two = text[at], text[at + 1]
    return text[:at] + pick((two + one, two, one + one + two), rng) + text[at + 2 :]


def _append_space(text: str, rng: np.random.Generator) -> str:
    return text + " "


# An edit that is listed twice is twice as likely; nobody greets in the middle of a conversation.
_EDITS_WITHIN: tuple[Edit, ...] = (
    *(careless, careless, _end_differently, _end_differently),
    *(_thank, _thank, _drop_apostrophe, _mistype, _mistype, _append_space),
)
_EDITS: tuple[Edit, ...] = (*_EDITS_WITHIN, _greet, _greet)
