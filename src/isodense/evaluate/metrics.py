"""Metrics of two policies on the same prompts: rewards, diversity, phrases, divergence.

Every prompt has the same number of completions by each policy. The reward of a prompt is the mean
reward of its completions; intervals are 95% t intervals over prompts, for the gain over paired
differences. Prompts are also binned by density into deciles (fewer, if a decile would hold under
``BIN`` prompts), the most isolated prompts first. ``docs/stages/evaluate.md`` defines each metric.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isodense.evaluate.diversity import self_bleu, vendi
from isodense.evaluate.text_metrics import distinct, repetition, stock_phrases, words
from isodense.pipeline.jsonl import write_jsonl
from isodense.prompts.reader import PromptSet

if TYPE_CHECKING:
    from isodense.models.inference.generation import Completion

BIN = 5


@dataclass(frozen=True)
class Heldout:
    """Held-out prompts and their density.

    Attributes
    ----------
    prompts : PromptSet
        Prompts of the split ``"heldout"``.
    density : ndarray of shape (n_prompts,), float32
        Log density among the training prompts.
    """

    prompts: PromptSet
    density: np.ndarray


@dataclass(frozen=True)
class Answers:
    """Completions of one policy, with rewards and embeddings.

    Attributes
    ----------
    completions : list of list of Completion
        `num_generations` completions of each prompt.
    rewards : ndarray of shape (n_prompts, num_generations), float32
        Reward of each completion.
    vectors : ndarray of shape (n_prompts, num_generations, dim), float32
        Unit embeddings of the completions.
    """

    completions: list[list[Completion]]
    rewards: np.ndarray
    vectors: np.ndarray

    @property
    def grouped(self) -> bool:
        """Whether each prompt has several completions, a group in the sense of GRPO."""
        return self.rewards.shape[1] > 1

    @property
    def reward(self) -> np.ndarray:
        """Mean reward of each prompt: ndarray of shape (n_prompts,), float64."""
        return self.rewards.mean(axis=1, dtype=np.float64)

    @property
    def frac_reward_zero_std(self) -> np.ndarray:
        """Whether all completions of a prompt have the same reward: (n_prompts,), bool.

        All advantages of such a group are 0. Rewards are compared up to rounding.
        """
        return np.isclose(self.rewards, self.rewards[:, :1]).all(axis=1)

    def describe(self) -> dict[str, Any]:
        """Return the mean reward with an interval, and metrics of the completions' texts.

        ``self_bleu`` and ``vendi`` take the first completion of each prompt, so that they measure
        diversity over prompts; ``vendi_within`` is the mean diversity within a prompt.
        """
        flat = [completion for group in self.completions for completion in group]
        texts = [completion.text for completion in flat]
        tokenized = [words(text) for text in texts]
        found: dict[str, Any] = {
            "distinct_1": distinct(tokenized, 1),
            "distinct_2": distinct(tokenized, 2),
            "repetition": repetition(tokenized),
            "self_bleu": self_bleu([group[0].text for group in self.completions]),
            "vendi": vendi(self.vectors[:, 0]),
            **stock_phrases(texts),
            "tokens": np.mean([completion.tokens for completion in flat]),
            "clipped_ratio": np.mean([completion.truncated for completion in flat]),
        }
        if self.grouped:
            found["vendi_within"] = np.mean([vendi(group) for group in self.vectors])
            found["frac_reward_zero_std"] = self.frac_reward_zero_std.mean()
        return named_interval("reward", self.reward) | {
            name: round(float(value), 6) for name, value in found.items()
        }


@dataclass(frozen=True)
class Comparison:
    """Both policies on the same prompts.

    Attributes
    ----------
    heldout : Heldout
        The prompts.
    base, trained : Answers
        Completions of the policy before and after training.
    log_ratios : ndarray of shape (n_prompts,), float64, or None
        Log-probability of the trained policy's first completion of each prompt, under the trained
        minus under the base policy, in nats; None if completions are greedy (temperature 0).
    """

    heldout: Heldout
    base: Answers
    trained: Answers
    log_ratios: np.ndarray | None

    @property
    def gain(self) -> np.ndarray:
        """Reward of the trained minus the base policy: ndarray of shape (n_prompts,), float64."""
        return self.trained.reward - self.base.reward

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of both policies, the divergence, and the gain by density decile."""
        found: dict[str, Any] = {"prompts": len(self.heldout.prompts)}
        for name, answers in (("base", self.base), ("trained", self.trained)):
            found[name] = answers.describe()
            if answers.grouped:
                found[name]["frac_reward_zero_std_by_decile"] = self._by_decile(
                    answers.frac_reward_zero_std
                )
        found["trained"] |= self.divergence()
        by_decile = {"by_decile": self._by_decile(self.gain)}
        return found | {"gain": named_interval("reward", self.gain) | by_decile}

    def divergence(self) -> dict[str, float]:
        """Return an estimate of KL(trained || base) in nats, per completion and per token.

        The estimate is the mean log-ratio over completions drawn from the trained policy. It is
        unbiased, and may be below 0 by chance where the policies hardly differ.
        """
        if self.log_ratios is None:
            return {}
        tokens = sum(group[0].tokens for group in self.trained.completions)
        per_token = round(float(self.log_ratios.sum() / tokens), 6)
        return named_interval("kl", self.log_ratios) | {"kl_per_token": per_token}

    def deciles(self) -> list[dict[str, Any]]:
        """Return mean reward and ``frac_reward_zero_std`` of each density bin and policy."""
        rows = []
        for number, members in enumerate(bins(self.heldout.density), start=1):
            density = round(float(self.heldout.density[members].mean()), 6)
            for policy, answers in (("base", self.base), ("trained", self.trained)):
                mean, low, high = interval(answers.reward[members])
                row = {"decile": number, "density": density, "policy": policy}
                row |= {"reward": mean, "low": low, "high": high}
                if answers.grouped:
                    row["frac_reward_zero_std"] = round(
                        float(answers.frac_reward_zero_std[members].mean()), 6
                    )
                rows.append(row)
        return rows

    def completions(self) -> list[dict[str, Any]]:
        """Return each prompt with density, and completions and rewards of both policies."""
        rows = []
        for number, prompt in enumerate(self.heldout.prompts.rows):
            row = {"id": prompt["id"], "text": prompt["text"]}
            row["density"] = round(float(self.heldout.density[number]), 6)
            for policy, answers in (("base", self.base), ("trained", self.trained)):
                row[policy] = [completion.text for completion in answers.completions[number]]
                rewards = answers.rewards[number].tolist()
                row[f"{policy}_reward"] = [round(reward, 6) for reward in rewards]
            rows.append(row)
        return rows

    def _by_decile(self, values: np.ndarray) -> dict[str, float]:
        """Return the mean of `values`, one per prompt, in each density bin."""
        return {
            f"{number:02d}": round(float(values[members].mean()), 6)
            for number, members in enumerate(bins(self.heldout.density), start=1)
        }


def write_tables(comparison: Comparison, deciles: Path, completions: Path) -> None:
    """Write the table of deciles as CSV and the completions as JSON lines."""
    rows = comparison.deciles()
    for path in (deciles, completions):
        path.parent.mkdir(parents=True, exist_ok=True)
    with deciles.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_jsonl(completions, comparison.completions())


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of at least two values, and the ends of a 95% t interval, low and high.

    Examples
    --------
    >>> import numpy as np
    >>> interval(np.array([1.0, 3.0]))
    (2.0, -10.706205, 14.706205)
    """
    from scipy.special import stdtrit

    values = np.asarray(values, dtype=np.float64)
    mean = values.mean()
    half = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values))
    low, middle, high = (round(float(value), 6) for value in (mean - half, mean, mean + half))
    return middle, low, high


def named_interval(name: str, values: np.ndarray) -> dict[str, float]:
    """Return mean and 95% t interval as metrics: `name`, `name`_low, `name`_high."""
    mean, low, high = interval(values)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def bins(density: np.ndarray, most: int = 10) -> list[np.ndarray]:
    """Split rows into density bins of nearly equal size, the lowest density first.

    Parameters
    ----------
    density : ndarray of shape (n,)
        Log density of each row.
    most : int
        Number of bins; fewer where a bin would have under ``BIN`` rows.

    Returns
    -------
    list of ndarray
        Row numbers of each bin.

    Examples
    --------
    >>> import numpy as np
    >>> [rows.tolist() for rows in bins(np.array([3, 1, 2, 0, 5, 4, 9, 8, 7, 6]))]
    [[3, 1, 2, 0, 5], [4, 9, 8, 7, 6]]
    """
    order = np.argsort(density, kind="stable")
    return np.array_split(order, max(1, min(most, len(density) // BIN)))
