"""Averages that do not depend on how many prompts of a kind are held out.

Held-out prompts are usually as lopsided as the training prompts, and there sampling as lopsided is
the best that can be done. Where labels name kinds of prompts, every label counts alike: over all
labels, over those with few or many training prompts, and over those where a policy does worst.
Where there are no labels, prompts are weighted inversely to density, as training weighs them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isodense.evaluate.intervals import mean_known, named_interval, named_share


def over_labels(
    name: str, values: np.ndarray, labels: Sequence[np.ndarray], share: bool = False
) -> dict[str, float | None]:
    """Return means over labels of the labels' means, with intervals over labels.

    Parameters
    ----------
    name : str
        Name of the measure; those of the averages begin with it.
    values : ndarray of shape (n_prompts,)
        NaN where not known.
    labels : sequence of ndarray of int
        Row numbers of each label, those of the label with fewest training prompts first.
    share : bool
        Whether to give the interval of :func:`isodense.evaluate.intervals.named_share`.

    Returns
    -------
    dict
        ``…_over_labels``, ``…_rarer_half``, and of four labels or more ``…_rarest_quarter``,
        ``…_commonest_quarter`` and ``…_worst_quarter``. Empty for fewer than two labels.

    Examples
    --------
    >>> labels = [np.array([0]), np.array([1, 2, 3])]
    >>> found = over_labels("reward", np.array([0.0, 1.0, 1.0, 1.0]), labels)
    >>> found["reward_over_labels"], found["reward_rarer_half"]
    (0.5, 0.0)
    """
    means = label_means(values, labels)
    found = _by_size(name, means, share)
    if quarter := len(means) // 4:
        worst = np.sort(means)[:quarter] if share else lowest(means, quarter)
        found |= (named_share if share else named_interval)(f"{name}_worst_quarter", worst)
    return found


def gain_over_labels(
    name: str, base: np.ndarray, trained: np.ndarray, labels: Sequence[np.ndarray]
) -> dict[str, float | None]:
    """Return the same of the difference of two policies, with intervals of paired differences.

    The worst quarter is each policy's: the gain is the difference of the two values.
    """
    found = _by_size(name, label_means(trained - base, labels))
    if quarter := len(labels) // 4:
        after, before = (lowest(label_means(one, labels), quarter) for one in (trained, base))
        found |= named_interval(f"{name}_worst_quarter", after - before)
    return found


def label_means(values: np.ndarray, labels: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of the known values of each label."""
    return np.array([mean_known(values[members]) for members in labels])


def _by_size(name: str, means: np.ndarray, share: bool = False) -> dict[str, float | None]:
    """Return averages of labels' means, that of the label with fewest training prompts first."""
    if len(means) < 2:
        return {}
    quarter = len(means) // 4
    parts = {"over_labels": means, "rarer_half": means[: len(means) // 2]}
    if quarter:
        parts |= {"rarest_quarter": means[:quarter], "commonest_quarter": means[-quarter:]}
    found: dict[str, float | None] = {}
    for part, members in parts.items():
        found |= (named_share if share else named_interval)(f"{name}_{part}", members)
    return found


def lowest(values: np.ndarray, count: int) -> np.ndarray:
    """Return one number for each value: their mean is that of the `count` lowest values.

    How they vary says how far other values would move it, which of them are the lowest included:
    they are the influence of each value on the expected shortfall (Rockafellar and Uryasev 2000).

    Parameters
    ----------
    values : ndarray of shape (n,)
        NaN where not known, and so in what is returned.
    count : int

    Examples
    --------
    >>> lowest(np.array([4.0, 1.0, 9.0, 2.0]), 2).tolist()
    [2.0, 0.0, 2.0, 2.0]
    """
    known = np.sum(~np.isnan(values))
    if not known:
        return values
    count = min(count, int(known))
    last = np.sort(values)[count - 1]  # NaN comes last
    return last + np.minimum(values - last, 0) * (known / count)
