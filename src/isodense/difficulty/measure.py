"""Answering every training prompt with the untrained policy, in shards that outlive a kill.

A shard is the training prompts among a fixed number of rows of ``data/prompts``. What its prompts
were answered with depends on those, the policy, the first reward function and the params, and on
nothing else: a run that was cut off, or whose prompts have grown, computes only what is not in
:mod:`isodense.pipeline.cache`. Workers (:mod:`isodense.pipeline.executor`) answer; this process
scores, since reward functions are the user's files and may keep state.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isodense.difficulty.params import DifficultyParams
from isodense.pipeline.artifact import read_manifest, write_json
from isodense.pipeline.cache import Entry, Store, cache_key
from isodense.pipeline.errors import TrainingError
from isodense.pipeline.executor import compute, workers
from isodense.pipeline.tasks import Job, Task
from isodense.prompts.reader import PromptSet

if TYPE_CHECKING:
    from isodense.models.inference.generation import Completion
    from isodense.reward.scoring.functions import FunctionReward

log = logging.getLogger("isodense")

ROWS = 256  # of the prompts artifact in a shard: the most that a kill can cost
RECIPE = 2  # to be raised with any change to the counts; see tests/recipes.py
LIBRARIES = ("torch", "transformers")
COUNTS = "counts.json"  # the piece of a finished shard, in the cache
NOT_READ = ("count", "sources", "split")  # of a prompt, by policy and reward

Row = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """What is measured, and with what.

    Attributes
    ----------
    policy, reward : Path
        Artifacts of the untrained policy and of the reward.
    params : DifficultyParams
        The stage's section.
    seed : int
        Of the completions.
    device : {"cpu", "cuda"}
    """

    policy: Path
    reward: Path
    params: DifficultyParams
    seed: int
    device: str


@dataclass(frozen=True)
class Shard:
    """Training prompts that are answered together.

    Attributes
    ----------
    number : int
    rows : list of dict
    seed : int
        Of its completions.
    entry : Entry
        Where its counts are kept once they are known.
    """

    number: int
    rows: list[Row]
    seed: int
    entry: Entry

    @property
    def finished(self) -> bool:
        """Whether its counts are known."""
        return self.entry.holds(COUNTS)

    def counts(self) -> dict[str, Any]:
        """Return what is kept of it."""
        found: dict[str, Any] = json.loads(self.entry.path(COUNTS).read_text(encoding="utf-8"))
        return found


def require_solved(reward: Path) -> None:
    """Raise unless the reward says which completions are solved.

    Raises
    ------
    TrainingError
        If it is of another kind than function, or has no threshold.
    """
    manifest = read_manifest(reward, "reward")
    if manifest.get("solved_above") is None:
        kind = manifest["reward_kind"]
        message = f"a reward of kind {kind} does not say which completions solve a prompt"
        hint = "set reward.kind: function and reward.solved_above, or difficulty.column"
        raise TrainingError(message, f"{hint}, or difficulty.completions: 0")


def measure(prompts: PromptSet, task: Measurement, cache: Path) -> dict[str, Any]:
    """Return how often the policy solves each training prompt.

    Parameters
    ----------
    prompts : PromptSet
        All prompts.
    task : Measurement
    cache : Path
        Keeps finished shards.

    Returns
    -------
    dict
        ``solved`` and ``completions``, int32 arrays of shape (n_train,), and the share
        ``clipped_ratio`` and number ``passed_over``.

    Raises
    ------
    TrainingError
        If the reward does not say which completions are solved.
    """
    require_solved(task.reward)
    store = Store(cache, "difficulty")
    shards = _plan(prompts, task, store)
    missing = [shard for shard in shards if not shard.finished]
    if missing:
        _compute(missing, task)
    log.info("%d of %d shards computed, the rest were in %s", len(missing), len(shards), cache)
    store.clean()
    return _joined([shard.counts() for shard in shards])


def _plan(prompts: PromptSet, task: Measurement, store: Store) -> list[Shard]:
    """Return all shards; one keeps its seed, and so its key, when prompts are appended."""
    shards: list[Shard] = []
    for start in range(0, len(prompts), ROWS):
        rows = [row for row in prompts.rows[start : start + ROWS] if row["split"] == "train"]
        if rows:
            seed = task.seed + start  # each batch adds its number, which is below ROWS
            entry = store.entry(_key(task, _digest(rows), seed))
            shards.append(Shard(len(shards), rows, seed, entry))
    return shards


def _digest(rows: Sequence[Row]) -> str:
    """Return the hash of what policy and reward read of prompts, as hex digits."""
    read = [{name: row[name] for name in row if name not in NOT_READ} for row in rows]
    return hashlib.sha256(json.dumps(read, sort_keys=True, default=str).encode()).hexdigest()


def _key(task: Measurement, prompts: str, seed: int) -> str:
    manifest = read_manifest(task.reward, "reward")
    function = manifest["functions"][0]
    return cache_key(
        inputs={
            "policy": read_manifest(task.policy, "models"),
            "function": {name: function[name] for name in ("name", "args", "sha256")},
            "solved_above": manifest["solved_above"],
            "prompts": prompts,
        },
        params={
            "completions": task.params.completions,
            "max_completion_tokens": task.params.max_completion_tokens,
            "temperature": task.params.temperature,
            "batch_tokens": task.params.batch_tokens,
            "seed": seed,
        },
        code=RECIPE,
        libraries=LIBRARIES,
        device=task.device,
    )


class Answering:
    """What answers prompts in a worker.

    Parameters
    ----------
    policy : Path
        The untrained policy.
    params : DifficultyParams
    device : {"cpu", "cuda"}
    """

    def __init__(self, policy: Path, params: DifficultyParams, device: str) -> None:
        from isodense.models.inference.policy import (
            context_length,
            load_for_inference,
            load_tokenizer,
        )

        self._model, self._tokenizer = load_for_inference(policy, device), load_tokenizer(policy)
        self._context, self._params = context_length(policy), params

    def __call__(self, rows: list[Row], seed: int) -> tuple[list[int], list[list[Completion]]]:
        """Return which rows leave room for a completion, and the completions of these."""
        from isodense.models.inference.generation import complete

        params = self._params
        fits = _fitting(rows, self._tokenizer, self._context, params.max_completion_tokens)
        return fits, complete(
            self._model,
            self._tokenizer,
            [rows[place]["prompt"] for place in fits],
            params.completions,
            params.max_completion_tokens,
            params.temperature,
            params.batch_tokens,
            seed,
            tools=[rows[place].get("tools") for place in fits],
        )


def _compute(shards: Sequence[Shard], task: Measurement) -> None:
    """Answer and score the prompts of shards, and keep the counts of each."""
    manifest = read_manifest(task.reward, "reward")
    reward, above = _first_function(manifest, task.policy), manifest["solved_above"]
    by_name = {f"prompts of shard {shard.number}": shard for shard in shards}
    tasks = (Task(name, len(one.rows), (one.rows, one.seed)) for name, one in by_name.items())
    settings = {"params": task.params, "device": task.device}
    job = Job(Answering, {"policy": task.policy}, settings, task.device)
    total = sum(len(shard.rows) for shard in shards)
    with workers(job) as found:
        for answered, (fits, groups) in compute(found, tasks, total, "prompt"):
            shard = by_name[answered.name]
            rows = [shard.rows[place] for place in fits]
            scores = _scored(reward, rows, groups)
            counts = np.zeros((2, len(shard.rows)), dtype=int)
            counts[:, fits] = [(scores > above).sum(axis=1), (~np.isnan(scores)).sum(axis=1)]
            cut = sum(one.truncated for group in groups for one in group)
            kept = {"solved": counts[0].tolist(), "completions": counts[1].tolist(), "cut": cut}
            with shard.entry.writing(COUNTS) as path:
                write_json(path, kept | {"passed_over": len(shard.rows) - len(rows)})


def _first_function(manifest: dict[str, Any], policy: Path) -> FunctionReward:
    from isodense.reward.scoring.functions import FunctionReward, load_functions

    reward = load_functions(manifest, policy)
    return FunctionReward(reward.functions[:1], reward.columns, policy)


def _fitting(rows: Sequence[Row], tokenizer: Any, context: int | None, answer: int) -> list[int]:
    """Return the places of the prompts that leave room for a completion in the context."""
    from isodense.models.inference.policy import prompt_tokens

    ids = prompt_tokens(
        tokenizer, [row["prompt"] for row in rows], [row.get("tools") for row in rows]
    )
    limit = np.inf if context is None else context - answer
    return [place for place, tokens in enumerate(ids) if len(tokens) <= limit]


def _scored(reward: FunctionReward, rows: Sequence[Row], groups: Sequence[Any]) -> np.ndarray:
    """Return what the first function gives each completion; NaN for no opinion."""
    made = [one for group in groups for one in group]
    owners = [row for row, group in zip(rows, groups, strict=True) for _ in group]
    each = reward.each(owners, [one.text for one in made], [one.ids for one in made])
    return each.reshape(len(rows), len(groups[0]) if groups else 1)


def _joined(shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    solved, completions = (
        np.array([count for shard in shards for count in shard[name]], dtype=np.int32)
        for name in ("solved", "completions")
    )
    made = max(1, int(completions.sum()))
    return {
        "solved": solved,
        "completions": completions,
        "clipped_ratio": sum(shard["cut"] for shard in shards) / made,
        "passed_over": sum(shard["passed_over"] for shard in shards),
    }
