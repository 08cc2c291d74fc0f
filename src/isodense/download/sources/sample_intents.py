"""Intents of the sample: reading them, and filling the slots of their templates."""

from __future__ import annotations

import functools
import string
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
import yaml

FILES = ("sample_head.yaml", "sample_tail.yaml")


@dataclass(frozen=True)
class Intent:
    """One entry of the YAML files.

    Attributes
    ----------
    intent : str
        The intent's name, which becomes the label of the prompt.
    entities : list of dict
        Slots by name, as many mappings as there are things to ask about.
    prompts, chosen, wrong : list of str
        Templates over the slots of one entity.
    dialogues : list of list of str
        Templates of prompts with several turns, user and assistant alternating.
    """

    intent: str
    entities: list[dict[str, str]]
    prompts: list[str]
    chosen: list[str]
    wrong: list[str]
    dialogues: list[list[str]] = field(default_factory=list)


def read_intents() -> list[Intent]:
    """Return the intents of both files, most frequent first."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    folder = resources.files("isodense.download.sources")
    texts = [folder.joinpath(name).read_text(encoding="utf-8") for name in FILES]
    entries = [entry for text in texts for entry in yaml.load(text, Loader=loader)]  # noqa: S506
    return [Intent(**entry) for entry in entries]


def pick(options: list[Any] | tuple[Any, ...], rng: np.random.Generator) -> Any:
    """Return one of the options at random, each equally likely."""
    return options[int(rng.integers(len(options)))]


def fill(template: str, intent: Intent, entity: int, rng: np.random.Generator) -> str:
    """Fill a template with the slots of an entity, and ``{other_…}`` with those of another.

    Parameters
    ----------
    template : str
        A template of the intent.
    intent : Intent
        The intent, for its entities.
    entity : int
        Number of the entity.
    rng : Generator
        Draws the other entity, where the template names one.
    """
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
