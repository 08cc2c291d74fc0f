"""What every kind of reward is given, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isodense.prompts.reader import PromptSet
from isodense.reward.params import RewardParams

if TYPE_CHECKING:
    from isodense.reward.scoring.load import Reward


@dataclass(frozen=True)
class Task:
    """What each kind is given.

    Attributes
    ----------
    train, heldout : list of dict
        Pairs; empty where the reward is checked on completions instead.
    weights : ndarray of shape (n_train,), float64
        How much each training pair counts; mean 1.
    folds : ndarray of shape (n_train,), int64
        Fold of each training pair for cross-validation, near-duplicates in one.
    prompts : PromptSet
        All prompts.
    policy : Path
        The policy's artifact.
    params : RewardParams
    seed : int
    device : str
        A torch device.
    cache : Path
        Root of the cache, outside all outputs.
    """

    train: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    weights: np.ndarray
    folds: np.ndarray
    prompts: PromptSet
    policy: Path
    params: RewardParams
    seed: int
    device: str
    cache: Path


@dataclass(frozen=True)
class Outcome:
    """What each kind gives back, beside the files it wrote.

    Attributes
    ----------
    heldout : ndarray of shape (n_heldout,), float64
        Score of the chosen answer less that of the rejected one; empty without pairs.
    train : ndarray of shape (n_train,), float64, or None
        The same of the training pairs, of a kind that is fitted on them.
    cross_validated : ndarray of shape (n,), float64, or None
        The same of the first training pairs, each by a reward that was fitted on other folds.
    truncated : int
        Pairs of which a conversation was cut.
    fields : dict
        What else the manifest records.
    reward : Reward or None
        The reward itself, of a kind that does without pairs.
    """

    heldout: np.ndarray
    train: np.ndarray | None = None
    cross_validated: np.ndarray | None = None
    truncated: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    reward: Reward | None = None
