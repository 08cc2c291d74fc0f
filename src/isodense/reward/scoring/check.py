"""How often a reward prefers the right answer, beside length alone and chance.

The rule "prefer the longer answer" (or the shorter, whichever wins on the training pairs) is what a
reward has to beat: one that does no better has learnt length. Both are compared on the same
held-out pairs, so the interval of their difference is one of paired proportions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.errors import ArtifactError, TrainingError

Z95 = 1.959963984540054
PERFECT = 0.95  # an accuracy that a reward as good as perfect may have


def wilson(successes: float, total: float) -> tuple[float, float]:
    """Return the 95% interval of a proportion (Wilson 1927).

    Examples
    --------
    >>> low, high = wilson(50, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    share, z2 = successes / total, Z95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * np.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def accuracy(margin: np.ndarray) -> dict[str, float]:
    """Return the share of pairs whose chosen answer wins, a tie counting one half.

    Parameters
    ----------
    margin : ndarray of shape (n_pairs,)
        Score of the chosen answer less that of the rejected one.

    Returns
    -------
    dict
        ``accuracy`` with its Wilson interval ``low`` … ``high``.
    """
    wins = float(_wins(margin).sum())
    low, high = wilson(wins, len(margin))
    return {"accuracy": wins / len(margin), "low": low, "high": high}


def over_labels(margin: np.ndarray, labels: Sequence[str | None]) -> dict[str, Any]:
    """Return the accuracy with every label counting alike: the mean of the labels' accuracies.

    Parameters
    ----------
    margin : ndarray of shape (n_pairs,)
        See :func:`accuracy`.
    labels : sequence of str or None
        The label of each pair; those without one are left out.

    Returns
    -------
    dict
        ``labels``, their number, and ``accuracy`` with an interval over labels, that of Wilson, as
        if each label were right or wrong: too wide rather than too narrow. Of fewer than two labels
        the number alone.

    Examples
    --------
    >>> found = over_labels(np.array([1.0, 1.0, 1.0, -1.0]), ["a", "a", "a", "b"])
    >>> found["labels"], found["accuracy"]
    (2, 0.5)
    """
    wins: dict[str, list[float]] = {}
    for label, win in zip(labels, _wins(margin).tolist(), strict=True):
        if label:
            wins.setdefault(label, []).append(win)
    if len(wins) < 2:
        return {"labels": len(wins)}
    mean = float(np.mean([np.mean(wins[label]) for label in sorted(wins)]))
    low, high = wilson(mean * len(wins), len(wins))
    return {"labels": len(wins), "accuracy": mean, "low": low, "high": high}


def over(margin: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Return by how much one accuracy exceeds another on the same pairs.

    The interval is the adjusted one of Agresti and Min (2005, Statistics in Medicine 24:729) for
    matched proportions, which also holds for a handful of pairs.

    Parameters
    ----------
    margin, other : ndarray of shape (n_pairs,)
        Margins of the two rules, see :func:`accuracy`.

    Returns
    -------
    dict
        ``difference`` with its 95% interval ``low`` … ``high``.
    """
    gain = _wins(margin) - _wins(other)
    size = len(gain) + 2
    centre = gain.sum() / size
    half = Z95 * np.sqrt(((gain @ gain + 1) / size - centre**2) / size)
    return {
        "difference": float(gain.mean()),
        "low": float(max(-1.0, centre - half)),
        "high": float(min(1.0, centre + half)),
    }


def compare(margin: np.ndarray, length: np.ndarray, train_length: np.ndarray) -> dict[str, Any]:
    """Return the held-out accuracy beside that of length alone and chance.

    Parameters
    ----------
    margin : ndarray of shape (n_heldout,)
        The reward's margins of the held-out pairs.
    length : ndarray of shape (n_heldout,)
        Tokens of the chosen answer less those of the rejected one.
    train_length : ndarray of shape (n_train,)
        The same of the training pairs, which say whether length prefers longer or shorter.

    Returns
    -------
    dict
        ``heldout``, ``length_only``, ``over_length`` and ``beats_chance``: whether one half lies
        below the whole interval of ``heldout``.
    """
    longer = accuracy(train_length)["accuracy"] >= 0.5
    length = length if longer else -length
    heldout = accuracy(margin)
    return {
        "heldout": heldout,
        "length_only": {**accuracy(length), "prefers": "longer" if longer else "shorter"},
        "over_length": over(margin, length),
        "beats_chance": heldout["low"] > 0.5,
    }


def summary(report: dict[str, Any]) -> dict[str, float]:
    """Return what the manifest keeps of :func:`compare`, and :func:`require_not_weak` reads."""
    heldout, over_length = report["heldout"], report["over_length"]
    return {
        "heldout": heldout["accuracy"],
        "heldout_low": heldout["low"],
        "heldout_high": heldout["high"],
        "length_only": report["length_only"]["accuracy"],
        "over_length_low": over_length["low"],
    }


def is_weak(check: dict[str, float]) -> bool:
    """Return whether held-out pairs fail to show that a reward is more than length or chance.

    A reward passes in either of two ways. It is *shown to beat length*: the 95% interval of the
    difference on the same pairs lies above 0. Or it is *as good as perfect*: its own interval lies
    above one half and reaches :data:`PERFECT`. The second is for pairs that length sorts well, too,
    where nothing could beat it.

    Examples
    --------
    >>> is_weak({"heldout_low": 0.98, "heldout_high": 1.0, "over_length_low": -0.01})
    False
    >>> is_weak({"heldout_low": 0.45, "heldout_high": 0.59, "over_length_low": -0.08})
    True
    """
    beats_length = check["over_length_low"] > 0
    as_good_as_perfect = check["heldout_low"] > 0.5 and check["heldout_high"] >= PERFECT
    return not (beats_length or as_good_as_perfect)


def require_not_weak(manifest: dict[str, Any], where: str | Path) -> None:
    """Raise if a reward that was checked on pairs is weak; see :func:`is_weak`.

    Parameters
    ----------
    manifest : dict
        Of the reward's artifact.
    where : str or Path
        The artifact, for the error.

    Raises
    ------
    TrainingError
        If held-out pairs do not show the reward to be more than length or chance.
    ArtifactError
        If the manifest does not say.
    """
    found = manifest.get("check")
    if isinstance(found, dict) and "sampled" in found:
        return
    names = ("heldout", "heldout_low", "heldout_high", "length_only", "over_length_low")
    if not isinstance(found, dict) or any(name not in found for name in names):
        raise ArtifactError(f"{where} does not hold its accuracy", "run `dvc repro reward`")
    if is_weak(found):
        message = (
            f"the reward in {where} prefers the right answer in {found['heldout']:.1%} of the "
            f"held-out pairs ({found['heldout_low']:.1%} to {found['heldout_high']:.1%}), length "
            f"alone in {found['length_only']:.1%}: that does not show it to be better than length "
            f"(95% interval of the difference from {found['over_length_low']:+.1%})"
        )
        hint = (
            "improve the reward, hold out more pairs, or set train.on_weak_reward: warn to train "
            "on it anyway"
        )
        raise TrainingError(message, hint)


def no_signal(manifest: dict[str, Any]) -> str | None:
    """Return what to warn of if no sampled group had two different rewards, or None."""
    check = manifest.get("check")
    found = check.get("sampled") if isinstance(check, dict) else None
    if not isinstance(found, dict) or found["frac_reward_zero_std"] < 1:
        return None
    solved = ""
    if "never_solved" in found:
        never, always = found["never_solved"], found["always_solved"]
        solved = f" (never solved: {never:.0%}, always: {always:.0%})"
    return (
        f"in the check of the reward no group of {found['prompts']} prompts had two different "
        f"rewards{solved}: GRPO may get no signal"
    )


def said(sampled: dict[str, Any]) -> str:
    """Return the check on completions in words: the summary line of the stage."""
    rated = round(sampled["prompts"] * (1 - sampled["no_opinion"]))
    solved = ""
    if "never_solved" in sampled:
        shares = ("never_solved", "sometimes_solved", "always_solved")
        never, sometimes, always = (round(sampled[share] * rated) for share in shares)
        solved = f": {never} never solved, {sometimes} sometimes, {always} always"
    return (
        f"reward {sampled['reward']:.3f} ({sampled['reward_low']:.3f} to "
        f"{sampled['reward_high']:.3f}) of {sampled['num_generations']} completions each of "
        f"{rated} training prompts{solved}; "
        f"{sampled['frac_reward_zero_std']:.0%} of the groups have one reward throughout"
    )


def t_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of values and the ends of its 95% t interval; of one value, all three alike.

    Examples
    --------
    >>> [round(end, 3) for end in t_interval(np.array([1.0, 3.0]))]
    [2.0, -10.706, 14.706]
    """
    from scipy.special import stdtrit

    mean, size = float(np.mean(values)), len(values)
    if size < 2:
        return mean, mean, mean
    half = float(stdtrit(size - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(size))
    return mean, mean - half, mean + half


def _wins(margin: np.ndarray) -> np.ndarray:
    return (margin > 0) + 0.5 * (margin == 0)
