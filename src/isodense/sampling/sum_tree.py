"""Weighted draws from weights that change: find a row, or change some weights, in O(log n)."""

from __future__ import annotations

import numpy as np

FAN = 64  # children of a node


class SumTree:
    """Sums of weights in a tree whose nodes have 64 children each.

    A node holds the sum of its children, added from left to right, made anew from them with every
    change: no error builds up, and a sum is zero only if all its weights are.

    Parameters
    ----------
    weights : ndarray of shape (n,)
        Not negative.
    """

    def __init__(self, weights: np.ndarray) -> None:
        self._levels = [_padded(weights)]  # from the leaves up, each of shape (nodes, FAN)
        while len(self._levels[-1]) > 1:
            self._levels.append(_padded(_sums(self._levels[-1])))

    @property
    def total(self) -> float:
        """Sum of all weights."""
        return float(_sums(self._levels[-1])[0])

    def find(self, uniform: float) -> int:
        """Return the row that a number in [0, 1) falls on, of a positive weight.

        Parameters
        ----------
        uniform : float
            Share of the total that lies before the place sought.
        """
        node, target = 0, uniform * self.total
        for level in reversed(self._levels):
            sums = np.cumsum(level[node])
            child = int(np.searchsorted(sums, target, side="right"))
            if child == FAN:  # by rounding
                child = int(np.flatnonzero(level[node])[-1])
            target -= sums[child - 1] if child else 0.0
            node = node * FAN + child
        return node

    def multiply(self, rows: np.ndarray, factors: np.ndarray | float) -> None:
        """Multiply the weights of some rows, each named once."""
        self._levels[0].ravel()[rows] *= factors
        nodes = rows
        for level, parents in zip(self._levels, self._levels[1:], strict=False):
            nodes = np.unique(nodes // FAN)
            parents.ravel()[nodes] = _sums(level[nodes])


def _padded(values: np.ndarray) -> np.ndarray:
    nodes = -(-len(values) // FAN)
    padded = np.zeros(nodes * FAN)
    padded[: len(values)] = values
    return padded.reshape(nodes, FAN)


def _sums(nodes: np.ndarray) -> np.ndarray:
    return np.cumsum(nodes, axis=1)[:, -1]
