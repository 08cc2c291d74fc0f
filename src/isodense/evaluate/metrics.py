"""What two policies' answers to the same prompts say: rewards, diversity, phrases, divergence.

Every prompt has as many completions by each policy. A prompt's reward is the mean of its
completions', intervals are 95% t intervals over prompts, and the gain's is over the prompts' paired
differences. Prompts are also sorted by density into deciles (fewer, if that left under ``BIN``
prompts each), the first of which holds the most isolated prompts. ``docs/evaluation.md`` says what
each measure means.
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
    from isodense.models.generation import Completion

BIN = 5


@dataclass(frozen=True)
class Heldout:
    """Held-out prompts and their density.

    Attributes
    ----------
    prompts : PromptSet
    density : ndarray of shape (n_prompts,), float32
        Log density among the training prompts.
    """

    prompts: PromptSet
    density: np.ndarray


@dataclass(frozen=True)
class Answers:
    """What one policy answered.

    Attributes
    ----------
    completions : list of list of Completion
        As many of each prompt.
    rewards : ndarray of shape (n_prompts, num_generations), float32
    vectors : ndarray of shape (n_prompts, num_generations, dim), float32
        Unit embeddings of the completions.
    """

    completions: list[list[Completion]]
    rewards: np.ndarray
    vectors: np.ndarray

    @property
    def grouped(self) -> bool:
        """Whether prompts have several completions, which can be compared with each other."""
        return self.rewards.shape[1] > 1

    @property
    def reward(self) -> np.ndarray:
        """Return each prompt's mean reward: ndarray of shape (n_prompts,), float64."""
        return self.rewards.mean(axis=1, dtype=np.float64)

    @property
    def frac_reward_zero_std(self) -> np.ndarray:
        """Return whether a prompt's completions all got one reward: (n_prompts,), bool.

        From such a group GRPO learns nothing. Rounding in a reward model is no difference.
        """
        return np.isclose(self.rewards, self.rewards[:, :1]).all(axis=1)

    def describe(self) -> dict[str, Any]:
        """Return the mean reward with its interval, and what the completions are like.

        Measures of one set of texts (``self_bleu``, ``vendi``) take the first completion of each
        prompt, so that answers to one prompt are not held against each other.
        """
        made = [completion for group in self.completions for completion in group]
        texts = [completion.text for completion in made]
        spoken = [words(text) for text in texts]
        found: dict[str, Any] = {
            "distinct_1": distinct(spoken, 1),
            "distinct_2": distinct(spoken, 2),
            "repetition": repetition(spoken),
            "self_bleu": self_bleu([group[0].text for group in self.completions]),
            "vendi": vendi(self.vectors[:, 0]),
            **stock_phrases(texts),
            "tokens": np.mean([completion.tokens for completion in made]),
            "clipped_ratio": np.mean([completion.truncated for completion in made]),
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
    base, trained : Answers
    log_ratios : ndarray of shape (n_prompts,), float64, or None
        Log-probability of the trained policy's first completion of each prompt under the trained
        policy less that under the base policy, in nats; None if nothing was drawn (temperature 0).
    """

    heldout: Heldout
    base: Answers
    trained: Answers
    log_ratios: np.ndarray | None

    @property
    def gain(self) -> np.ndarray:
        """Return the trained less the base reward: ndarray of shape (n_prompts,), float64."""
        return self.trained.reward - self.base.reward

    def metrics(self) -> dict[str, Any]:
        """Return both policies' description, the divergence, and the gain overall and by decile."""
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

        The mean log-ratio of completions drawn from the trained policy is an unbiased estimate of
        their divergence; by chance it may be below 0 where policies hardly differ.
        """
        if self.log_ratios is None:
            return {}
        tokens = sum(group[0].tokens for group in self.trained.completions)
        per_token = round(float(self.log_ratios.sum() / tokens), 6)
        return named_interval("kl", self.log_ratios) | {"kl_per_token": per_token}

    def deciles(self) -> list[dict[str, Any]]:
        """Return each density bin's mean reward under each policy, and share of zero signal."""
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
        """Return each prompt with both policies' completions and rewards, for people to read."""
        rows = []
        for number, prompt in enumerate(self.heldout.prompts.rows):
            row = {"id": prompt["id"], "text": prompt["text"]}
            row["density"] = round(float(self.heldout.density[number]), 6)
            for policy, answers in (("base", self.base), ("trained", self.trained)):
                row[policy] = [made.text for made in answers.completions[number]]
                rewards = answers.rewards[number].tolist()
                row[f"{policy}_reward"] = [round(reward, 6) for reward in rewards]
            rows.append(row)
        return rows

    def _by_decile(self, values: np.ndarray) -> dict[str, float]:
        """Return the mean of the prompts' values in each density bin."""
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
    """Return the mean of at least two values and its 95% t interval: mean, low, high.

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
    """Return the mean and its interval as metrics: `name`, `name`_low, `name`_high."""
    mean, low, high = interval(values)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def bins(density: np.ndarray, most: int = 10) -> list[np.ndarray]:
    """Return the rows of each density bin, sparse to crowded, nearly equal in size.

    There are `most` bins, or as many as leave ``BIN`` rows in each.

    Examples
    --------
    >>> import numpy as np
    >>> [rows.tolist() for rows in bins(np.array([3, 1, 2, 0, 5, 4, 9, 8, 7, 6]))]
    [[3, 1, 2, 0, 5], [4, 9, 8, 7, 6]]
    """
    order = np.argsort(density, kind="stable")
    return np.array_split(order, max(1, min(most, len(density) // BIN)))
