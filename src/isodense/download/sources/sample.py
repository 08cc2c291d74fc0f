"""Source ``sample``: a synthetic data set that comes with the package.

Every text here was written for this project, by a language model, and the rows are filled-in
templates: no person asked these questions and nobody rated these answers. The set exists so that
the pipeline runs without a network, in tests and on a first look, and so that there is data whose
true make-up is known. It is good for that: 70 intents, kept in ``label``, whose frequencies follow
a power law; paraphrases (many templates per intent); light edits and exact repeats of earlier
prompts, in set shares; some prompts of several turns. It is not good for training a model that
anyone will use, for judging one, or for claims about real traffic, and the facts in the answers
were written with care but are no reference.

The texts are in ``sample_head.yaml`` and ``sample_tail.yaml``, intents in rank order. An entry has
``intent``, ``entities`` (mappings of slots), ``prompts``, ``chosen`` and ``wrong`` (templates over
the slots of one entity; in ``wrong``, ``{other_x}`` is the slot ``x`` of another entity, with
another value) and perhaps ``dialogues`` (turns of user and assistant; the last is the user's).

How a row comes about. The intents get their shares of ``pairs`` by largest remainder, at least one
row each. Of an intent's rows some are *fresh* (a template and an entity not combined before, a
fifth of them typed carelessly), some *near-duplicates* (an earlier fresh prompt with other case,
punctuation, politeness, spaces or a slip of the finger) and some *copies* (an earlier prompt as it
was; the answers are drawn anew). Near-duplicates are spread evenly, copies gather in the frequent
intents and on their earliest prompts, as in real traffic. Rows differ only by a trailing space now
and then, so the ``prompts`` stage merges a few more than ``duplicates`` says.

``chosen`` is a short good answer. ``rejected`` has one of five flaws: a wrong fact, off topic,
padded, cut off, rude. The long flaws balance the short ones, so that length gives nothing away:
"the longer answer is the better one" is right about half of the time.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from isodense.pipeline.params import param

Turns = tuple[str, ...]
Edit = Callable[[str, np.random.Generator], str]

FILES = ("sample_head.yaml", "sample_tail.yaml")
FRESH, NEAR, COPY = range(3)
CARELESS = 0.2  # share of fresh prompts typed in lower case
SECOND_EDIT = 0.3  # chance that a near-duplicate differs in two ways
ANSWERED = 0.35  # share of padded answers that say it after all


@dataclass(frozen=True)
class SampleParams:
    """Params section ``download.sample``.

    Parameters
    ----------
    pairs : int
        Rows to make.
    exponent : float
        Rank r of the intents gets a share of rows proportional to ``r ** -exponent``.
    duplicates : float
        Share of rows that repeat an earlier prompt exactly.
    near_duplicates : float
        Share of rows whose prompt is a light edit of an earlier one.
    multi_turn : float
        Share of fresh prompts drawn from dialogues, in intents that have some.
    """

    pairs: int = param(minimum=1, maximum=1_000_000)
    exponent: float = param(minimum=0.0, maximum=3.0)
    duplicates: float = param(minimum=0.0, maximum=0.9)
    near_duplicates: float = param(minimum=0.0, maximum=0.9)
    multi_turn: float = param(minimum=0.0, maximum=1.0)

    def faults(self) -> list[str]:
        """Return what is wrong between fields."""
        if self.duplicates + self.near_duplicates < 1:
            return []
        return [
            f"duplicates ({self.duplicates}) and near_duplicates ({self.near_duplicates}) "
            "must sum to less than 1, or no row is left to be copied"
        ]


@dataclass(frozen=True)
class Intent:
    """One entry of the YAML files."""

    intent: str
    entities: list[dict[str, str]]
    prompts: list[str]
    chosen: list[str]
    wrong: list[str]
    dialogues: list[list[str]] = field(default_factory=list)


def load(params: SampleParams, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield preference pairs in TRL's conversational format.

    Parameters
    ----------
    params : SampleParams
        Size and shape of the set.
    rng : Generator
        The only source of chance: the same state gives the same rows.

    Yields
    ------
    dict
        ``prompt``, ``chosen``, ``rejected`` (lists of messages) and ``label``, the intent.
        Intents are mixed, and a near-duplicate comes after its original.
    """
    intents = read_intents()
    rows = intent_counts(params.pairs, params.exponent, len(intents))
    copies, near = copy_counts(rows, params.duplicates, params.near_duplicates)
    sizes = zip(rows.tolist(), near.tolist(), copies.tolist(), strict=True)
    writers = [
        _Writer(intent, _kinds(*size, rng), params.multi_turn, rng)
        for intent, size in zip(intents, sizes, strict=True)
    ]
    for rank in rng.permutation(np.repeat(np.arange(len(intents)), rows)).tolist():
        turns, chosen, rejected = writers[rank].row(intents, rng)
        yield {
            "prompt": [
                {"role": "assistant" if turn % 2 else "user", "content": text}
                for turn, text in enumerate(turns)
            ],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "label": intents[rank].intent,
        }


def read_intents() -> list[Intent]:
    """Return the intents of both files, most frequent first."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    folder = resources.files("isodense.download.sources")
    texts = [folder.joinpath(name).read_text(encoding="utf-8") for name in FILES]
    entries = [entry for text in texts for entry in yaml.load(text, Loader=loader)]  # noqa: S506
    return [Intent(**entry) for entry in entries]


def intent_counts(pairs: int, exponent: float, intents: int) -> npt.NDArray[np.int64]:
    """Return the rows of each rank: a power law, rounded to sum to `pairs`.

    Where `pairs` allows, every rank has at least one row.

    Examples
    --------
    >>> intent_counts(26, 1.0, 4).tolist()
    [13, 6, 4, 3]
    """
    ranks = np.arange(1, intents + 1, dtype=np.float64)
    rows = _apportion(pairs, ranks**-exponent, np.full(intents, pairs))
    while rows.min() == 0 and rows.max() > 1:
        rows[rows.argmax()] -= 1
        rows[rows.argmin()] += 1
    return rows


def copy_counts(
    rows: npt.NDArray[np.int64], duplicates: float, near_duplicates: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return how many of each intent's rows are copies, and how many are near-duplicates.

    The first row of an intent is never a copy; if that leaves too few places, there are fewer
    copies than asked for. Copies go by the power 3/2 of the row counts, near-duplicates by the
    counts.
    """
    pairs = int(rows.sum())
    places = np.maximum(rows - 1, 0)
    weights = rows.astype(np.float64)
    copies = _apportion(round(duplicates * pairs), weights * np.sqrt(weights), places)
    near = _apportion(round(near_duplicates * pairs), weights, places - copies)
    return copies, near


def _apportion(
    total: int, weights: npt.NDArray[np.float64], caps: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Split `total` in proportion to `weights` by largest remainder, none above its cap."""
    given = np.zeros(len(weights), dtype=np.int64)
    while (left := min(total, int(caps.sum())) - int(given.sum())) > 0:
        free = np.where(given < caps, weights, 0.0)
        # Rounded, because the last bits of powers and sums differ between platforms.
        quota = np.round(left * free / free.sum(), 9)
        whole = np.floor(quota).astype(np.int64)
        order = np.argsort(whole - quota, kind="stable")
        whole[order[: left - int(whole.sum())]] += 1
        given = np.minimum(given + whole, caps)
    return given


def _kinds(rows: int, near: int, copies: int, rng: np.random.Generator) -> Iterator[int]:
    """Return the kinds of an intent's rows in random order, a fresh one first."""
    kinds = [FRESH] * (rows - near - copies) + [NEAR] * near + [COPY] * copies
    kinds = [kinds[i] for i in rng.permutation(rows).tolist()]
    if kinds:
        first = kinds.index(FRESH)
        kinds[0], kinds[first] = kinds[first], kinds[0]
    return iter(kinds)


class _Writer:
    """Writes the rows of one intent, one after the other, and remembers its prompts."""

    def __init__(
        self, intent: Intent, kinds: Iterator[int], multi_turn: float, rng: np.random.Generator
    ) -> None:
        self.intent = intent
        self.kinds = kinds
        self.multi_turn = multi_turn if intent.dialogues else 0.0
        singles = [[prompt] for prompt in intent.prompts]
        self.singles = _combinations(singles, len(intent.entities), rng)
        self.dialogues = _combinations(intent.dialogues, len(intent.entities), rng)
        self.fresh: list[tuple[Turns, int]] = []
        self.written: list[tuple[Turns, int]] = []
        self.seen: set[Turns] = set()

    def row(self, intents: list[Intent], rng: np.random.Generator) -> tuple[Turns, str, str]:
        kind = next(self.kinds)
        if kind == COPY:
            turns, entity = _pick_early(self.written, rng)
        elif kind == NEAR:
            turns, entity = _pick_early(self.fresh, rng)
            turns = self._unseen(_edited(turns, 1 + (rng.random() < SECOND_EDIT), rng), rng)
        else:
            turns, entity = self._compose(rng)
            self.fresh.append((turns, entity))
        self.written.append((turns, entity))
        self.seen.add(turns)
        return turns, *_answers(intents, self.intent, entity, rng)

    def _compose(self, rng: np.random.Generator) -> tuple[Turns, int]:
        source = self.dialogues if rng.random() < self.multi_turn else self.singles
        templates, entity = next(source)
        turns = tuple(_fill(template, self.intent, entity, rng) for template in templates)
        if rng.random() < CARELESS:
            turns = (*turns[:-1], _careless(turns[-1], rng))
        return self._unseen(turns, rng), entity

    def _unseen(self, turns: Turns, rng: np.random.Generator) -> Turns:
        while turns in self.seen:
            turns = _edited(turns, 1, rng)
        return turns


def _combinations(
    templates: list[list[str]], entities: int, rng: np.random.Generator
) -> Iterator[tuple[list[str], int]]:
    """Yield all pairs of a template and an entity in random order, over and over."""
    while templates:
        for code in rng.permutation(len(templates) * entities).tolist():
            yield templates[code // entities], code % entities


def _pick_early(prompts: list[tuple[Turns, int]], rng: np.random.Generator) -> tuple[Turns, int]:
    """Return a random prompt, an early one more often: some prompts are everyone's."""
    return prompts[int(len(prompts) * rng.random() * rng.random())]


def _pick(options: list[Any] | tuple[Any, ...], rng: np.random.Generator) -> Any:
    return options[int(rng.integers(len(options)))]


def _fill(template: str, intent: Intent, entity: int, rng: np.random.Generator) -> str:
    slots = intent.entities[entity]
    others = _others(template)
    if others:
        start = int(rng.integers(len(intent.entities)))
        for offset in range(len(intent.entities)):
            other = intent.entities[(start + offset) % len(intent.entities)]
            if all(other[name] != slots[name] for name in others):
                break
        slots = slots | {f"other_{name}": other[name] for name in others}
    return template.format_map(slots)


@functools.cache
def _others(template: str) -> tuple[str, ...]:
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    return tuple(name.removeprefix("other_") for name in names if name.startswith("other_"))


# --- Light edits of a prompt -----------------------------------------------------------------

_GREETINGS = ("Hi! ", "Hello! ", "Hey! ", "Hi there. ", "Good morning! ", "Quick question. ")
_THANKS = (" Thanks!", " Thank you!", " Thanks in advance.", " Cheers!", " Please and thank you.")
_PLEAS = (" please", " thanks", " thx", " pls", " plz", ", please")


def _edited(turns: Turns, times: int, rng: np.random.Generator) -> Turns:
    """Edit the last turn until it has changed `times` times."""
    text = turns[-1]
    edits = _EDITS if len(turns) == 1 else _EDITS_WITHIN
    while times:
        changed = _pick(edits, rng)(text, rng)
        times -= changed != text
        text = changed
    return (*turns[:-1], text)


def _careless(text: str, rng: np.random.Generator) -> str:
    """Return short, plain text in lower case, without its full stop or question mark."""
    if len(text) > 100 or re.search(r'["“`:°\n]', text):
        return text
    text = text.lower()
    return text if text.endswith("..") else text.removesuffix(".").removesuffix("?")


def _end_differently(text: str, rng: np.random.Generator) -> str:
    if text.endswith("?"):
        return _pick((text[:-1], text + "?", text[:-1] + " ?"), rng)
    if text.endswith((".", "!")):
        return text[:-1]
    return text + "." if text[-1:].isalnum() else text


def _greet(text: str, rng: np.random.Generator) -> str:
    if re.match("(hi|hello|hey|good|quick|ok|and|so|yes|yeah)\\b", text, re.IGNORECASE):
        return text
    greeting: str = _pick(_GREETINGS, rng)
    return (greeting.lower() if text[:1].islower() else greeting) + text


def _thank(text: str, rng: np.random.Generator) -> str:
    if re.search("please|pls|plz|thank|thx|cheers", text, re.IGNORECASE):
        return text
    return text + _pick(_PLEAS if text[-1:].isalnum() else _THANKS, rng)


def _drop_apostrophe(text: str, rng: np.random.Generator) -> str:
    return re.sub(r"(?<=[a-zI])'(?=(s|m|t|d|ll|re|ve)\b)", "", text)


def _slip(text: str, rng: np.random.Generator) -> str:
    """Swap, drop or double one letter inside a lower-case word."""
    words = list(re.finditer(r"\b[a-z]{5,}\b", text))
    if not words:
        return text
    word = _pick(words, rng)
    at = word.start() + int(rng.integers(1, len(word.group()) - 2))
    one, two = text[at], text[at + 1]
    return text[:at] + _pick((two + one, two, one + one + two), rng) + text[at + 2 :]


def _pad(text: str, rng: np.random.Generator) -> str:
    return text + " "


# How often an edit is listed says how likely it is; nobody greets in mid-conversation.
_EDITS_WITHIN: tuple[Edit, ...] = (
    *(_careless, _careless, _end_differently, _end_differently),
    *(_thank, _thank, _drop_apostrophe, _slip, _slip, _pad),
)
_EDITS: tuple[Edit, ...] = (*_EDITS_WITHIN, _greet, _greet)


# --- Answers ---------------------------------------------------------------------------------

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


def _answers(
    intents: list[Intent], intent: Intent, entity: int, rng: np.random.Generator
) -> tuple[str, str]:
    """Return a good answer and a flawed one that differs from it."""
    chosen = _answer(intent.chosen, intent, entity, rng)
    rejected = chosen
    while rejected == chosen:
        rejected = _flawed(chosen, intents, intent, entity, rng)
    return chosen, rejected


def _answer(templates: list[str], intent: Intent, entity: int, rng: np.random.Generator) -> str:
    return _upper_first(_fill(_pick(templates, rng), intent, entity, rng))


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
    other = _pick([other for other in intents if other.intent != intent.intent], rng)
    return _answer(other.chosen, other, int(rng.integers(len(other.entities))), rng)


def _padded(chosen: str, rng: np.random.Generator) -> str:
    answer = [chosen] if rng.random() < ANSWERED else []
    parts = [_pick(_OPENERS, rng), _pick(_MIDDLES, rng), *answer, _pick(_CLOSERS, rng)]
    return " ".join(parts)


def _cut(chosen: str, rng: np.random.Generator) -> str:
    """Return `chosen` broken off inside a clause, or an empty text where that can't be done."""
    words = chosen.split(" ")
    ends = [n for n in range(2, 1 + 3 * len(words) // 4) if words[n - 1][-1:].isalnum()]
    late = [n for n in ends if n >= len(words) // 3]
    return " ".join(words[: _pick(late, rng)]) if late else ""


def _rude(slots: dict[str, str], rng: np.random.Generator) -> str:
    """Return a rude remark, perhaps on the first slot if it is a short phrase."""
    topic = next(iter(slots.values()))
    short = topic[:1].isalpha() and len(topic) <= 24 and topic.count(" ") <= 2
    remarks = _RUDE if short else [remark for remark in _RUDE if "{Topic}" not in remark]
    return str(_pick(remarks, rng)).format(Topic=_upper_first(topic))


def _upper_first(text: str) -> str:
    formula = re.match(r"[a-z] ?[=^(\d]", text)
    return text if formula else text[:1].upper() + text[1:]
