"""What was left out, cut, fell back or failed in a run, in words, from the metrics of its stages.

The last line of a stage, the report and ``isodense doctor`` say the same of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

OFTEN = 0.05  # share above which what is usual in a run deserves a look
Metrics = Mapping[str, Any]
Said = tuple[str, bool]  # the text, and whether it deserves a look


@dataclass(frozen=True)
class Notice:
    """One thing that was left out, cut, fell back or failed.

    Attributes
    ----------
    stage : str
    text : str
    serious : bool
        Whether it deserves a look, rather than being usual in a run.
    """

    stage: str
    text: str
    serious: bool


def notices(metrics: Metrics) -> list[Notice]:
    """Return what there is to say, in the order of the stages.

    Parameters
    ----------
    metrics : mapping
        Contents of the metrics files of any stages, merged.

    Examples
    --------
    >>> notices({"prompts": {"no_text": 2}})
    [Notice(stage='prompts', text='2 examples without text left out', serious=True)]
    """
    return [
        Notice(stage, text, serious)
        for stage, (key, say) in STAGES.items()
        if isinstance(metrics.get(key), Mapping)
        for text, serious in say(metrics[key], metrics)
    ]


def summary(metrics: Metrics) -> str:
    """Return the end of a stage's last line: what there is to say after a semicolon, or nothing."""
    return "".join(f"; {notice.text}" for notice in notices(metrics))


def _download(found: Metrics, _all: Metrics) -> Iterator[Said]:
    unusable = found.get("unusable", {})
    rows = found.get("examples", 0) + found.get("bad_rows", 0) + sum(unusable.values())
    reasons = {"malformed": found.get("bad_rows", 0), **unusable}
    for why, count in reasons.items():
        if count:
            share = f" ({count / rows:.1%})" if rows > count else ""
            yield f"{_count(count, 'row')} left out: {why}{share}", True


def _prompts(found: Metrics, _all: Metrics) -> Iterator[Said]:
    if count := found.get("no_text"):
        yield f"{_count(count, 'example')} without text left out", True
    for column, count in found.get("conflicting", {}).items():
        yield f"{_count(count, 'prompt')} with examples that disagree in {column}", True
    if count := found.get("dropped_conflicting"):
        yield f"{_count(count, 'prompt')} left out as conflicting", False
    if count := found.get("heldout_also_in_training"):
        yield (
            f"{_count(count, 'held-out prompt')} asked in training rows, too: not trained on",
            True,
        )
    if count := found.get("labels_without_heldout"):
        yield f"{_count(count, 'label')} without a held-out prompt", False


def _embeddings(found: Metrics, _all: Metrics) -> Iterator[Said]:
    if share := found.get("truncated_share"):
        yield f"{_share(share)} of the prompts cut at embeddings.max_tokens", share > OFTEN
    if count := found.get("equal_after_cutting"):
        yield f"{_count(count, 'prompt')} equal only after cutting", True
    if windows := found.get("windows"):
        read = f"{_count(windows['prompts'], 'prompt')} read in windows"
        yield f"{read}, at most {windows['most']} each", False
    if reason := found.get("padded"):
        yield f"texts ran in padded batches, slower than packs: {reason}", False


def _neighbors(found: Metrics, _all: Metrics) -> Iterator[Said]:
    if (recall := found.get("recall", 1.0)) < 1:
        yield f"{_share(1 - recall)} of the true neighbours missed ({found['method']})", False


def _reward(found: Metrics, _all: Metrics) -> Iterator[Said]:
    if count := found.get("unknown_pairs"):
        yield f"{_count(count, 'pair')} left out: the prompt is not in the set", True
    if count := found.get("truncated_pairs"):
        pairs = found.get("train_pairs", 0) + found.get("heldout_pairs", 0)
        yield f"{_count(count, 'pair')} cut at reward.max_tokens", count > OFTEN * pairs
    if found.get("beats_chance") is False:
        yield "the reward is not shown to be better than chance on held-out pairs", True
    for name, function in found.get("functions", {}).items():
        if share := function.get("no_opinion"):
            yield f"{name} has no opinion on {_share(share)} of the completions", share > OFTEN
    sampled = found.get("sampled", {})
    if count := sampled.get("passed_over"):
        yield f"{_count(count, 'prompt')} of the check passed over: no room in the context", True
    if share := sampled.get("frac_reward_zero_std"):
        yield f"{_share(share)} of the sampled groups have one reward", share == 1
    if share := sampled.get("no_opinion"):
        yield f"{_share(share)} of the sampled prompts have no reward", share > OFTEN
    if share := sampled.get("clipped_ratio"):
        yield f"{_share(share)} of the sampled completions cut at their limit", False


def _difficulty(found: Metrics, _all: Metrics) -> Iterator[Said]:
    if count := found.get("unknown"):
        text = f"{_count(count, 'prompt')} of unknown difficulty, drawn the most: as if half solved"
        yield text, count > OFTEN * found["prompts"]
    if share := found.get("clipped_ratio"):
        yield f"{_share(share)} of the completions cut at difficulty.max_completion_tokens", False


def _train(found: Metrics, everything: Metrics) -> Iterator[Said]:
    if count := found.get("skipped_draws"):
        draws = count + found.get("draws", 0)
        text = f"{_count(count, 'draw')} of prompts beyond train.max_prompt_tokens skipped"
        yield text, count > OFTEN * draws
    silent = everything.get("step", 0) - found.get("steps_with_signal", everything.get("step", 0))
    if silent > 0:
        yield f"{_count(silent, 'step')} without signal: no group had two rewards", True
    if not found.get("changed", 1):
        yield "the policy is unchanged", True


def _evaluate(found: Metrics, _all: Metrics) -> Iterator[Said]:
    policies = {"untrained": found.get("base", {}), "trained": found.get("trained", {})}
    for key, text in (
        ("clipped_ratio", "completions cut at evaluate.max_completion_tokens"),
        ("frac_reward_zero_std", "groups with one reward"),
    ):
        shares = {name: policy.get(key) or 0.0 for name, policy in policies.items()}
        if any(shares.values()):
            said = ", ".join(f"{_share(share)} {name}" for name, share in shares.items())
            yield f"{text}: {said}", False
    if "reward" in policies["trained"] and policies["trained"]["reward"] is None:
        yield "no reward function had an opinion on the trained policy's completions", True


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _share(share: float) -> str:
    return "under 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


STAGES: dict[str, tuple[str, Callable[[Metrics, Metrics], Iterator[Said]]]] = {
    "download": ("download", _download),
    "prompts": ("prompts", _prompts),
    "embeddings": ("embeddings", _embeddings),
    "neighbors": ("neighbors", _neighbors),
    "reward": ("reward", _reward),
    "difficulty": ("difficulty", _difficulty),
    "train": ("train", _train),
    "evaluate": ("eval", _evaluate),
}  # by stage, the section of its metrics
