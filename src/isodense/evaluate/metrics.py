"""Metrics of two policies on the same prompts: rewards, solved prompts, diversity, divergence.

Every prompt has the same number of completions by each policy. The reward of a prompt is the mean
reward of its completions that have one; intervals are 95% t intervals over prompts, for the gain
over paired differences. :mod:`isodense.evaluate.averages` weighs kinds of prompts alike. Prompts
are also binned by density into deciles (fewer, if a decile would hold under ``BIN`` prompts), the
most isolated prompts first. ``docs/stages/evaluate.md`` defines each metric.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isodense.evaluate.averages import gain_over_labels, over_labels
from isodense.evaluate.diversity import self_bleu, vendi
from isodense.evaluate.heldout import Heldout
from isodense.evaluate.intervals import (
    interval,
    mean_known,
    named_interval,
    named_share,
    named_weighted,
    rounded,
)
from isodense.evaluate.solved import pass_at, sizes
from isodense.evaluate.text_metrics import distinct, repetition, stock_phrases, words
from isodense.pipeline.artifact import replacing
from isodense.pipeline.jsonl import write_jsonl

if TYPE_CHECKING:
    from isodense.models.inference.generation import Completion

BIN = 5
SHARES = "pass_at_"  # begins the names of what is a share of draws


@dataclass(frozen=True)
class Answers:
    """Completions of one policy, with rewards and embeddings.

    Attributes
    ----------
    completions : list of list of Completion
        `num_generations` completions of each prompt.
    rewards : ndarray of shape (n_prompts, num_generations), float32
        Reward of each completion.
        NaN where no reward function has an opinion.
    vectors : ndarray of shape (n_prompts, num_generations, dim), float32
        Unit embeddings of the completions.
    functions : dict of str to ndarray of shape (n_prompts, num_generations), float32
        What each reward function gives, of kind function.
    solved_above : float or None
        A completion to which the first function gives more is solved; None where none tells.
    answer_log_probs : ndarray of shape (n_prompts,), float64, or None
        Log-probability of each prompt's ground truth in nats, NaN for a prompt without one; None
        where no column has them.
    """

    completions: list[list[Completion]]
    rewards: np.ndarray
    vectors: np.ndarray
    functions: dict[str, np.ndarray] = field(default_factory=dict)
    solved_above: float | None = None
    answer_log_probs: np.ndarray | None = None

    @property
    def grouped(self) -> bool:
        """Whether each prompt has several completions, a group in the sense of GRPO."""
        return self.rewards.shape[1] > 1

    @property
    def reward(self) -> np.ndarray:
        """Mean reward of each prompt: ndarray of shape (n_prompts,), float64."""
        return mean_known(self.rewards, axis=1)

    @property
    def pass_at(self) -> dict[str, np.ndarray]:
        """Estimates of pass@k of each prompt, by ``pass_at_k``; none where rewards do not tell."""
        if self.solved_above is None:
            return {}
        decisive = next(iter(self.functions.values()), self.rewards)
        solved, count = (decisive > self.solved_above).sum(axis=1), decisive.shape[1]
        return {f"pass_at_{k}": pass_at(solved, count, k) for k in sizes(count)}

    @property
    def measured(self) -> dict[str, np.ndarray]:
        """What is averaged over prompts: reward, pass@k, and the answer's probability if known."""
        found = {"reward": self.reward, **self.pass_at}
        if self.answer_log_probs is not None:
            found["answer_probability"] = np.exp(self.answer_log_probs)
        return found

    @property
    def frac_reward_zero_std(self) -> np.ndarray:
        """Whether all completions of a prompt have the same reward: (n_prompts,), bool.

        All advantages of such a group are 0. Rewards are compared up to rounding; completions
        without one do not count.
        """
        unknown = np.isnan(self.rewards)
        first = np.take_along_axis(self.rewards, unknown.argmin(axis=1)[:, None], axis=1)
        return (np.isclose(self.rewards, first) | unknown).all(axis=1)

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
        result: dict[str, Any] = {}
        for name, values in self.measured.items():
            result |= named_mean(name, values)
        result |= {name: round(float(value), 6) for name, value in found.items()}
        if self.functions:
            means = {name: mean_known(values) for name, values in self.functions.items()}
            result["functions"] = {name: rounded(mean) for name, mean in means.items()}
        return result


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
    changed : bool
        Whether training changed the policy; without any signal it does not.
    """

    heldout: Heldout
    base: Answers
    trained: Answers
    log_ratios: np.ndarray | None
    changed: bool = True

    @property
    def policies(self) -> dict[str, Answers]:
        """Answers of the policy before and after training, by name."""
        return {"base": self.base, "trained": self.trained}

    @property
    def gains(self) -> dict[str, np.ndarray]:
        """What the trained policy has more than the base policy of each measure, by prompt."""
        base = self.base.measured
        return {name: values - base[name] for name, values in self.trained.measured.items()}

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of both policies, the divergence, and the gain by density decile."""
        labels = self.heldout.rarest_first
        found: dict[str, Any] = {"prompts": len(self.heldout.prompts)}
        found |= {"labels": len(labels)} if labels else {}
        for policy, answers in self.policies.items():
            found[policy] = answers.describe()
            for name, values in answers.measured.items():
                share = name.startswith(SHARES)
                found[policy] |= over_labels(name, values, labels, share)
                found[policy] |= self._evened(name, values, share)
            if answers.grouped:
                found[policy]["frac_reward_zero_std_by_decile"] = self._by_decile(
                    answers.frac_reward_zero_std
                )
        found["trained"] |= self.divergence()
        return found | {"gain": self._gain(), "clean": self.on_clean()}

    def _gain(self) -> dict[str, Any]:
        """Return the gain of each measure: overall, over labels or evened, and by decile."""
        labels, base, trained = self.heldout.rarest_first, self.base.measured, self.trained.measured
        found: dict[str, Any] = {}
        for name, values in self.gains.items():
            found |= named_interval(name, values)
            found |= gain_over_labels(name, base[name], trained[name], labels)
            found |= self._evened(name, values)
        found["by_decile"] = self._by_decile(self.gains["reward"])
        for name in ("pass_at_1", "answer_probability"):
            if name in self.gains:
                found[f"{name}_by_decile"] = self._by_decile(self.gains[name])
        return found

    def _evened(self, name: str, values: np.ndarray, share: bool = False) -> dict[str, Any]:
        """Return the mean weighted inversely to density, where there are no labels to go by."""
        if len(self.heldout.labels) > 1:
            return {}
        return named_weighted(f"{name}_evened", values, self.heldout.weights, share)

    def on_clean(self) -> dict[str, Any]:
        """Return measures and gains over the prompts without a near-duplicate in training.

        Without such prompts there is nothing but their number.
        """
        clean = self.heldout.clean
        found: dict[str, Any] = {"prompts": int(clean.sum())}
        if not found["prompts"]:
            return found
        for policy, answers in self.policies.items():
            found[policy] = {}
            for name, values in answers.measured.items():
                found[policy] |= named_mean(name, values[clean])
        found["gain"] = {}
        for name, values in self.gains.items():
            found["gain"] |= named_interval(name, values[clean])
        return found

    def divergence(self) -> dict[str, float | None]:
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
            for policy, answers in self.policies.items():
                mean, low, high = interval(answers.reward[members])
                row = {"decile": number, "density": density, "policy": policy}
                row |= {"reward": mean, "low": low, "high": high}
                row |= _others(answers, members)
                if answers.grouped:
                    row["frac_reward_zero_std"] = round(
                        float(answers.frac_reward_zero_std[members].mean()), 6
                    )
                rows.append(row)
        return rows

    def by_label(self) -> list[dict[str, Any]]:
        """Return each label's measures under each policy, with intervals."""
        rows = []
        for label, members in self.heldout.labels.items():
            for policy, answers in self.policies.items():
                mean, low, high = interval(answers.reward[members])
                row = {"label": label, "prompts": len(members), "policy": policy}
                row |= {"training_prompts": self.heldout.training.get(label, 0)}
                row |= {"reward": mean, "low": low, "high": high}
                rows.append(row | _others(answers, members))
        return rows

    def completions(self) -> list[dict[str, Any]]:
        """Return each prompt with density, and completions and rewards of both policies."""
        rows = []
        for number, prompt in enumerate(self.heldout.prompts.rows):
            row = {"id": prompt["id"], "text": prompt["text"]}
            row["density"] = round(float(self.heldout.density[number]), 6)
            row |= {"leaked": True} if prompt["id"] in self.heldout.leaked else {}
            for policy, answers in self.policies.items():
                row[policy] = [completion.text for completion in answers.completions[number]]
                rewards = answers.rewards[number].tolist()
                row[f"{policy}_reward"] = [rounded(reward) for reward in rewards]
                for name, values in answers.functions.items():
                    given = [rounded(reward) for reward in values[number].tolist()]
                    row.setdefault(f"{policy}_functions", {})[name] = given
            rows.append(row)
        return rows

    def _by_decile(self, values: np.ndarray) -> dict[str, float | None]:
        """Return the mean of `values`, one per prompt, in each density bin."""
        return {
            f"{number:02d}": rounded(mean_known(values[members]))
            for number, members in enumerate(bins(self.heldout.density), start=1)
        }


def write_tables(comparison: Comparison, deciles: Path, labels: Path, completions: Path) -> None:
    """Write the tables of deciles and of labels as CSV and the completions as JSON lines."""
    _write_csv(deciles, comparison.deciles(), [])
    header = ["label", "prompts", "policy", "training_prompts", "reward", "low", "high"]
    _write_csv(labels, comparison.by_label(), header)
    with replacing(completions) as staging:
        write_jsonl(staging, comparison.completions())


def _write_csv(path: Path, rows: list[dict[str, Any]], header: list[str]) -> None:
    with replacing(path) as staging, staging.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]) if rows else header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def named_mean(name: str, values: np.ndarray) -> dict[str, float | None]:
    """Return the mean of a measure over prompts, with the interval that it has."""
    return (named_share if name.startswith(SHARES) else named_interval)(name, values)


def _others(answers: Answers, members: np.ndarray) -> dict[str, Any]:
    """Return what is known of some prompts beside the reward, with intervals."""
    found: dict[str, Any] = {}
    for name in ("pass_at_1", "answer_probability"):
        if name in answers.measured:
            found |= named_mean(name, answers.measured[name][members])
    return found


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
