"""Did training help, and where: base against trained policy on the held-out prompts.

Both policies answer the same prompts, in the same batches, with the same draws; the reward scores
both. Intervals are 95% t intervals over prompts, the gain's over the prompts' paired differences.
Prompts are also sorted by density into deciles (fewer, if that left under ``BIN`` prompts each),
the first of which holds the most isolated prompts.

The reward is the one that was trained on, so a gain says that training worked, not that people
would agree; ``completions.jsonl`` holds every answer for reading.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isodense.artifacts import content_sha256, load_array, read_manifest, require_same_ids
from isodense.conversations import Message
from isodense.errors import ArtifactError, TrainingError
from isodense.params import param
from isodense.promptset import PromptSet
from isodense.records import write_jsonl
from isodense.text_metrics import distinct, repetition, words
from isodense.weights import HELDOUT_DENSITY

if TYPE_CHECKING:
    from isodense.generation import Completion

Score = Callable[[Sequence[list[Message]], Sequence[str]], np.ndarray]

BIN = 5


@dataclass(frozen=True)
class EvaluateParams:
    """Section ``evaluate`` of ``params.yaml``.

    Attributes
    ----------
    max_prompts : int
        Held-out prompts used; where there are more, those with the smallest ids, which are hashes.
    max_completion_tokens : int
        Completions are cut there.
    temperature : float
        0 for the likeliest token at each step.
    batch_tokens : int
        Padded tokens per batch, prompt and completion.
    """

    max_prompts: int = param(minimum=2)
    max_completion_tokens: int = param(minimum=1)
    temperature: float = param(minimum=0.0, maximum=10.0)
    batch_tokens: int = param(minimum=64)


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
    completions : list of Completion
    rewards : ndarray of shape (n_prompts,), float32
    """

    completions: list[Completion]
    rewards: np.ndarray

    def describe(self) -> dict[str, float]:
        """Return the mean reward with its interval, and what the texts are like."""
        mean, low, high = interval(self.rewards)
        texts = [words(made.text) for made in self.completions]
        return {
            "reward": mean,
            "reward_low": low,
            "reward_high": high,
            "distinct_1": round(distinct(texts, 1), 6),
            "distinct_2": round(distinct(texts, 2), 6),
            "repetition": round(repetition(texts), 6),
            "tokens": round(float(np.mean([made.tokens for made in self.completions])), 6),
            "truncated": round(float(np.mean([made.truncated for made in self.completions])), 6),
        }


@dataclass(frozen=True)
class Comparison:
    """Both policies on the same prompts."""

    heldout: Heldout
    base: Answers
    trained: Answers

    @property
    def gain(self) -> np.ndarray:
        """Return the trained less the base reward: ndarray of shape (n_prompts,), float64."""
        return self.trained.rewards.astype(np.float64) - self.base.rewards

    def metrics(self) -> dict[str, Any]:
        """Return both policies' description, and the mean gain overall and by decile."""
        mean, low, high = interval(self.gain)
        by_decile = {
            f"{number:02d}": round(float(self.gain[rows].mean()), 6)
            for number, rows in enumerate(bins(self.heldout.density), start=1)
        }
        return {
            "prompts": len(self.heldout.prompts),
            "base": self.base.describe(),
            "trained": self.trained.describe(),
            "gain": {
                "reward": mean,
                "reward_low": low,
                "reward_high": high,
                "by_decile": by_decile,
            },
        }

    def deciles(self) -> list[dict[str, Any]]:
        """Return the mean reward of each density bin under each policy, with its interval."""
        rows = []
        for number, members in enumerate(bins(self.heldout.density), start=1):
            density = round(float(self.heldout.density[members].mean()), 6)
            for policy, answers in (("base", self.base), ("trained", self.trained)):
                mean, low, high = interval(answers.rewards[members])
                row = {"decile": number, "density": density, "policy": policy}
                rows.append(row | {"reward": mean, "low": low, "high": high})
        return rows

    def completions(self) -> list[dict[str, Any]]:
        """Return each prompt with both answers and their rewards, for people to read."""
        rows = []
        for number, prompt in enumerate(self.heldout.prompts.rows):
            row = {"id": prompt["id"], "text": prompt["text"]}
            row["density"] = round(float(self.heldout.density[number]), 6)
            for policy, answers in (("base", self.base), ("trained", self.trained)):
                row[policy] = answers.completions[number].text
                row[f"{policy}_reward"] = round(float(answers.rewards[number]), 6)
            rows.append(row)
        return rows


def load_heldout(prompts: PromptSet, density: str | Path) -> Heldout:
    """Return the held-out prompts with their density.

    Parameters
    ----------
    prompts : PromptSet
        All prompts.
    density : str or Path
        The density artifact.

    Raises
    ------
    TrainingError
        If fewer than two prompts are held out, which give no interval.
    ArtifactError
        If the densities belong to other prompts.
    """
    heldout = prompts.split("heldout")
    if len(heldout) < 2:
        message = f"{len(heldout)} of {len(prompts)} prompts are held out; evaluating takes two"
        raise TrainingError(message, "raise prompts.heldout, or add data")
    manifest = read_manifest(density, "density")
    require_same_ids(prompts.split("train").ids_sha256, manifest, f"the weights in {density}")
    path = Path(density) / HELDOUT_DENSITY
    values = load_array(path)
    if values.shape != (len(heldout),) or not np.isfinite(values).all():
        message = f"{path} does not hold one finite number for each of {len(heldout)} prompts"
        raise ArtifactError(message, "run `dvc repro density`")
    return Heldout(heldout, values)


def sample(heldout: Heldout, size: int) -> Heldout:
    """Return at most `size` of the prompts, in order.

    Ids are uniform hashes, so the smallest are a fair sample, and one that appending data changes
    little.
    """
    chosen = np.sort(np.argsort(np.array(heldout.prompts.ids), kind="stable")[:size])
    rows = [heldout.prompts.rows[row] for row in chosen]
    return Heldout(PromptSet(rows), heldout.density[chosen])


def evaluate(
    heldout: Heldout,
    policy: Path,
    trained: Path,
    reward: Path,
    params: EvaluateParams,
    seed: int,
    device: str,
) -> Comparison:
    """Let both policies answer the held-out prompts, and score the answers.

    Parameters
    ----------
    heldout : Heldout
        All held-out prompts.
    policy, trained, reward : Path
        Artifacts of the untrained policy, the trained one and the reward.
    params : EvaluateParams
        The stage's section.
    seed : int
        Of draws at a temperature above 0.
    device : str
        A torch device.

    Raises
    ------
    ArtifactError
        If `trained` was not trained from `policy`, or the reward belongs to another policy.
    """
    from isodense.reward_model import load_reward

    manifest = read_manifest(trained, "train")
    if manifest["inputs"]["policy"] != content_sha256(read_manifest(policy, "models")):
        message = f"{trained} was trained from another policy than {policy}"
        raise ArtifactError(message, "run `dvc repro train`")
    score = load_reward(reward, policy, device).score
    heldout = sample(heldout, params.max_prompts)
    base, after = (
        answer(heldout, folder, score, params, seed, device) for folder in (policy, trained)
    )
    return Comparison(heldout, base, after)


def answer(
    heldout: Heldout,
    policy: str | Path,
    score: Score,
    params: EvaluateParams,
    seed: int,
    device: str,
) -> Answers:
    """Let one policy answer the prompts, and score the answers.

    Parameters
    ----------
    heldout : Heldout
        The prompts.
    policy : str or Path
        A model folder.
    score : callable
        The reward: ``(prompts, completions) -> ndarray of shape (n,)``.
    params : EvaluateParams
        The stage's section.
    seed : int
        Of draws at a temperature above 0.
    device : str
        A torch device.
    """
    from tqdm import tqdm

    from isodense.generation import complete
    from isodense.policy import load_policy, load_tokenizer
    from isodense.stage import progress

    asked = [row["prompt"] for row in heldout.prompts.rows]
    with tqdm(total=len(asked), unit="answer", desc=str(policy), **progress()) as bar:
        completions = complete(
            load_policy(policy, device),
            load_tokenizer(policy),
            asked,
            max_tokens=params.max_completion_tokens,
            temperature=params.temperature,
            batch_tokens=params.batch_tokens,
            seed=seed,
            on_batch=bar.update,
        )
    return Answers(completions, score(asked, [made.text for made in completions]))


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
