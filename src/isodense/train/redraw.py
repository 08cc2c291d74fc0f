"""Redrawing: the share of the learning that a kind of prompts gets follows the weights, too.

The draws of a plan are as the weights say, but a group whose rewards are all equal teaches nothing.
With ``train.redraw`` each draw is made when its completions are about to be: the odds of a stratum
(a density decile or a label) are its share of the weights divided by what its groups have taught
so far, on average. Within a stratum, prompts are drawn by weight. The run has as many steps,
prompts and completions as without. Sampling on until enough groups have a signal (DAPO,
arXiv:2503.14476) costs completions instead; MT-GRPO (arXiv:2602.05547) keeps the shares of tasks
among the groups that have one.

What is drawn depends on the odds, the seed and the steps before, which every process has in the
trainer's log, and every checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from transformers import TrainerCallback

from isodense.pipeline.errors import TrainingError
from isodense.prompts.reader import PromptSet
from isodense.sampling.draw import draw
from isodense.train.plan import Plan
from isodense.train.realised import KEY, kinds

PRIOR = 8.0  # groups of the mean of all strata that each stratum begins with
CAP = 3.0  # a stratum is drawn at most so many times as often as by weight, or as rarely
TRIES = 1000  # per draw, of which the plan has found at least one in 20 to fit
History = Sequence[Mapping[str, Any]]


def factors(mass: np.ndarray, groups: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """Return by how much the odds of each stratum change.

    Parameters
    ----------
    mass : ndarray of shape (n_strata,)
        Nominal shares, which sum to 1.
    groups : ndarray of shape (n_strata,)
        Groups of each so far.
    signal : ndarray of shape (n_strata,)
        Sums of their mean absolute advantages.

    Returns
    -------
    ndarray of shape (n_strata,)
        In inverse proportion to the mean signal of the stratum's groups, those of the prior among
        them, within 1 / `CAP` and `CAP`; so that the shares still sum to 1.

    Examples
    --------
    >>> many = np.array([1e6, 1e6])
    >>> factors(np.array([0.5, 0.5]), many, many * [0.25, 1.0]).round(3).tolist()
    [1.6, 0.4]
    """
    if not signal.sum():
        return np.ones_like(mass)
    prior = PRIOR * signal.sum() / groups.sum()
    found = (signal + prior) / (groups + PRIOR)
    low, high = found.min() / CAP, found.max() * CAP
    for _ in range(100):  # the sum rises with the scale, from 1 / CAP to CAP
        scale = (low + high) / 2
        scaled = np.clip(scale / found, 1 / CAP, CAP)
        low, high = (scale, high) if mass @ scaled < 1 else (low, scale)
    return scaled


class Redraw(TrainerCallback):
    """Draws the prompts of a run while it runs, and notes in its log how many did not fit.

    Parameters
    ----------
    rows : sequence of dict
        The training prompts.
    odds : ndarray of shape (n_prompts,)
        Nominal share of the draws of each prompt.
    strata : sequence of ndarray
        Row numbers of each stratum; every row is in one.
    draws : int
        Of the run.
    at_once : int
        Draws whose completions are drawn together.
    seed : int
        Names the stream of draws.
    fits : callable
        Whether the prompt of a row can be used.
    """

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        odds: np.ndarray,
        strata: Sequence[np.ndarray],
        draws: int,
        at_once: int,
        seed: int,
        fits: Callable[[int], bool],
    ) -> None:
        self.rows, self._odds, self._fits = rows, odds, cache(fits)
        self._draws, self._at_once, self._seed = draws, at_once, seed
        self._stratum = np.empty(len(odds), dtype=np.int64)
        for number, members in enumerate(strata):
            self._stratum[members] = number
        self._mass = np.bincount(self._stratum, odds, len(strata))
        self._groups, self._signal = np.zeros((2, len(strata)))
        self._read = self._skipped = 0
        self._batch: tuple[int, list[int]] = (-1, [])

    def row(self, number: int, history: History) -> int:
        """Return the row of draw `number`, given the log of the steps before.

        Those of a generation batch are drawn when the first of them is asked for.
        """
        batch, place = divmod(number, self._at_once)
        if batch != self._batch[0]:
            self._take(history)
            self._batch = batch, self._chosen(batch * self._at_once)
        return self._batch[1][place]

    def _take(self, history: History) -> None:
        """Count the groups of the steps that are new in the log."""
        for entry in history[self._read :]:
            if KEY in entry:
                strata = self._stratum[entry[KEY]["rows"]]
                np.add.at(self._groups, strata, 1.0)
                np.add.at(self._signal, strata, entry[KEY]["signal"])
        self._read = len(history)

    def _chosen(self, first: int) -> list[int]:
        """Draw a generation batch; what does not fit is drawn again, further on in the stream."""
        odds = self._odds * factors(self._mass, self._groups, self._signal)[self._stratum]
        chosen = np.full(self._at_once, -1)
        for start in range(first, first + TRIES * self._draws, self._draws):
            drawn = draw(odds, self._at_once, self._seed, start)
            fit = np.array([self._fits(row) for row in drawn.tolist()])
            missing = chosen < 0
            self._skipped += int((missing & ~fit).sum())
            chosen[missing & fit] = drawn[missing & fit]
            if (chosen >= 0).all():
                return [int(row) for row in chosen]
        message = f"{TRIES} prompts drawn in a row exceed train.max_prompt_tokens"
        raise TrainingError(message, "raise train.max_prompt_tokens")

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Add how many draws did not fit to the step's entry; comes after ``Signals``."""
        if KEY in state.log_history[-1]:
            state.log_history[-1][KEY]["skipped"] = self._skipped
            self._skipped = 0


def strata(by: str, density: np.ndarray, prompts: PromptSet) -> list[np.ndarray]:
    """Return the rows of each stratum.

    Parameters
    ----------
    by : {"decile", "label"}
        What ``train.redraw`` says.
    density : ndarray of shape (n_prompts,)
        Log density of the training prompts.
    prompts : PromptSet
        The training prompts.

    Raises
    ------
    TrainingError
        If the labels name no kinds of prompts.
    """
    found = kinds(density, prompts)
    if by not in found:
        message = "train.redraw: label needs labels that name kinds of prompts"
        raise TrainingError(message, "set train.redraw: decile")
    return list(found[by].values())


def drawn_plan(history: History) -> Plan:
    """Return the plan that a run with :class:`Redraw` came to follow."""
    found = [entry[KEY] for entry in history if KEY in entry]
    rows = np.array([row for entry in found for row in entry["rows"]], dtype=np.int64)
    return Plan(rows, sum(entry["skipped"] for entry in found))
