"""Kept completions are those of all that shapes them, and tools of a prompt among it."""

from __future__ import annotations

from pathlib import Path

import pytest

from isodense.models.inference import completions
from isodense.models.inference.completions import complete_once
from isodense.models.inference.generation import complete
from isodense.models.inference.policy import load_policy, load_tokenizer
from isodense.prompts.reader import load_prompts
from tests import tiny
from tests.cached import CHANGES, change
from tests.rl import write_inputs

SETTINGS = {
    "num_generations": 2,
    "max_tokens": 6,
    "temperature": 1.0,
    "batch_tokens": 512,
    "seed": 0,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completions")
    write_inputs(folder)
    tiny.policy(folder / "third", seed=3)
    return folder


@pytest.mark.parametrize("what", [*CHANGES, "policy", "prompts", "tools", "temperature"])
def test_kept_completions_are_those_of_all_that_shapes_them(
    world: Path, what: str, monkeypatch: pytest.MonkeyPatch
):
    def responded(policy="models/policy", first=0, tools=None, **changes):
        rows = [dict(row) for row in load_prompts(world / "data/prompts").rows[first:][:3]]
        rows[0] |= {"tools": tools} if tools else {}
        cache = world / f"cache-{what}"
        return complete_once(world / policy, rows, SETTINGS | changes, "cpu", cache)

    before = responded()
    drawn = []
    draw = completions.completions_of
    monkeypatch.setattr(
        completions, "completions_of", lambda *given: drawn.append(1) or draw(*given)
    )
    assert responded() == before
    assert not drawn
    if what in CHANGES:
        change(what, "isodense.models.inference.completions", "transformers", monkeypatch)
        responded()
    elif what == "policy":
        responded("third")
    elif what == "prompts":
        responded(first=1)
    elif what == "tools":
        responded(tools=[{"type": "function", "function": {"name": "add", "parameters": {}}}])
    else:
        responded(temperature=0.5)
    assert drawn == [1]


@pytest.mark.slow
def test_batches_in_processes_are_those_of_one_go(world: Path, monkeypatch: pytest.MonkeyPatch):
    rows = load_prompts(world / "data/prompts").rows[:12]
    folder, settings = world / "models/policy", SETTINGS | {"batch_tokens": 64}
    prompts = [row["prompt"] for row in rows]
    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    whole = complete(model, tokenizer, prompts, **settings)
    assert completions.completions_of(folder, rows, settings, "cpu") == whole
    monkeypatch.setenv("ISODENSE_WORKERS", "2")
    assert completions.completions_of(folder, rows, settings, "cpu") == whole
