"""How often a reward prefers the right answer, beside length alone and chance.

The rule "prefer the longer answer" (or the shorter, whichever wins on the training pairs) is what a
reward has to beat: one that does no better has learnt length. Both are compared on the same
held-out pairs, so the interval of their difference is one of paired proportions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.errors import ArtifactError, TrainingError

Z95 = 1.959963984540054


def wilson(successes: float, total: int) -> tuple[float, float]:
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


def require_better_than_length(manifest: dict[str, Any], where: str | Path) -> None:
    """Raise unless a reward prefers the right answer more often than length alone does.

    Parameters
    ----------
    manifest : dict
        Of the reward's artifact.
    where : str or Path
        The artifact, for the error.

    Raises
    ------
    TrainingError
        If its held-out accuracy is not above that of length alone.
    ArtifactError
        If the manifest does not say.
    """
    found = manifest.get("check")
    if not isinstance(found, dict):
        raise ArtifactError(f"{where} does not hold its accuracy", "run `dvc repro reward`")
    if not found["heldout"] > found["length_only"]:
        message = (
            f"the reward in {where} prefers the right answer in {found['heldout']:.1%} of the "
            f"held-out pairs, length alone in {found['length_only']:.1%}"
        )
        hint = "improve the reward, or set train.on_weak_reward: warn to train on it anyway"
        raise TrainingError(message, hint)


def _wins(margin: np.ndarray) -> np.ndarray:
    return (margin > 0) + 0.5 * (margin == 0)
