"""Source ``sample``: a synthetic data set that comes with the package.

A language model wrote every text here for this project, and the rows are filled-in templates: no
person asked these questions and nobody rated these answers. The set exists so that the pipeline
runs without a network, in tests and on a first look, and so that there is data with a known ground
truth: 70 intents, kept in ``label``, whose frequencies follow a power law; paraphrases (many
templates per intent); near-duplicates and exact duplicates of earlier prompts, in set shares; some
prompts of several turns. It does not suit training or judging a model that anyone will use, nor
claims about real traffic, and the facts in the answers were written with care but are no reference.

The texts are in ``sample_head.yaml`` and ``sample_tail.yaml``, intents in rank order. An entry has
``intent``, ``entities`` (mappings of slots), ``prompts``, ``chosen`` and ``wrong`` (templates over
the slots of one entity; in ``wrong``, ``{other_x}`` is the slot ``x`` of another entity, with
another value) and perhaps ``dialogues`` (turns of user and assistant; the last is the user's).
:mod:`isodense.download.sources.sample_intents` reads them.

How a row is made. The intents get their shares of ``pairs`` by largest remainder, at least one row
each. Some rows of an intent are *fresh* (a template and an entity not combined before, a fifth of
them in careless lower case), some *near-duplicates* (an earlier fresh prompt with other case,
punctuation, politeness, spaces or a typo, by :mod:`isodense.download.sources.sample_edits`) and
some *duplicates* (an earlier prompt unchanged; the answers are drawn again). Near-duplicates are
spread evenly; duplicates concentrate in the frequent intents and on the earliest prompts of an
intent, as in real traffic. A few near-duplicates differ by a trailing space only, so the
``prompts`` stage merges a few more rows than ``duplicates`` says.

``chosen`` is a short good answer. ``rejected`` has one of five flaws: a wrong fact, off topic,
padded, cut off, rude (:mod:`isodense.download.sources.sample_answers`). The long flaws balance the
short ones, so that length carries no signal: "the longer answer is the better one" is right about
half of the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from isodense.download.sources.sample_answers import draw_answers
from isodense.download.sources.sample_edits import Turns, careless, edit
from isodense.download.sources.sample_intents import Intent, fill, read_intents
from isodense.pipeline.params import CrossFieldError, Params
from isodense.synthetic.counts import duplicate_counts, power_law_counts

FRESH, NEAR_DUPLICATE, DUPLICATE = range(3)
CARELESS = 0.2  # share of fresh prompts in careless lower case
SECOND_EDIT = 0.3  # chance that a near-duplicate differs in two ways


class SampleParams(Params):
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

    pairs: int = Field(ge=1, le=1_000_000)
    exponent: float = Field(ge=0.0, le=3.0)
    duplicates: float = Field(ge=0.0, le=0.9)
    near_duplicates: float = Field(ge=0.0, le=0.9)
    multi_turn: float = Field(ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _some_rows_are_fresh(self) -> Self:
        if self.duplicates + self.near_duplicates >= 1:
            message = (
                f"duplicates ({self.duplicates}) and near_duplicates ({self.near_duplicates}) "
                "must sum to less than 1, or no row is left to be copied"
            )
            raise CrossFieldError([message])
        return self


def load(params: SampleParams, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield preference pairs in TRL's conversational format.

    Parameters
    ----------
    params : SampleParams
        Size and shape of the set.
    rng : Generator
        The only source of randomness: the same state gives the same rows.

    Yields
    ------
    dict
        ``prompt``, ``chosen``, ``rejected`` (lists of messages) and ``label``, the intent.
        Intents are shuffled, and a duplicate comes after its original.
    """
    intents = read_intents()
    rows = power_law_counts(params.pairs, params.exponent, len(intents))
    exact, near = duplicate_counts(rows, params.duplicates, params.near_duplicates)
    sizes = zip(rows.tolist(), near.tolist(), exact.tolist(), strict=True)
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


def _kinds(rows: int, near: int, exact: int, rng: np.random.Generator) -> Iterator[int]:
    """Return the kinds of an intent's rows in random order, a fresh one first."""
    kinds = [FRESH] * (rows - near - exact) + [NEAR_DUPLICATE] * near + [DUPLICATE] * exact
    kinds = [kinds[i] for i in rng.permutation(rows).tolist()]
    if kinds:
        first = kinds.index(FRESH)
        kinds[0], kinds[first] = kinds[first], kinds[0]
    return iter(kinds)


class _Writer:
    """Rows of one intent, written one after the other; earlier prompts can be repeated.

    Parameters
    ----------
    intent : Intent
        Templates and entities.
    kinds : iterator of int
        ``FRESH``, ``NEAR_DUPLICATE`` or ``DUPLICATE`` for each row.
    multi_turn : float
        Share of fresh prompts drawn from dialogues.
    rng : Generator
        Shuffles the combinations of templates and entities.
    """

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
        """Return the turns of the next row's prompt, the chosen and the rejected answer."""
        kind = next(self.kinds)
        if kind == DUPLICATE:
            turns, entity = _pick_early(self.written, rng)
        elif kind == NEAR_DUPLICATE:
            turns, entity = _pick_early(self.fresh, rng)
            turns = self._unseen(edit(turns, 1 + (rng.random() < SECOND_EDIT), rng), rng)
        else:
            turns, entity = self._compose(rng)
            self.fresh.append((turns, entity))
        self.written.append((turns, entity))
        self.seen.add(turns)
        return turns, *draw_answers(intents, self.intent, entity, rng)

    def _compose(self, rng: np.random.Generator) -> tuple[Turns, int]:
        """Return the turns of a fresh prompt and the number of the entity in it."""
        source = self.dialogues if rng.random() < self.multi_turn else self.singles
        templates, entity = next(source)
        turns = tuple(fill(template, self.intent, entity, rng) for template in templates)
        if rng.random() < CARELESS:
            turns = (*turns[:-1], careless(turns[-1], rng))
        return self._unseen(turns, rng), entity

    def _unseen(self, turns: Turns, rng: np.random.Generator) -> Turns:
        """Edit the turns until they are those of no earlier prompt."""
        while turns in self.seen:
            turns = edit(turns, 1, rng)
        return turns


def _combinations(
    templates: list[list[str]], entities: int, rng: np.random.Generator
) -> Iterator[tuple[list[str], int]]:
    """Yield all pairs of a template and an entity in random order, over and over."""
    while templates:
        for code in rng.permutation(len(templates) * entities).tolist():
            yield templates[code // entities], code % entities


def _pick_early(prompts: list[tuple[Turns, int]], rng: np.random.Generator) -> tuple[Turns, int]:
    """Return a random prompt, an early one more often: some prompts are asked by many people."""
    return prompts[int(len(prompts) * rng.random() * rng.random())]
