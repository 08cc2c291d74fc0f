"""How many seeds it takes to show a difference."""

from __future__ import annotations

import numpy as np

POWER, LEVEL = 0.8, 0.05
NODES = 4096  # of the integral
MOST = 2**20  # seeds; a difference that needs more is none


def seeds_needed(differences: np.ndarray) -> int | None:
    """Return how many seeds show a difference as large as the mean of these with 80% power.

    That is the least number of pairs for which a paired t test, two-sided at 5%, rejects with
    probability 0.8 if the differences are normal with the mean and standard deviation of these: by
    the noncentral t distribution (Cohen 1988, Statistical Power Analysis, chapter 2).

    Parameters
    ----------
    differences : ndarray of shape (n_seeds,)

    Returns
    -------
    int or None
        None where the mean is 0 or there are fewer than two differences.

    Examples
    --------
    >>> seeds_needed(np.array([0.0, 1.0]))  # mean over standard deviation: 0.71
    18
    """
    if len(differences) < 2 or not (mean := abs(float(differences.mean()))):
        return None
    spread = float(differences.std(ddof=1))
    if spread < 1e-12 * mean:
        return 2
    effect = mean / spread
    few, many = 1, 2
    while power(effect, many) < POWER:
        few, many = many, 2 * many
        if many > MOST:
            return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if power(effect, middle) >= POWER else (middle, many)
    return many


def power(effect: float, pairs: int) -> float:
    """Return the probability that a paired t test, two-sided at 5%, rejects.

    Parameters
    ----------
    effect : float
        Mean of the differences over their standard deviation.
    pairs : int
        At least 2.
    """
    from scipy.special import chdtri, ndtr, stdtrit

    # The noncentral t distribution as a mean over the sample's standard deviation, which also
    # holds where scipy's nctdtr gives NaN: large effects in few pairs.
    ranks = (np.arange(NODES) + 0.5) / NODES
    deviation = np.sqrt(chdtri(pairs - 1, ranks) / (pairs - 1))
    limit, shift = stdtrit(pairs - 1, 1 - LEVEL / 2) * deviation, abs(effect) * np.sqrt(pairs)
    return float((ndtr(shift - limit) + ndtr(-shift - limit)).mean())
