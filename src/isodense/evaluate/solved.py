"""How many prompts a policy solves, where answers can be verified: pass@k."""

from __future__ import annotations

import numpy as np


def sizes(generations: int) -> list[int]:
    """Return the numbers k for which pass@k is reported: 1, 2, 4, … up to all completions.

    Examples
    --------
    >>> sizes(6)
    [1, 2, 4, 6]
    """
    powers = [2**power for power in range(generations.bit_length()) if 2**power < generations]
    return [*powers, generations]


def pass_at(solved: np.ndarray, generations: int, k: int) -> np.ndarray:
    """Return the chance that one of `k` completions of a prompt is solved.

    It is the unbiased estimate of Chen et al. (2021, arXiv 2107.03374), 1 − C(n − c, k) / C(n, k)
    where c of n completions were solved, in the form of a product that does not overflow.

    Parameters
    ----------
    solved : ndarray of shape (n_prompts,), int64
        How many completions of each prompt were solved.
    generations : int
        How many there are of each.
    k : int
        At most `generations`.

    Returns
    -------
    ndarray of shape (n_prompts,), float64

    Examples
    --------
    >>> pass_at(np.array([0, 1, 2, 4]), 4, 2).round(3).tolist()
    [0.0, 0.5, 0.833, 1.0]
    """
    failed = generations - np.asarray(solved, dtype=np.int64)
    none = np.ones(len(failed))  # chance that all of k are among the failed
    for drawn in range(k):
        none *= np.clip(failed - drawn, 0, None) / (generations - drawn)
    return 1 - none
