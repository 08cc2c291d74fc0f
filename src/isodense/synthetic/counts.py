"""How many rows of a synthetic set each kind gets, and how many of them are duplicates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def power_law_counts(total: int, exponent: float, kinds: int) -> npt.NDArray[np.int64]:
    """Return the number of rows of each kind: a power law, rounded to sum to `total`.

    Parameters
    ----------
    total : int
        Rows of all kinds together.
    exponent : float
        Rank r gets a share proportional to ``r ** -exponent``.
    kinds : int
        Number of kinds.

    Returns
    -------
    ndarray of shape (kinds,), int64
        Row counts by rank; at least 1 each where `total` allows.

    Examples
    --------
    >>> power_law_counts(26, 1.0, 4).tolist()
    [13, 6, 4, 3]
    """
    ranks = np.arange(1, kinds + 1, dtype=np.float64)
    rows = _apportion(total, ranks**-exponent, np.full(kinds, total))
    while rows.min() == 0 and rows.max() > 1:
        rows[rows.argmax()] -= 1
        rows[rows.argmin()] += 1
    return rows


def duplicate_counts(
    rows: npt.NDArray[np.int64], duplicates: float, near_duplicates: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return how many rows of each kind are duplicates, and how many near-duplicates.

    The first row of a kind is fresh; if that leaves too few rows, there are fewer duplicates
    than asked for.

    Parameters
    ----------
    rows : ndarray of shape (n_kinds,), int64
        Rows of each kind.
    duplicates, near_duplicates : float
        Shares of all rows.

    Returns
    -------
    exact : ndarray of shape (n_kinds,), int64
        In proportion to the power 3/2 of the row counts.
    near : ndarray of shape (n_kinds,), int64
        In proportion to the row counts.
    """
    total = int(rows.sum())
    places = np.maximum(rows - 1, 0)
    weights = rows.astype(np.float64)
    exact = _apportion(round(duplicates * total), weights * np.sqrt(weights), places)
    near = _apportion(round(near_duplicates * total), weights, places - exact)
    return exact, near


def _apportion(
    total: int, weights: npt.NDArray[np.float64], caps: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Split `total` in proportion to `weights` by largest remainder, none above its cap."""
    counts = np.zeros(len(weights), dtype=np.int64)
    while (left := min(total, int(caps.sum())) - int(counts.sum())) > 0:
        free = np.where(counts < caps, weights, 0.0)
        # Rounded, because the last bits of powers and sums differ between platforms.
        quota = np.round(left * free / free.sum(), 9)
        whole = np.floor(quota).astype(np.int64)
        order = np.argsort(whole - quota, kind="stable")
        whole[order[: left - int(whole.sum())]] += 1
        counts = np.minimum(counts + whole, caps)
    return counts
