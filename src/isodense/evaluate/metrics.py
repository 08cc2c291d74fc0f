"""Metrics of two policies on the same prompts: rewards, solved prompts, diversity, divergence.

Every prompt has the same number of completions by each policy. The reward of a prompt is the mean
reward of its completions that have one; intervals are 95% t intervals over prompts, for the gain
over paired differences. Means over labels weigh each kind of prompt alike, and their intervals are
over the labels' means. Prompts are also binned by density into deciles (fewer, if a decile would
hold under ``BIN`` prompts), the most isolated prompts first. ``docs/stages/evaluate.md`` defines
each metric.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isodense.evaluate.diversity import self_bleu, vendi
from isodense.evaluate.intervals import (
    interval,
    mean_known,
    named_interval,
    named_share,
    rounded,
)
from isodense.evaluate.solved import pass_at, sizes
from isodense.evaluate.text_metrics import distinct, repetition, stock_phrases, words
from isodense.pipeline.artifact import replacing
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
    kinds : bool
        Whether labels name kinds of prompts.
    leaked : frozenset of str
        Ids of those with a near-duplicate in training.
    """

    prompts: PromptSet
    density: np.ndarray
    kinds: bool = False
    leaked: frozenset[str] = frozenset()

    @property
    def clean(self) -> np.ndarray:
        """Whether a prompt has no near-duplicate in training: ndarray of shape (n_prompts,)."""
        return np.array([one not in self.leaked for one in self.prompts.ids], dtype=bool)

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """Row numbers of the prompts of each label, sorted by label; none unless labels are kinds.

        Prompts without a label are left out.
        """
        rows: dict[str, list[int]] = {}
        for number, row in enumerate(self.prompts.rows if self.kinds else []):
            if row.get("label"):
                rows.setdefault(row["label"], []).append(number)
        return {label: np.array(rows[label]) for label in sorted(rows)}


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
    """

    completions: list[list[Completion]]
    rewards: np.ndarray
    vectors: np.ndarray
    functions: dict[str, np.ndarray] = field(default_factory=dict)
    solved_above: float | None = None

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
        result: dict[str, Any] = named_interval("reward", self.reward)
        for name, values in self.pass_at.items():
            result |= named_share(name, values)
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
    def gain(self) -> np.ndarray:
        """Reward of the trained minus the base policy: ndarray of shape (n_prompts,), float64."""
        return self.trained.reward - self.base.reward

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of both policies, the divergence, and the gain by density decile."""
        labels = self.heldout.labels
        found: dict[str, Any] = {"prompts": len(self.heldout.prompts)}
        found |= {"labels": len(labels)} if labels else {}
        for name, answers in (("base", self.base), ("trained", self.trained)):
            found[name] = answers.describe()
            measured = {"reward": answers.reward, **answers.pass_at}
            found[name] |= over_labels(measured, labels, answers.pass_at)
            if answers.grouped:
                found[name]["frac_reward_zero_std_by_decile"] = self._by_decile(
                    answers.frac_reward_zero_std
                )
        found["trained"] |= self.divergence()
        gains = {"reward": self.gain, **self.gain_of_pass_at}
        gain: dict[str, Any] = {}
        for name, values in gains.items():
            gain |= named_interval(name, values)
        gain |= over_labels(gains, labels) | {"by_decile": self._by_decile(self.gain)}
        if "pass_at_1" in gains:
            gain["pass_at_1_by_decile"] = self._by_decile(gains["pass_at_1"])
        return found | {"gain": gain, "clean": self.on_clean()}

    def on_clean(self) -> dict[str, Any]:
        """Return rewards, pass@k and gains over the prompts without a near-duplicate in training.

        Without such prompts there is nothing but their number.
        """
        clean = self.heldout.clean
        found: dict[str, Any] = {"prompts": int(clean.sum())}
        if not found["prompts"]:
            return found
        for name, answers in (("base", self.base), ("trained", self.trained)):
            found[name] = named_interval("reward", answers.reward[clean])
            for key, values in answers.pass_at.items():
                found[name] |= named_share(key, values[clean])
        found["gain"] = named_interval("reward", self.gain[clean])
        for key, values in self.gain_of_pass_at.items():
            found["gain"] |= named_interval(key, values[clean])
        return found

    @property
    def gain_of_pass_at(self) -> dict[str, np.ndarray]:
        """Each pass@k of the trained minus that of the base policy, prompt by prompt."""
        base = self.base.pass_at
        return {name: values - base[name] for name, values in self.trained.pass_at.items()}

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
            for policy, answers in (("base", self.base), ("trained", self.trained)):
                mean, low, high = interval(answers.reward[members])
                row = {"decile": number, "density": density, "policy": policy}
                row |= {"reward": mean, "low": low, "high": high}
                row |= _interval_of_pass(answers, members)
                if answers.grouped:
                    row["frac_reward_zero_std"] = round(
                        float(answers.frac_reward_zero_std[members].mean()), 6
                    )
                rows.append(row)
        return rows

    def by_label(self) -> list[dict[str, Any]]:
        """Return mean reward and pass@1 of each label and policy, with intervals."""
        rows = []
        for label, members in self.heldout.labels.items():
            for policy, answers in (("base", self.base), ("trained", self.trained)):
                mean, low, high = interval(answers.reward[members])
                row = {"label": label, "prompts": len(members), "policy": policy}
                row |= {"reward": mean, "low": low, "high": high}
                rows.append(row | _interval_of_pass(answers, members))
        return rows

    def completions(self) -> list[dict[str, Any]]:
        """Return each prompt with density, and completions and rewards of both policies."""
        rows = []
        for number, prompt in enumerate(self.heldout.prompts.rows):
            row = {"id": prompt["id"], "text": prompt["text"]}
            row["density"] = round(float(self.heldout.density[number]), 6)
            row |= {"leaked": True} if prompt["id"] in self.heldout.leaked else {}
            for policy, answers in (("base", self.base), ("trained", self.trained)):
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
    header = ["label", "prompts", "policy", "reward", "low", "high"]
    _write_csv(labels, comparison.by_label(), header)
    with replacing(completions) as staging:
        write_jsonl(staging, comparison.completions())


def _write_csv(path: Path, rows: list[dict[str, Any]], header: list[str]) -> None:
    with replacing(path) as staging, staging.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]) if rows else header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _interval_of_pass(answers: Answers, members: np.ndarray) -> dict[str, Any]:
    """Return pass@1 of some prompts with its interval, where rewards tell."""
    values = answers.pass_at.get("pass_at_1")
    return {} if values is None else named_share("pass_at_1", values[members])


def over_labels(
    measured: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    shares: Collection[str] = (),
) -> dict[str, Any]:
    """Return means over labels of the labels' means, as ``…_over_labels`` with intervals.

    Parameters
    ----------
    measured : mapping of str to ndarray of shape (n_prompts,)
    labels : mapping of str to ndarray of int
        Row numbers of each label; with fewer than two, nothing is returned.
    shares : collection of str
        Names of what lies in [0, 1].
    """
    found: dict[str, Any] = {}
    for name, values in measured.items() if len(labels) > 1 else ():
        means = np.array([mean_known(values[members]) for members in labels.values()])
        named = named_share if name in shares else named_interval
        found |= named(f"{name}_over_labels", means)
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
