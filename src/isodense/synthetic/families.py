"""The 40 skills of source ``skills``: what they ask, in what words, and the right answers.

A skill is a question with one short answer that a program can check: the day after Monday, the
plural of mouse, 7 + 5. Skills come in eight families of five. Those of a family ask about the same
things in nearly the same words, so that embeddings tell them apart imperfectly, as they do real
requests. The words are in ``skills.yaml``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from itertools import product
from typing import Any

import numpy as np
import yaml

Case = tuple[tuple[str, ...], str]  # what fills the slots of a template, and the answer

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
SEASONS = ("winter", "spring", "summer", "autumn")
TRIPLES = 120  # lists of three words


@dataclass(frozen=True)
class Skill:
    """One skill.

    Attributes
    ----------
    name : str
        ``family/skill``.
    templates : tuple of str
        Ways to ask, with a slot ``{}`` for each item of a case.
    cases : tuple of Case
        What can be asked.
    """

    name: str
    templates: tuple[str, ...]
    cases: tuple[Case, ...]


def skills() -> list[Skill]:
    """Return all skills, those of a family together."""
    text = resources.files(__package__).joinpath("skills.yaml").read_text(encoding="utf-8")
    known = yaml.safe_load(text)
    cases = {
        "letters": _letters(known["words"]),
        "lists": _lists(known["words"]),
        "pairs": _pairs(),
        "numbers": _numbers(),
        "calendar": _calendar(),
        "animals": _animals(known["tables"]["animals"]),
        "grammar": {name: _cases(table, table.get) for name, table in known["pairs"].items()},
        "countries": _columns(known["tables"]["countries"]),
    }
    return [
        Skill(f"{family}/{name}", tuple(templates), tuple(cases[family][name]))
        for family, asked in known["asked"].items()
        for name, templates in asked.items()
    ]


def _cases(items: Iterable[str], answer: Callable[[str], object]) -> list[Case]:
    return [((item,), str(answer(item))) for item in items]


def _letters(words: list[str]) -> dict[str, list[Case]]:
    return {
        "first": _cases(words, lambda word: word[0]),
        "last": _cases(words, lambda word: word[-1]),
        "second": _cases(words, lambda word: word[1]),
        "length": _cases(words, len),
        "vowels": _cases(words, lambda word: sum(letter in "aeiou" for letter in word)),
    }


def _lists(words: list[str]) -> dict[str, list[Case]]:
    rng = np.random.default_rng(40)
    triples = [tuple(rng.choice(words, 3, replace=False).tolist()) for _ in range(TRIPLES)]
    clear = [three for three in triples if sorted(map(len, three))[1] < max(map(len, three))]
    return {
        "first": [(three, three[0]) for three in triples],
        "middle": [(three, three[1]) for three in triples],
        "last": [(three, three[2]) for three in triples],
        "longest": [(three, max(three, key=len)) for three in clear],
        "alphabet": [(three, min(three)) for three in triples],
    }


def _pairs() -> dict[str, list[Case]]:
    numbers = [(a, b) for a, b in product(range(2, 20), repeat=2) if a != b]
    falling = [(a, b) for a, b in numbers if a > b]

    def answers(how: Callable[[int, int], int], chosen: list[tuple[int, int]]) -> list[Case]:
        return [((str(a), str(b)), str(how(a, b))) for a, b in chosen]

    return {
        "sum": answers(lambda a, b: a + b, numbers),
        "difference": answers(lambda a, b: a - b, falling),
        "larger": answers(max, numbers),
        "smaller": answers(min, numbers),
        "remainder": answers(lambda a, b: a % b, [pair for pair in falling if pair[1] < 6]),
    }


def _numbers() -> dict[str, list[Case]]:
    numbers = [str(number) for number in range(10, 90)]
    return {
        "next": _cases(numbers, lambda number: int(number) + 1),
        "previous": _cases(numbers, lambda number: int(number) - 1),
        "parity": _cases(numbers, lambda number: ("even", "odd")[int(number) % 2]),
        "digits": _cases(numbers, lambda number: number[-1]),
        "double": _cases(numbers, lambda number: 2 * int(number)),
    }


def _calendar() -> dict[str, list[Case]]:
    def shifted(names: list[str], by: int) -> list[Case]:
        return _cases(names, lambda name: names[(names.index(name) + by) % len(names)])

    return {
        "day_after": shifted(DAYS, 1),
        "day_before": shifted(DAYS, -1),
        "month_after": shifted(MONTHS, 1),
        "month_before": shifted(MONTHS, -1),
        "season": _cases(MONTHS, lambda month: SEASONS[(MONTHS.index(month) + 1) // 3 % 4]),
    }


def _animals(table: list[list[Any]]) -> dict[str, list[Case]]:
    names = [row[0] for row in table[1:]]
    return _columns(table) | {"letter": _cases(names, lambda animal: animal[0])}


def _columns(table: list[list[Any]]) -> dict[str, list[Case]]:
    """Return the cases of each column after the first, of a table whose first row names them."""
    (_, *columns), *rows = table
    return {
        name: [((row[0],), str(row[place])) for row in rows]
        for place, name in enumerate(columns, start=1)
    }
