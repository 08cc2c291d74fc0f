"""Answers of the sample: a good one, and one with a flaw."""

from __future__ import annotations

import re

import numpy as np

from isodense.download.sources.sample_intents import Intent, fill, pick

ANSWERED = 0.35  # share of padded answers that contain the answer after all

_RUDE = (
    "Look it up yourself.",
    "What a stupid question. Next.",
    "I've got better things to do than answer that.",
    "Are you serious? A child could answer that.",
    "Nobody cares. Stop wasting my time.",
    "No. Figure it out on your own for once.",
    "Ugh, not this again. Use a search engine like everybody else.",
    "If you don't know that, I really can't help you. Nobody can.",
    "I'm not your servant, so do your own homework.",
    "Wow, that must be the laziest question I've had all day. Try thinking before you type.",
    "I could tell you, but you wouldn't understand it anyway, so let's not bother.",
    "Whatever. Ask somebody who is paid enough to put up with you.",
    "{Topic}? Seriously? You should be embarrassed to ask.",
    "{Topic}, of all things. Get a life.",
    "{Topic}? I'm not going to waste a second of my day on that.",
    "{Topic}? Honestly, I can't believe that there are people who still don't know this.",
)
_OPENERS = (
    "That's a really interesting question, and I'm glad you brought it up.",
    "Well, there are many ways to look at this.",
    "As with so many things in life, it depends.",
    "Before I get to that, let me say a few words about questions in general.",
    "Thank you so much for reaching out to me with this today!",
    "People have wondered about matters of this kind for a very long time.",
    "I completely understand why someone would want to know this.",
    "Let me start at the very beginning, as that's usually a good place to start.",
    "What a wonderful topic this is.",
    "I'd be more than happy to talk about this with you.",
    "Ah, now that's something I get asked all the time.",
    "Good that you ask, because far too few people do.",
    "Where should I begin?",
    "Let me think out loud for a moment here.",
    "This is one of those questions that seem simple at first sight.",
    "First of all, I want to stress that there are no stupid questions.",
)
_MIDDLES = (
    "There are several aspects to consider, and each of them deserves careful attention.",
    "Some people say one thing and others say another, and both sides have good points.",
    "It's important to keep the context in mind, because context is always important.",
    "One could go into a lot of detail here, and perhaps at some point one should.",
    "In a world that is changing faster every day, such things matter more than ever.",
    "Experts and ordinary people alike have thought about it from many different angles.",
    "Of course it all comes down to your own situation, goals and preferences.",
    "Having said that, it's worth taking a step back to see the bigger picture.",
    "I could mention a number of sources, though they don't always agree with each other.",
    "Much has been written on the subject, and no doubt much more will be.",
    "What matters is to stay curious, to keep an open mind and to trust the process.",
    "You may already know part of it, and the rest tends to follow once you look into it.",
    "Some would start with the history, others with the basics, and I can see why.",
    "Generally speaking, and without going into specifics, one has to weigh things up.",
)
_CLOSERS = (
    "In the end, only you can decide what that means for you.",
    "I hope this gives you a good overview, and do let me know if you have more questions!",
    "All in all, it's a fascinating subject with a lot to discover.",
    "So, to sum up, there's a lot to be said about this.",
    "Feel free to come back any time if there's anything else on your mind.",
    "As you can see, the matter is more complex than it looks at first.",
    "And that, in a nutshell, is how I'd approach the question.",
    "It never hurts to do a bit of research and to ask around, either.",
    "I trust that this clears things up!",
    "There's certainly more to it, but that should do for today.",
    "Whatever you conclude, it's great that you're thinking about it.",
    "Let me know whether you'd like me to go on in this direction.",
)


def draw_answers(
    intents: list[Intent], intent: Intent, entity: int, rng: np.random.Generator
) -> tuple[str, str]:
    """Draw a good answer and a flawed one that differs from it.

    Parameters
    ----------
    intents : list of Intent
        All intents; answers that are off topic come from another one.
    intent : Intent
        The intent of the prompt.
    entity : int
        Number of the entity that the prompt asks about.
    rng : Generator
        Draws template and flaw.

    Returns
    -------
    chosen, rejected : str
        The good and the flawed answer.
    """
    chosen = _answer(intent.chosen, intent, entity, rng)
    rejected = chosen
    while rejected == chosen:
        rejected = _flawed(chosen, intents, intent, entity, rng)
    return chosen, rejected


def _answer(templates: list[str], intent: Intent, entity: int, rng: np.random.Generator) -> str:
    return _upper_first(fill(pick(templates, rng), intent, entity, rng))


def _flawed(
    chosen: str, intents: list[Intent], intent: Intent, entity: int, rng: np.random.Generator
) -> str:
    """Draw a flaw: wrong 36%, off topic 20%, padded 22%, cut off 11%, rude 11%."""
    chance = rng.random()
    if chance < 0.20:
        return _off_topic(intents, intent, rng)
    if chance < 0.42:
        return _padded(chosen, rng)
    if chance < 0.53:
        return _cut(chosen, rng) or _rude(intent.entities[entity], rng)
    if chance < 0.64:
        return _rude(intent.entities[entity], rng)
    return _answer(intent.wrong, intent, entity, rng)


def _off_topic(intents: list[Intent], intent: Intent, rng: np.random.Generator) -> str:
    other = pick([other for other in intents if other.intent != intent.intent], rng)
    return _answer(other.chosen, other, int(rng.integers(len(other.entities))), rng)


def _padded(chosen: str, rng: np.random.Generator) -> str:
    answer = [chosen] if rng.random() < ANSWERED else []
    parts = [pick(_OPENERS, rng), pick(_MIDDLES, rng), *answer, pick(_CLOSERS, rng)]
    return " ".join(parts)


def _cut(chosen: str, rng: np.random.Generator) -> str:
    """Return `chosen` cut off inside a clause, or an empty text where no clause is long enough."""
    words = chosen.split(" ")
    ends = [n for n in range(2, 1 + 3 * len(words) // 4) if words[n - 1][-1:].isalnum()]
    late = [n for n in ends if n >= len(words) // 3]
    return " ".join(words[: pick(late, rng)]) if late else ""


def _rude(slots: dict[str, str], rng: np.random.Generator) -> str:
    """Return a rude remark, perhaps about the first slot if that is a short phrase."""
    topic = next(iter(slots.values()))
    short = topic[:1].isalpha() and len(topic) <= 24 and topic.count(" ") <= 2
    remarks = _RUDE if short else [remark for remark in _RUDE if "{Topic}" not in remark]
    return str(pick(remarks, rng)).format(Topic=_upper_first(topic))


def _upper_first(text: str) -> str:
    formula = re.match(r"[a-z] ?[=^(\d]", text)
    return text if formula else text[:1].upper() + text[1:]
