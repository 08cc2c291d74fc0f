"""Lopsided requests for 40 skills whose answers can be checked, made by seed: source ``skills``.

The set on which a benefit of sampling can be seen. Each request has one right answer of a few
letters (column ``answer``), and its skill is its ``label``
(:mod:`isodense.synthetic.families`). How common a skill is follows a power law whose
ranks are drawn by seed, so that over several seeds no skill is the rare one. The held-out requests
(column ``heldout``) are other ones, as many of each skill, so that rare skills count as much as
common ones. Of the same seed, :mod:`isodense.models.skills` makes a small policy that can answer
some of them.

A request is a template filled with a case, between an opening and an ending. A near-duplicate is
an earlier request with another opening and ending, a duplicate an earlier one unchanged. A language
model wrote the templates for this project, and nobody asked these questions: the set shows what
sampling does to training, not how good a policy is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import Field

from isodense.pipeline.errors import DataError
from isodense.pipeline.params import Params
from isodense.synthetic.counts import duplicate_counts, power_law_counts
from isodense.synthetic.families import Skill, skills

OPENINGS = ("Quick one: ", "Hi, ", "Please tell me: ", "For a quiz: ", "I forgot: ", "Hey. ")
ENDINGS = (" Thanks!", " Just the answer.", " Please.", " One word is enough.", " Be brief.")
PLAIN = 0.5  # chance that a request has no opening, and that it has no ending
TRIES = 2000  # at a request that was not drawn before


class SkillsParams(Params):
    """Params section ``download.skills``.

    Parameters
    ----------
    requests : int
        Training rows to make.
    exponent : float
        The skill of rank r gets a share of the rows proportional to ``r ** -exponent``.
    duplicates : float
        Share of rows that repeat an earlier request exactly.
    near_duplicates : float
        Share of rows that are an earlier request with another opening and ending.
    heldout : int
        Held-out requests of each skill.
    """

    requests: int = Field(ge=1, le=20_000)
    exponent: float = Field(ge=0.0, le=3.0)
    duplicates: float = Field(ge=0.0, le=0.4)
    near_duplicates: float = Field(ge=0.0, le=0.4)
    heldout: int = Field(ge=0, le=100)


@dataclass
class Requests:
    """Requests for one skill, none of them drawn twice.

    Attributes
    ----------
    skill : Skill
    rng : Generator
    seen : set of str
        Requests that are not to be drawn any more.
    """

    skill: Skill
    rng: np.random.Generator
    seen: set[str] = field(default_factory=set)

    def question(self) -> tuple[str, str]:
        """Return a template filled with a case, both at random, and the answer."""
        rng, skill = self.rng, self.skill
        slots, answer = skill.cases[int(rng.integers(len(skill.cases)))]
        return skill.templates[int(rng.integers(len(skill.templates)))].format(*slots), answer

    def draw(self, core: tuple[str, str] | None = None) -> tuple[str, tuple[str, str]]:
        """Return a new text, and the question and answer in it, which are `core` if given.

        Raises
        ------
        DataError
            If the texts of the skill run out.
        """
        for _ in range(TRIES):
            question, answer = core or self.question()
            text = self._between(OPENINGS) + question + self._between(ENDINGS)
            if text not in self.seen:
                self.seen.add(text)
                return text, (question, answer)
        message = f"the skill {self.skill.name} has no more requests than {len(self.seen):,}"
        raise DataError(message, "download.skills", hint="lower download.skills.requests")

    def _between(self, texts: tuple[str, ...]) -> str:
        plain = self.rng.random() < PLAIN
        return "" if plain else texts[int(self.rng.integers(len(texts)))]


def load(params: SkillsParams, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield requests as rows: the training rows in random order, then the held-out ones.

    Parameters
    ----------
    params : SkillsParams
        Size and shape of the set.
    rng : Generator
        The only source of randomness: the same state gives the same rows.

    Yields
    ------
    dict
        ``prompt``, ``answer``, ``label`` (the skill) and, of held-out rows, ``heldout``.

    Raises
    ------
    DataError
        If a skill has fewer requests than are asked for.
    """
    ranked, drawn, heldout = draw_heldout(params.heldout, rng)
    rows = power_law_counts(params.requests, params.exponent, len(ranked))
    exact, near = duplicate_counts(rows, params.duplicates, params.near_duplicates)
    queues = [
        iter(_training_rows(one, *size))
        for one, *size in zip(drawn, rows.tolist(), near.tolist(), exact.tolist(), strict=True)
    ]
    for rank in rng.permutation(np.repeat(np.arange(len(ranked)), rows)).tolist():
        yield next(queues[rank])
    for row in heldout:
        yield row | {"heldout": True}


def draw_heldout(
    size: int, rng: np.random.Generator
) -> tuple[list[Skill], list[Requests], list[dict[str, Any]]]:
    """Draw the ranks of the skills and the held-out requests.

    Returns
    -------
    ranked : list of Skill
        The commonest first.
    drawn : list of Requests
        Of each, to draw others from.
    heldout : list of dict
        Rows, `size` of each skill.
    """
    known = skills()
    ranked = [known[place] for place in rng.permutation(len(known)).tolist()]
    drawn = [
        Requests(skill, child) for skill, child in zip(ranked, rng.spawn(len(known)), strict=True)
    ]
    heldout = [row(one.skill, *one.draw()) for one in drawn for _ in range(size)]
    return ranked, drawn, heldout


def _training_rows(requests: Requests, rows: int, near: int, exact: int) -> list[dict[str, Any]]:
    """Return a skill's training rows, each duplicate after what it repeats."""
    rng, made = requests.rng, [requests.draw() for _ in range(rows - near - exact)]
    for number in range(near + exact):
        text, core = made[int(rng.integers(len(made)))]
        made.append(requests.draw(core) if number < near else (text, core))
    return [row(requests.skill, *one) for one in made]


def row(skill: Skill, text: str, core: tuple[str, str]) -> dict[str, Any]:
    """Return a request as a row: its text, and the question and answer in it."""
    prompt = [{"role": "user", "content": text}]
    return {"prompt": prompt, "answer": core[1], "label": skill.name}
