"""The check of a reward without pairs: what the frozen policy's own completions get.

GRPO learns from the differences of the rewards within a group. If all completions of a prompt are
wrong, or all are right, its group teaches nothing; if that holds for every prompt, nothing does.
A sample of training prompts is therefore answered as training would answer them, before it starts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isodense.models.inference.generation import Completion
from isodense.models.inference.policy import context_length, load_tokenizer, prompt_tokens
from isodense.pipeline.errors import TrainingError
from isodense.pipeline.jsonl import write_jsonl
from isodense.reward.base import Task
from isodense.reward.scoring.check import t_interval
from isodense.reward.scoring.functions import FunctionReward, columns_of
from isodense.reward.scoring.load import Reward

FILE = "sampled.jsonl"
SAME = 1e-8  # rewards that differ by less are one reward, as for TRL

log = logging.getLogger("isodense")


@dataclass(frozen=True)
class Sample:
    """Completions of prompts, with their rewards.

    Attributes
    ----------
    rows : list of dict
        The prompts' rows.
    completions : list of list of Completion
        A group for each prompt.
    each : ndarray of shape (n_prompts, num_generations, n_functions), float32
        What each function gives; NaN for no opinion.
    total : ndarray of shape (n_prompts, num_generations), float32
        The reward; NaN where no function has an opinion.
    labels : list of str
        Names of the functions; empty of a reward model.
    passed_over : int
        Prompts before these in the order of the ids that leave no room for a completion.
    """

    rows: list[dict[str, Any]]
    completions: list[list[Completion]]
    each: np.ndarray
    total: np.ndarray
    labels: list[str]
    passed_over: int = 0


def check(task: Task, reward: Reward, out: Path) -> dict[str, Any]:
    """Let the policy answer a sample of training prompts and say what the reward gives.

    Parameters
    ----------
    task : Task
    reward : Reward
    out : Path
        The artifact's folder; gets ``sampled.jsonl``.

    Returns
    -------
    dict
        ``sampled`` and, of functions, ``functions``: the metrics.

    Raises
    ------
    TrainingError
        If no prompt fits the policy, or no function has an opinion on any completion.
    """
    sample = draw_sample(task, reward)
    write_jsonl(out / FILE, table(sample, reward))
    if np.isnan(sample.total).all():
        message = f"no reward function has an opinion on any of {sample.total.size} completions"
        raise TrainingError(message, "see that the column with the ground truth is the right one")
    sampled = describe(sample, task.params.solved_above)
    if said := warning(sampled):
        log.warning("%s", said)
    by_function = {
        label: {
            "mean": None if np.isnan(values).all() else float(np.nanmean(values)),
            "no_opinion": float(np.isnan(values).mean()),
        }
        for label, values in zip(sample.labels, np.moveaxis(sample.each, 2, 0), strict=True)
    }
    return {"sampled": sampled, **({"functions": by_function} if by_function else {})}


def draw_sample(task: Task, reward: Reward) -> Sample:
    """Return completions of the training prompts with the smallest ids, and their rewards.

    Ids are uniform hashes, so the smallest are a fair sample, and one that appending data changes
    little. Prompts that leave no room for a completion in the policy's context are passed over.
    """
    from isodense.models.inference.completions import complete_once

    settings = task.params.check
    rows, passed_over = choose(task, settings.prompts, settings.max_completion_tokens)
    arguments = {
        "num_generations": settings.num_generations,
        "max_tokens": settings.max_completion_tokens,
        "temperature": settings.temperature,
        "batch_tokens": task.params.batch_tokens,
        "seed": task.seed,
    }
    groups = complete_once(task.policy, rows, arguments, task.device, task.cache)
    owners = [row for row in rows for _ in range(settings.num_generations)]
    made = [one for group in groups for one in group]
    texts, shape = [one.text for one in made], (len(rows), settings.num_generations)
    if not isinstance(reward, FunctionReward):
        total = reward.score(owners, texts).reshape(shape)
        return Sample(rows, groups, np.empty((*shape, 0)), total, [], passed_over)
    each = reward.each(owners, texts, [one.ids for one in made])
    labels = [one.label for one in reward.functions]
    total, each = reward.total(each).reshape(shape), each.reshape(*shape, -1)
    return Sample(rows, groups, each, total, labels, passed_over)


def choose(task: Task, size: int, max_tokens: int) -> tuple[list[dict[str, Any]], int]:
    """Return at most `size` training prompts that leave room, and how many were passed over."""
    train = task.prompts.split("train")
    context = context_length(task.policy)
    limit = None if context is None else context - max_tokens
    tokenizer = load_tokenizer(task.policy)
    chosen: list[dict[str, Any]] = []
    passed_over = 0
    for row in sorted(train.rows, key=lambda row: str(row["id"])):
        tokens = len(prompt_tokens(tokenizer, [row["prompt"]], [row.get("tools")])[0])
        if limit is None or tokens <= limit:
            chosen.append(row)
        else:
            passed_over += 1
        if len(chosen) == size:
            break
    if passed_over:
        log.warning("%d prompts passed over that leave no room in the context", passed_over)
    if len(chosen) < 2:
        message = f"{len(chosen)} of {len(train)} training prompts can be answered in the check"
        hint = "it takes two: add data, or lower reward.check.max_completion_tokens"
        raise TrainingError(message, hint)
    return chosen, passed_over


def describe(sample: Sample, solved_above: float | None) -> dict[str, Any]:
    """Return the metrics of a sample.

    Prompts of which no completion has a reward are left out of means and shares; their share is
    ``no_opinion``.

    Examples
    --------
    >>> made = [[Completion("4", (1,), False)] * 2] * 3
    >>> total = np.array([[0, 0], [0, 1], [1, 1]], dtype=np.float32)
    >>> found = describe(Sample([{}] * 3, made, total[..., None], total, ["f"]), 0.5)
    >>> found["never_solved"] == found["sometimes_solved"] == found["always_solved"] == 1 / 3
    True
    >>> round(found["frac_reward_zero_std"], 3)
    0.667
    """
    known = ~np.isnan(sample.total)
    rated = known.any(axis=1)
    total, known = sample.total[rated].astype(np.float64), known[rated]
    decisive = (sample.each[..., 0] if sample.labels else sample.total)[rated]
    solved = (decisive > np.inf if solved_above is None else decisive > solved_above).sum(axis=1)
    mean, low, high = t_interval(np.nanmean(total, axis=1))
    spread = np.nanmax(total, axis=1) - np.nanmin(total, axis=1)
    cut = [one.truncated for group in sample.completions for one in group]
    never, always = solved == 0, solved == known.sum(axis=1)
    shares = {
        "never_solved": float(never.mean()),
        "sometimes_solved": float((~never & ~always).mean()),
        "always_solved": float(always.mean()),
    }
    return {
        "prompts": len(sample.rows),
        "num_generations": sample.total.shape[1],
        "reward": mean,
        "reward_low": low,
        "reward_high": high,
        **({} if solved_above is None else shares),
        "frac_reward_zero_std": float((spread <= SAME).mean()),
        "clipped_ratio": float(np.mean(cut)),
        "no_opinion": float((~rated).mean()),
        **({"passed_over": sample.passed_over} if sample.passed_over else {}),
    }


def warning(sampled: dict[str, Any]) -> str | None:
    """Return what to warn of where GRPO would learn nothing, or None."""
    count = sampled["prompts"]
    if sampled["frac_reward_zero_std"] < 1:
        return None
    if sampled.get("never_solved") == 1:
        found = (
            f"no completion of {count} prompts was solved and no group has two different rewards"
        )
        hint = (
            "easier prompts, a stronger policy, more tokens for a completion "
            f"({sampled['clipped_ratio']:.0%} were cut), or a further function with partial credit"
        )
    elif sampled.get("always_solved") == 1:
        found = f"every completion of {count} prompts was solved: there is nothing left to learn"
        hint = "harder prompts, or a stricter reward"
    else:
        found = f"no group of {count} prompts has two different rewards"
        hint = "a finer reward, a higher temperature, or more completions per prompt"
    return (
        f"{found}: GRPO gets no signal from this reward with this policy. Read {FILE} in the "
        f"reward's folder; try {hint}"
    )


def table(sample: Sample, reward: Reward) -> list[dict[str, Any]]:
    """Return a row for each completion, for reading."""
    functions = reward.functions if isinstance(reward, FunctionReward) else []
    shown = [name for name in columns_of(sample.rows) if any(one.names(name) for one in functions)]
    return [
        {
            "id": row["id"],
            "prompt": row["prompt"],
            **({"columns": {name: _plain(row.get(name)) for name in shown}} if shown else {}),
            "completion": made.text,
            "truncated": made.truncated,
            "reward": _or_none(total),
            **({"rewards": _named(sample.labels, each)} if sample.labels else {}),
        }
        for row, group, totals, eachs in zip(
            sample.rows, sample.completions, sample.total, sample.each, strict=True
        )
        for made, total, each in zip(group, totals, eachs, strict=True)
    ]


def _named(labels: Sequence[str], values: np.ndarray) -> dict[str, float | None]:
    return dict(zip(labels, map(_or_none, values), strict=True))


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: dates and the like as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
