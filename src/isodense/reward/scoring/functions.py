"""Kind ``function``: rewards from code, the user's own or TRL's, added up as TRL adds them.

A function reads the columns of the data by name. They come from the rows of the prompts, not
through the trainer's data set, so that a function sees the same Python values wherever it is
called: Arrow would give every mapping the keys of all others.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from isodense.pipeline.errors import TrainingError
from isodense.pipeline.watched import experiment_origin, require_tracked
from isodense.prompts.conversations import id_of
from isodense.reward.scoring.function import RewardFunction
from isodense.reward.scoring.source import project_files

OWN = ("id", "prompt", "chosen", "rejected", "source", "text", "count", "sources", "split")
TRUTHS = ("answer", "solution", "ground_truth", "target", "label")  # names of a ground truth

log = logging.getLogger("isodense")


class Spec(Protocol):
    """What ``params.yaml`` says of a function."""

    @property
    def name(self) -> str:
        """``module:function``."""

    @property
    def weight(self) -> float:
        """Its share of the total."""

    @property
    def args(self) -> Mapping[str, Any]:
        """Further arguments."""


class FunctionReward:
    """The weighted sum of reward functions.

    Parameters
    ----------
    functions : sequence of RewardFunction
    columns : sequence of str
        Columns of the data, which the functions are given.
    policy : str or Path
        Its tokenizer gives ``completion_ids`` where only the text is known.
    """

    def __init__(
        self, functions: Sequence[RewardFunction], columns: Sequence[str], policy: str | Path
    ) -> None:
        self.functions, self.columns, self._policy = list(functions), list(columns), policy
        self._runner: asyncio.Runner | None = None

    def score(self, rows: Sequence[dict[str, Any]], completions: Sequence[str]) -> np.ndarray:
        """Return the reward of each answer; see :class:`isodense.reward.scoring.load.Reward`.

        A completion of which no function has an opinion has the reward NaN, as in TRL, which leaves
        it out of its group's mean; a warning says how many there are.
        """
        total = self.total(self.each(rows, completions))
        if unknown := int(np.isnan(total).sum()):
            message = "no reward function has an opinion on %d of %d completions"
            log.warning(message + ", whose reward is NaN", unknown, len(total))
        return total

    def each(
        self,
        rows: Sequence[dict[str, Any]],
        completions: Sequence[str],
        ids: Sequence[Sequence[int]] | None = None,
    ) -> np.ndarray:
        """Return what each function gives for each completion.

        Parameters
        ----------
        rows : sequence of dict
            A prompt's row for each completion, with the columns.
        completions : sequence of str
        ids : sequence of sequence of int, optional
            Tokens of the completions; by default the policy's, ended by its end-of-turn token.

        Returns
        -------
        ndarray of shape (n, n_functions), float32
            NaN where a function has no opinion.

        Raises
        ------
        TrainingError
            If a function raises, or gives anything but a finite number or None.
        """
        if not completions:
            return np.empty((0, len(self.functions)), dtype=np.float32)
        answers = [[{"role": "assistant", "content": text}] for text in completions]
        given = self.given(rows) | {"completions": answers} | self._outside_trl()
        if any(one.takes("completion_ids") for one in self.functions):
            given["completion_ids"] = [list(x) for x in ids] if ids else self._tokens(completions)
        found = [one(given) for one in self.functions if not one.awaited]
        waited = iter(self._wait([one for one in self.functions if one.awaited], given))
        ready = iter(found)
        parts = [next(waited if one.awaited else ready) for one in self.functions]
        return np.stack(parts, axis=1)

    def total(self, each: np.ndarray) -> np.ndarray:
        """Return the weighted sum over functions that have an opinion, NaN where none has one.

        Parameters
        ----------
        each : ndarray of shape (n, n_functions), float32

        Returns
        -------
        ndarray of shape (n,), float32
        """
        weights = np.array([one.weight for one in self.functions], dtype=np.float32)
        total: np.ndarray = np.nan_to_num(each * weights, nan=0.0).sum(axis=1)
        total[np.isnan(each).all(axis=1)] = np.nan
        return total

    def given(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return prompts, ids and columns of the rows by the keyword that they are passed as."""
        columns = {name: [row.get(name) for row in rows] for name in self.columns}
        return {**columns, "prompts": [row["prompt"] for row in rows], "prompt_id": ids_of(rows)}

    def _wait(self, functions: Sequence[RewardFunction], given: dict[str, Any]) -> list[np.ndarray]:
        """Await coroutine functions side by side, always in one event loop."""
        if not functions:
            return []
        if self._runner is None:
            self._runner = asyncio.Runner()

        async def gather() -> list[np.ndarray]:
            return await asyncio.gather(*(one(given) for one in functions))

        return self._runner.run(gather())

    def _tokens(self, completions: Sequence[str]) -> list[list[int]]:
        from isodense.models.inference.policy import answer_tokens

        return answer_tokens(self._tokenizer, completions)

    @cached_property
    def _tokenizer(self) -> Any:
        from isodense.models.inference.policy import load_tokenizer

        return load_tokenizer(self._policy)

    def _outside_trl(self) -> dict[str, Any]:
        """Return what stands for the trainer where none runs."""
        names = ("trainer_state", "log_extra", "log_metric")
        if not any(one.takes(name) for one in self.functions for name in names):
            return {}
        from transformers import TrainerState

        return {"trainer_state": TrainerState(), "log_extra": _ignore, "log_metric": _ignore}


def ids_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the prompt ids of rows of prompts, or of examples, whose own id is another."""
    return [row["id"] if "split" in row else id_of(row) for row in rows]


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the data's columns in rows of prompts or examples, sorted."""
    return sorted({name for row in rows for name in row}.difference(OWN))


def labels(names: Sequence[str]) -> list[str]:
    """Return short names of functions, each once.

    Examples
    --------
    >>> labels(["rewards.maths:correct", "trl.rewards:think_format_reward", "rewards.code:correct"])
    ['correct', 'think_format_reward', 'correct_2']
    """
    found: list[str] = []
    for name in names:
        short = name.rpartition(":")[2]
        number = next(n for n in range(1, len(names) + 1) if _numbered(short, n) not in found)
        found.append(_numbered(short, number))
    return found


def find_functions(specs: Sequence[Spec]) -> list[RewardFunction]:
    """Return the functions that ``reward.functions`` names.

    Raises
    ------
    DataError
        If this is an experiment's copy of the project and lacks a file of theirs.
    TrainingError
        If there is no such function, or it does not take its arguments.
    """
    if own := experiment_origin():
        modules = [one.name.partition(":")[0] for one in specs]
        files = [path.relative_to(own) for name in modules for path in project_files(name, own)]
        require_tracked(files, "reward.functions")
    named = labels([one.name for one in specs])
    return [
        RewardFunction(one.name, label, one.weight, one.args)
        for one, label in zip(specs, named, strict=True)
    ]


def missing_columns(functions: Sequence[Spec], columns: Sequence[str]) -> list[str]:
    """Return what is wrong with the data's columns for the functions, a line each.

    The functions' modules are imported, nothing else is read: this can run before all else.

    Parameters
    ----------
    functions : sequence of Spec
        ``reward.functions``.
    columns : sequence of str
        Columns of the data, beside the prompt.

    Raises
    ------
    TrainingError
        If there is no such function, or it does not take its arguments.
    """
    return lacking(find_functions(functions), columns)


def lacking(functions: Sequence[RewardFunction], columns: Sequence[str]) -> list[str]:
    """Return what :func:`missing_columns` does, of functions that were found already."""
    has = ", ".join(columns) or "no column beside the prompt"
    return [
        f"{one} needs the column {name}; the data has {has}: "
        f"set download.local.columns: {{{name}: {_source_of(name, columns)}}}"
        for one in functions
        for name in one.needs()
        if name not in columns
    ]


def load_functions(manifest: Mapping[str, Any], policy: str | Path) -> FunctionReward:
    """Return the reward that a manifest names.

    Raises
    ------
    TrainingError
        If there is no such function, or its source has changed since it was checked: then it is
        not run.
    """
    found = [RewardFunction(**one) for one in manifest["functions"]]
    return FunctionReward(found, manifest["columns"], policy)


def require_columns(functions: Sequence[RewardFunction], columns: Sequence[str]) -> None:
    """Raise unless the data has every column that the functions need.

    Raises
    ------
    TrainingError
        With a line for each column.
    """
    if faults := lacking(functions, columns):
        raise TrainingError("\n".join(faults), "or let the function give it a default")


def _source_of(name: str, columns: Sequence[str]) -> str:
    """Return the column that most likely holds what a function calls `name`."""
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.7)
    known = [truth for truth in TRUTHS if truth in columns]
    return (near or known or ["…"])[0]


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}_{number}"


def _ignore(*_: Any) -> None:
    """Stand for TRL's loggers where nothing is logged."""
