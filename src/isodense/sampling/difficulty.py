"""Reading the difficulty artifact: how often the untrained policy solves each training prompt.

A group of completions that are all wrong, or all right, has equal rewards and teaches GRPO nothing.
With reward 0 or 1 the expected variance of a group's rewards is in proportion to p(1 - p), where p
is the share of completions that solve the prompt: that is the *signal* a draw of it can give. It is
largest for a prompt that is solved half of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.artifact import checked, load_array, read_manifest
from isodense.pipeline.errors import ArtifactError, TrainingError

SOLVED, COMPLETIONS, IDS = "solved.npy", "completions.npy", "prompt_ids.npy"
DTYPES = {SOLVED: "int32", COMPLETIONS: "int32", IDS: "S32"}
HINT = "run `dvc repro difficulty`, or `dvc checkout --force data/difficulty`"
MOST = 0.25  # of p(1 - p)


@dataclass(frozen=True)
class Difficulty:
    """How often each training prompt was solved before training.

    Attributes
    ----------
    solved : ndarray of shape (n_prompts,), int32
        Completions that solve the prompt.
    completions : ndarray of shape (n_prompts,), int32
        Completions that were scored; 0 where nothing is known of a prompt.
    metadata : dict
        The artifact's manifest.
    """

    solved: np.ndarray
    completions: np.ndarray
    metadata: dict[str, Any]

    @property
    def pass_rates(self) -> np.ndarray:
        """See :func:`pass_rates`."""
        return pass_rates(self.solved, self.completions)

    def signal(self, floor: float) -> np.ndarray:
        """See :func:`signal`."""
        return signal(self.solved, self.completions, floor)


def pass_rates(solved: np.ndarray, completions: np.ndarray) -> np.ndarray:
    """Return the pass rate of each prompt, smoothed: the mean under a uniform prior on [0, 1].

    Laplace's rule of succession. None of 8 completions solved is 0.1 rather than 0, because such a
    prompt may be solved yet; a prompt without completions has 0.5.

    Parameters
    ----------
    solved, completions : ndarray of shape (n_prompts,), int

    Returns
    -------
    ndarray of shape (n_prompts,), float64

    Examples
    --------
    >>> pass_rates(np.array([0, 4, 8, 0]), np.array([8, 8, 8, 0])).tolist()
    [0.1, 0.5, 0.9, 0.5]
    """
    return (np.asarray(solved) + 1.0) / (np.asarray(completions) + 2.0)


def signal(solved: np.ndarray, completions: np.ndarray, floor: float) -> np.ndarray:
    """Return the factor by which difficulty multiplies each prompt's draws: p(1 - p) over 1/4.

    Parameters
    ----------
    solved, completions : ndarray of shape (n_prompts,), int
    floor : float
        Smallest factor.

    Returns
    -------
    ndarray of shape (n_prompts,), float64
        At most 1, of a prompt that is solved half of the time; the same for p and 1 - p.

    Examples
    --------
    >>> signal(np.array([0, 4, 8]), np.array([8, 8, 8]), floor=0.0).round(2).tolist()
    [0.36, 1.0, 0.36]
    """
    p = pass_rates(solved, completions)
    return np.maximum(p * (1 - p) / MOST, floor)


def load_difficulty(folder: str | Path) -> Difficulty:
    """Load ``data/difficulty`` and check it.

    Parameters
    ----------
    folder : str or Path
        The artifact's folder.

    Raises
    ------
    TrainingError
        If the stage is off, so that the artifact is empty.
    ArtifactError
        If the artifact is incomplete or damaged, or its counts are impossible.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, "difficulty")
    if not manifest["files"]:
        message = f"{folder} is empty: the pass rates of the prompts were not measured"
        hint = "set difficulty.completions (8, say; with difficulty.column where the data has them)"
        raise TrainingError(message, f"{hint} and run `dvc repro`")
    arrays = {name: load_array(checked(folder, manifest, name)) for name in DTYPES}
    for name, array in arrays.items():
        if array.shape != (manifest["rows"],) or array.dtype != DTYPES[name]:
            message = f"{folder / name} does not hold {manifest['rows']} values of {DTYPES[name]}"
            raise ArtifactError(message, HINT)
    solved, completions = arrays[SOLVED], arrays[COMPLETIONS]
    if bad := int(((solved < 0) | (solved > completions)).sum()):
        message = f"{folder}: {bad} prompts are solved more often than answered, or less than never"
        raise ArtifactError(message, HINT)
    return Difficulty(solved, completions, manifest)
