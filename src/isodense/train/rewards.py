"""The reward in the form that TRL calls, with its inputs and outputs checked.

Reward functions go to TRL one by one, with their weights, so that TRL adds, normalises and logs
them as its settings say. Prompts and columns come from the plan's rows, by the prompt's id, not
from TRL's data set: see :mod:`isodense.reward.scoring.functions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from isodense.pipeline.errors import TrainingError
from isodense.reward.scoring.function import RewardFunction
from isodense.reward.scoring.functions import FunctionReward
from isodense.reward.scoring.load import Reward

LOGGED = "logged/"  # put before the names of what functions log
Rows = Mapping[str, dict[str, Any]]  # by prompt id
Seen = Callable[[int, Sequence[str], Sequence[float | None]], None]


def reward_functions(
    reward: Reward, rows: Sequence[dict[str, Any]], group: int, seen: Seen = lambda *_: None
) -> tuple[list[Callable[..., Any]], list[float]]:
    """Return what TRL calls, and the weight of each.

    Parameters
    ----------
    reward : Reward
    rows : sequence of dict
        The prompts of the plan.
    group : int
        Completions per prompt.
    seen : callable
        Called with the number of a function, the prompt ids and what it gave the completions.

    Raises
    ------
    TrainingError
        When called: if a group mixes prompts, or the rewards are not one finite number each (or
        None, of a function without an opinion).
    """
    by_id = {row["id"]: row for row in rows}
    if not isinstance(reward, FunctionReward):
        return [_whole(reward, by_id, group, seen)], [1.0]
    made = [
        _separate(reward, one, by_id, group, partial(seen, number))
        for number, one in enumerate(reward.functions)
    ]
    return made, [one.weight for one in reward.functions]


def _whole(reward: Reward, by_id: Rows, group: int, seen: Seen) -> Callable[..., list[float]]:
    def whole(completions: list[Any], prompt_id: list[str], **_: Any) -> list[float]:
        _require_groups(prompt_id, group)
        rows = [by_id[identifier] for identifier in prompt_id]
        scores = np.asarray(reward.score(rows, [answer[-1]["content"] for answer in completions]))
        if scores.shape != (len(completions),) or not np.isfinite(scores).all():
            message = f"the reward of {len(completions)} completions is {scores!r:.200}"
            raise TrainingError(message, "it must be one finite number per completion")
        found = [float(value) for value in scores]
        seen(0, prompt_id, found)
        return found

    whole.__name__ = "reward"  # TRL's name for it in the log
    return whole


def _separate(
    reward: FunctionReward,
    function: RewardFunction,
    by_id: Rows,
    group: int,
    seen: Callable[..., None],
) -> Callable[..., Any]:
    def given(prompt_id: list[str], passed: dict[str, Any]) -> dict[str, Any]:
        _require_groups(prompt_id, group)
        own = reward.given([by_id[identifier] for identifier in prompt_id])
        return passed | own | {"log_metric": _prefixed(passed["log_metric"])}

    def called(prompt_id: list[str], **passed: Any) -> list[float | None]:
        return for_trl(prompt_id, function(given(prompt_id, passed)))

    async def awaited(prompt_id: list[str], **passed: Any) -> list[float | None]:
        return for_trl(prompt_id, await function(given(prompt_id, passed)))

    def for_trl(prompt_id: list[str], scores: np.ndarray) -> list[float | None]:
        found = [None if np.isnan(value) else float(value) for value in scores]
        seen(prompt_id, found)
        return found

    made: Callable[..., Any] = awaited if function.awaited else called
    made.__name__ = function.label  # TRL's name for it in the log
    return made


def _prefixed(log_metric: Callable[[str, float], None]) -> Callable[[str, float], None]:
    return lambda name, value: log_metric(f"{LOGGED}{name}", value)


def _require_groups(ids: Sequence[str], group: int) -> None:
    whole = len(ids) % group == 0  # with several processes, groups may lie across them
    groups = [ids[start : start + group] for start in range(0, len(ids), group)]
    if whole and any(len(set(one)) > 1 for one in groups):
        raise TrainingError("a group holds completions of several prompts")
