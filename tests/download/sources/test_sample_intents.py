"""The texts of the sample are well formed, and the facts in them right."""

import re
import string
from collections import Counter, defaultdict

import numpy as np
import pytest

from isodense.download.sources.sample_intents import fill, read_intents

INTENTS = read_intents()


def test_intents_are_unique_and_many():
    names = [intent.intent for intent in INTENTS]
    assert len(names) >= 60
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z_]+", name) for name in names)


@pytest.mark.parametrize("intent", INTENTS, ids=lambda intent: intent.intent)
def test_intent_is_well_formed(intent):
    assert len(intent.entities) >= 1
    assert len(intent.prompts) >= 3
    assert len(intent.chosen) >= 2
    assert len(intent.wrong) >= 1
    for texts in (intent.prompts, intent.chosen, intent.wrong, *intent.dialogues):
        assert all(isinstance(item, str) and item == item.strip() for item in texts)
        assert len(set(texts)) == len(texts)
    for entity in intent.entities:
        assert entity.keys() == intent.entities[0].keys()
        assert all(isinstance(value, str) and value for value in entity.values())
    for turns in intent.dialogues:
        assert len(turns) % 2 == 1
        assert len(turns) >= 3


@pytest.mark.parametrize("intent", INTENTS, ids=lambda intent: intent.intent)
def test_templates_fit_every_entity(intent):
    turns = [turn for dialogue in intent.dialogues for turn in dialogue]
    for template in [*intent.prompts, *intent.chosen, *turns]:
        for entity in intent.entities:
            assert template.format_map(entity)
    for template in intent.wrong:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field]
        others = [name.removeprefix("other_") for name in fields if name.startswith("other_")]
        for index, entity in enumerate(intent.entities):
            assert fill(template, intent, index, np.random.default_rng(index))
            # Some other entity differs in all the slots that the template borrows.
            assert not others or any(
                all(other[name] != entity[name] for name in others) for other in intent.entities
            )


def test_entities_are_unique():
    for intent in INTENTS:
        seen = Counter(tuple(entity.values()) for entity in intent.entities)
        assert max(seen.values()) == 1, intent.intent


def test_conversions_are_right():
    units = {"miles": 1609.344, "km": 1000, "metres": 1, "m": 1, "feet": 0.3048, "inches": 0.0254}
    units |= {"cm": 0.01, "pounds": 453.59237, "kg": 1000, "ounces": 28.349523, "grams": 1, "g": 1}
    units |= {"litres": 1, "ml": 1e-3, "US gallon": 3.785412, "US gallons": 3.785412}
    units |= {"US cups": 0.2365882}
    checked = 0
    for entity in named("unit_conversion").entities:
        value, unit = quantity(entity["value"])
        result, target = quantity(entity["result"])
        if unit in units:
            assert value * units[unit] == pytest.approx(result * units[target], rel=5e-3)
            checked += 1
        elif unit == "°F":
            assert result == pytest.approx((value - 32) / 1.8, abs=0.5)
            checked += 1
        elif unit == "°C":
            assert result == pytest.approx(value * 1.8 + 32, abs=0.5)
            checked += 1
    assert checked >= 55


def test_percentages_are_right():
    for entity in named("percentage_math").entities:
        p, n, r, one, left, bad = (
            float(entity[slot].replace(",", "")) for slot in ("p", "n", "r", "one", "left", "bad")
        )
        assert r == pytest.approx(p * n / 100)
        assert one == pytest.approx(n / 100)
        assert left == pytest.approx(n - r)
        assert bad != r


def named(name):
    return next(intent for intent in INTENTS if intent.intent == name)


def quantity(phrase):
    number, _, unit = phrase.replace("half a", "0.5").replace("cup", "cups").partition(" ")
    return float(number.replace(",", "")), unit.replace("cupss", "cups")


def test_wrong_answers_borrow_from_another_entity():
    found = defaultdict(set)
    intent = named("capital_city")
    template = next(item for item in intent.wrong if "{other_capital}" in item)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        found[0].add(fill(template, intent, 0, rng))
    assert len(found[0]) > 30
    assert not any(intent.entities[0]["capital"] in answer for answer in found[0])
