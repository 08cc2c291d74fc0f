"""Completions of a policy for rows of prompts, and keeping them: what was answered stays so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isodense.models.inference.generation import (
    Completion,
    batches_of,
    complete_batch,
    log_probs,
)
from isodense.models.inference.policy import load_for_inference, load_tokenizer
from isodense.pipeline.artifact import read_manifest, write_json
from isodense.pipeline.cache import Store, cache_key
from isodense.pipeline.executor import compute, workers
from isodense.pipeline.stage import progress
from isodense.pipeline.tasks import Job, Task

CODE = ("models/inference",)  # packages that compute the completions
LIBRARIES = ("torch", "transformers")
FILE = "completions.json"

Rows = Sequence[Mapping[str, Any]]


class Answering:
    """What answers prompts in a worker.

    Parameters
    ----------
    policy : Path
        A model folder.
    settings : dict
        Keyword arguments of :func:`isodense.models.inference.generation.complete`.
    device : str
        A torch device.
    """

    def __init__(self, policy: Path, settings: dict[str, Any], device: str) -> None:
        self._model, self._tokenizer = load_for_inference(policy, device), load_tokenizer(policy)
        self._settings = settings

    def batches(self, prompts: list[Any], tools: list[Any]) -> list[list[int]]:
        """Return the numbers of the prompts that are answered together."""
        names = ("num_generations", "max_tokens", "batch_tokens")
        settings = {name: self._settings[name] for name in names}
        return batches_of(self._model, self._tokenizer, prompts, **settings, tools=tools)

    def __call__(
        self, prompts: list[Any], tools: list[Any], number: int | None
    ) -> list[list[int]] | list[list[Completion]]:
        """Return the completions of a batch; without a number, :meth:`batches`."""
        if number is None:
            return self.batches(prompts, tools)
        names = ("num_generations", "max_tokens", "temperature")
        settings = {name: self._settings[name] for name in names}
        seed = self._settings["seed"] + number
        return complete_batch(
            self._model, self._tokenizer, prompts, **settings, seed=seed, tools=tools
        )


def completions_of(
    policy: Path, rows: Rows, settings: dict[str, Any], device: str
) -> list[list[Completion]]:
    """Return a policy's completions of each prompt.

    Parameters
    ----------
    policy : Path
        A model folder.
    rows : sequence of dict
        Rows of prompts: ``prompt`` and, where there are any, ``tools``.
    settings : dict
        Keyword arguments of :func:`isodense.models.inference.generation.complete`.
    device : str
        A torch device.
    """
    prompts, tools = _asked(rows)
    made: dict[int, list[Completion]] = {}
    job = Job(Answering, {"policy": policy}, {"settings": settings, "device": device}, device)
    with workers(job) as found:
        batches: list[list[int]] = found.one(prompts, tools, None)
        tasks = (
            Task(f"batch {number}", len(batch), (*_asked([rows[row] for row in batch]), number))
            for number, batch in enumerate(batches)
        )
        answered = compute(found, tasks, len(rows), "prompt", f"answers of {policy}")
        for task, groups in answered:
            made |= zip(batches[task.args[-1]], groups, strict=True)
    return [made[row] for row in range(len(rows))]


def complete_once(
    policy: Path, rows: Rows, settings: dict[str, Any], device: str, cache: Path
) -> list[list[Completion]]:
    """Do as :func:`completions_of` does, unless the same was done before and is in `cache`."""
    store = Store(cache, "completions")
    prompts, tools = _asked(rows)
    key = cache_key(
        inputs={"policy": read_manifest(policy, "models"), "prompts": prompts, "tools": tools},
        params=settings,
        code=CODE,
        libraries=LIBRARIES,
        device=device,
    )
    entry = store.entry(key)
    if not entry.holds(FILE):
        made = completions_of(policy, rows, settings, device)
        with entry.writing(FILE) as path:
            write_json(path, [[asdict(one) for one in group] for group in made])
    groups = json.loads(entry.path(FILE).read_text(encoding="utf-8"))
    store.clean()
    return [[Completion(**one | {"ids": tuple(one["ids"])}) for one in group] for group in groups]


def log_probs_of(
    policy: Path,
    template: Path,
    rows: Rows,
    completions: Sequence[Sequence[Completion]],
    device: str,
    **settings: Any,
) -> Any:
    """Return the log-probability of each completion under a policy.

    Parameters
    ----------
    policy : Path
        A model folder.
    template : Path
        The model folder whose tokenizer and chat template render the prompts.
    rows : sequence of dict
        Rows of prompts.
    completions : sequence of sequence of Completion
        As many of each prompt.
    device : str
        A torch device.
    **settings
        See :func:`isodense.models.inference.generation.log_probs`.

    Returns
    -------
    ndarray of shape (n_prompts, num_generations), float64
        In nats.
    """
    with _bar(f"likelihood under {policy}", len(rows)) as update:
        model, tokenizer = load_for_inference(policy, device), load_tokenizer(template)
        prompts, tools = _asked(rows)
        return log_probs(
            model, tokenizer, prompts, completions, **settings, tools=tools, on_batch=update
        )


def _asked(rows: Rows) -> tuple[list[Any], list[Any]]:
    return [row["prompt"] for row in rows], [row.get("tools") for row in rows]


@contextmanager
def _bar(title: str, total: int) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(total=total, unit="prompt", desc=title, **progress()) as bar:
        yield bar.update
