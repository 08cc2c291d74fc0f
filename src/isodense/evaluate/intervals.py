"""Means that leave out what is not known, and their 95% intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from isodense.reward.scoring.check import wilson


def mean_known(values: np.ndarray, axis: int | None = None) -> Any:
    """Return the mean of the values that are not NaN, in float64; NaN where there is none.

    Examples
    --------
    >>> mean_known(np.array([[1, np.nan], [np.nan, np.nan]]), axis=1).tolist()
    [1.0, nan]
    """
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis=axis, dtype=np.float64), known.sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def rounded(value: float) -> float | None:
    """Return what JSON can hold of a number: six digits, and null for NaN."""
    return None if np.isnan(value) else round(float(value), 6)


def interval(values: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Return the mean of the values that are not NaN, and a 95% t interval, low and high.

    One value has no interval, and none has no mean: None stands for what is not known.

    Examples
    --------
    >>> import numpy as np
    >>> interval(np.array([1.0, 3.0]))
    (2.0, -10.706205, 14.706205)
    """
    from scipy.special import stdtrit

    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return (round(float(values[0]), 6) if len(values) else None), None, None
    mean = values.mean()
    half = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values))
    low, middle, high = (round(float(value), 6) for value in (mean - half, mean, mean + half))
    return middle, low, high


def named_interval(name: str, values: np.ndarray) -> dict[str, float | None]:
    """Return mean and 95% t interval as metrics: `name`, `name`_low, `name`_high."""
    mean, low, high = interval(values)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def named_share(name: str, values: np.ndarray) -> dict[str, float | None]:
    """Return the mean of values in [0, 1] and a 95% interval as metrics, as `named_interval` does.

    The interval is Wilson's (1927), as if each value were 0 or 1: it stays in [0, 1], says
    something where all values are equal, and is never too narrow, since no values in [0, 1] with
    that mean vary more.
    """
    low, high = wilson(float(values.sum()), len(values))
    found = {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    return {key: round(value, 6) for key, value in found.items()}


def named_weighted(
    name: str, values: np.ndarray, weights: np.ndarray, share: bool = False
) -> dict[str, float | None]:
    """Return the weighted mean of the values that are not NaN, and a 95% interval, as metrics.

    The interval is that of a ratio of two means (Hájek 1971, to first order), which with equal
    weights is the t interval; of shares it is Wilson's, of as many values as the weights are worth
    (Kish 1965).

    Parameters
    ----------
    name : str
    values, weights : ndarray of shape (n,)
        Weights are positive.
    share : bool
        Whether to give the interval of :func:`named_share`.
    """
    from scipy.special import stdtrit

    known = ~np.isnan(values)
    values, weights = values[known].astype(np.float64), weights[known]
    names, n = (name, f"{name}_low", f"{name}_high"), len(values)
    if n < 2:
        return dict(zip(names, interval(values), strict=True))
    weights = weights / weights.sum()
    mean, size = float(weights @ values), 1 / float(weights @ weights)
    if share:
        low, high = wilson(mean * size, size)
    else:
        error = np.sqrt(n / (n - 1)) * np.linalg.norm(weights * (values - mean))
        half = float(stdtrit(n - 1, 0.975) * error)
        low, high = mean - half, mean + half
    return {key: rounded(value) for key, value in zip(names, (mean, low, high), strict=True)}
