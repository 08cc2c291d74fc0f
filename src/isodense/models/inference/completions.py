"""Completions of a policy, kept in the cache: the same prompts and settings are answered once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isodense.models.inference.generation import Completion, complete
from isodense.models.inference.policy import load_policy, load_tokenizer
from isodense.pipeline.artifact import read_manifest, write_json
from isodense.pipeline.cache import Store, cache_key
from isodense.pipeline.stage import progress
from isodense.prompts.conversations import Message

CODE = ("models/inference",)  # packages that compute the completions
LIBRARIES = ("torch", "transformers")
FILE = "completions.json"


def complete_once(
    policy: Path,
    prompts: Sequence[list[Message]],
    settings: dict[str, Any],
    device: str,
    cache: Path,
) -> list[list[Completion]]:
    """Return a policy's completions of each prompt, computing what is not in the cache.

    Parameters
    ----------
    policy : Path
        The policy's artifact.
    prompts : sequence of list of message
        Conversations that end with a user message.
    settings : dict
        Keyword arguments of :func:`isodense.models.inference.generation.complete`.
    device : str
        A torch device.
    cache : Path
        The cache's root.
    """
    store = Store(cache, "completions")
    key = cache_key(
        inputs={"policy": read_manifest(policy, "models"), "prompts": list(prompts)},
        params=settings,
        code=CODE,
        libraries=LIBRARIES,
        device=device,
    )
    entry = store.entry(key)
    if not entry.holds(FILE):
        from tqdm import tqdm

        title = f"answers of {policy}"
        with tqdm(total=len(prompts), unit="prompt", desc=title, **progress()) as bar:
            model, tokenizer = load_policy(policy, device), load_tokenizer(policy)
            made = complete(model, tokenizer, prompts, on_batch=bar.update, **settings)
        with entry.writing(FILE) as path:
            write_json(path, [[asdict(one) for one in group] for group in made])
    groups = json.loads(entry.path(FILE).read_text(encoding="utf-8"))
    store.clean()
    return [[Completion(**one | {"ids": tuple(one["ids"])}) for one in group] for group in groups]
