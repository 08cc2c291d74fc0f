"""Which prompts a training run uses, in order: a plan of row numbers, drawn before it starts.

A prompt longer than ``max_prompt_tokens`` is not cut, because a conversation without its start is
another conversation: its draws are skipped and the next of the stream taken, which leaves the
odds of the other prompts among themselves as the weights have them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isodense.pipeline.errors import TrainingError
from isodense.prompts.reader import PromptSet
from isodense.train.params import TrainParams

TRIES = 20  # draws per prompt wanted before the search for prompts that fit is given up


@dataclass(frozen=True)
class Plan:
    """The prompts of a run, in order.

    Attributes
    ----------
    rows : ndarray of shape (draws,), int64
        Row numbers of the training prompts.
    skipped : int
        Draws of prompts that are too long.
    """

    rows: np.ndarray
    skipped: int


def make_plan(
    weights: np.ndarray,
    size: int,
    seed: int,
    fits: Callable[[int], bool] = lambda row: True,
    replacement: bool = True,
    uniform: float = 0.0,
) -> Plan:
    """Draw prompts, skipping those that do not fit.

    Parameters
    ----------
    weights : ndarray of shape (n,)
        See :func:`isodense.sampling.draw.draw`.
    size : int
        Number of draws to keep.
    seed : int
        Names the stream of draws.
    fits : callable
        Whether the prompt of a row can be used; asked once per prompt drawn.
    replacement, uniform
        See :func:`isodense.sampling.draw.draw`.

    Raises
    ------
    TrainingError
        If fewer than one draw in 20 fits.
    """
    from isodense.sampling.draw import draw

    known: dict[int, bool] = {}
    rows: list[int] = []
    drawn = 0
    while len(rows) < size:
        if drawn >= TRIES * max(size, 100):
            message = f"{drawn - len(rows)} of {drawn} drawn prompts exceed train.max_prompt_tokens"
            raise TrainingError(message, "raise train.max_prompt_tokens")
        for row in draw(weights, size, seed, drawn, replacement, uniform).tolist():
            if len(rows) == size:
                break
            if row not in known:
                known[row] = fits(row)
            if known[row]:
                rows.append(row)
            drawn += 1
    return Plan(np.array(rows, dtype=np.int64), drawn - size)


def nominal(weights: np.ndarray, uniform: float) -> np.ndarray:
    """Return the share of the draws that each prompt is to have, of which `uniform` is even.

    Examples
    --------
    >>> nominal(np.array([3, 1]), 0.5).tolist()
    [0.625, 0.375]
    """
    weights = np.asarray(weights, dtype=np.float64)
    return (1 - uniform) * weights / weights.sum() + uniform / len(weights)


def plan_facts(plan: Plan, prompts: PromptSet) -> dict[str, int]:
    """Return the numbers of a plan: draws, different prompts and, where known, labels."""
    distinct = np.unique(plan.rows)
    facts = {
        "draws": len(plan.rows),
        "distinct_prompts": len(distinct),
        "skipped_draws": plan.skipped,
    }
    if (labels := prompts.labels) is not None:
        facts["distinct_labels"] = len({labels[row] for row in distinct})
    return facts


def plan_run(
    prompts: PromptSet,
    weights: np.ndarray,
    policy: Path,
    params: TrainParams,
    size: int,
    seed: int,
) -> Plan:
    """Draw a run's prompts, those that fit the policy.

    Parameters
    ----------
    prompts : PromptSet
        The training prompts.
    weights : ndarray of shape (n_prompts,)
        How often each is drawn, up to a factor.
    policy : Path
        Its tokenizer measures the prompts.
    params : TrainParams
        The stage's section.
    size : int
        Number of draws to keep.
    seed : int
        Names the stream of draws.

    Raises
    ------
    TrainingError
        If prompt and completion together exceed the policy's context, or too few prompts fit.
    """
    fits = fitting(prompts, policy, params)
    return make_plan(weights, size, seed, fits, params.replacement, params.uniform_share)


def fitting(prompts: PromptSet, policy: Path, params: TrainParams) -> Callable[[int], bool]:
    """Return what says whether the prompt of a row is short enough for the policy.

    Raises
    ------
    TrainingError
        If prompt and completion together exceed the policy's context.
    """
    from isodense.models.inference.policy import context_length, load_tokenizer, prompt_tokens

    tokens = params.max_prompt_tokens + params.max_completion_tokens
    context = context_length(policy)
    if context is not None and tokens > context:
        message = f"train.max_prompt_tokens + max_completion_tokens = {tokens} exceed the policy's"
        raise TrainingError(f"{message} context, {context}", f"let them sum to {context} at most")
    tokenizer = load_tokenizer(policy)

    def fits(row: int) -> bool:
        prompt = prompts.rows[row]
        ids = prompt_tokens(tokenizer, [prompt["prompt"]], [prompt.get("tools")])
        return len(ids[0]) <= params.max_prompt_tokens

    return fits
