"""Windows of long texts: parts that an encoder reads one by one, for a vector of the whole text.

A text's vector is the mean of its windows' pooled vectors, weighted by their tokens, and is then
scaled to unit length. The mean is taken *before* the windows' own vectors are scaled: where pooling
is a mean over positions, of hidden states or of logits, the result is then, but for the special
tokens, the mean over the positions of all windows, which is what the vector of a short text is.
Were they scaled before, a window whose tokens disagree, and whose mean is short for that, would
count as much as one whose tokens agree.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Windows(NamedTuple):
    """What an encoder reads of some texts.

    Attributes
    ----------
    ids : list of list of int
        Tokens of each window, text by text; a short text is one window.
    texts : ndarray of shape (n_windows,), int64
        The text that each is of.
    shares : ndarray of shape (n_windows,), float32
        Its share of the text's tokens; special tokens and prefix do not count.
    counts : ndarray of shape (n_texts,), int64
        Windows of each text.
    """

    ids: list[list[int]]
    texts: np.ndarray
    shares: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, parts: list[list[tuple[list[int], float]]]) -> Windows:
        """Return the windows of texts, from the tokens and the share of each window of each."""
        counts = np.array([len(part) for part in parts], dtype=np.int64)
        flat = [window for part in parts for window in part]
        shares = np.array([share for _, share in flat], dtype=np.float32)
        return cls(
            [ids for ids, _ in flat], np.repeat(np.arange(len(parts)), counts), shares, counts
        )


def split(ids: list[int], first: int, end: int, longest: int) -> list[tuple[list[int], float]]:
    """Return the tokens of a text's windows, and the share of the text's tokens in each.

    There are as few windows as can be. They are of nearly one length, since a short last one would
    have little to tell, and be read out of its context.

    Parameters
    ----------
    ids : list of int
        Tokens of the text.
    first, end : int
        Tokens at its start (prefix, special tokens) and at its end, which every window has.
    longest : int
        Most tokens of a window.

    Examples
    --------
    >>> split([1, 10, 11, 12, 13, 14, 2], first=1, end=1, longest=5)
    [([1, 10, 11, 12, 2], 0.6), ([1, 13, 14, 2], 0.4)]
    """
    if len(ids) <= longest:
        return [(ids, 1.0)]
    last = len(ids) - end
    tokens = last - first
    count = -(-tokens // (longest - first - end))
    stops = [first + -(-tokens * number // count) for number in range(count + 1)]
    return [
        (ids[:first] + ids[start:stop] + ids[last:], (stop - start) / tokens)
        for start, stop in pairwise(stops)
    ]


class Means:
    """The vectors of texts, while those of their windows come in.

    A text's windows must come in the same order every time, as sums of floats depend on it; in
    which batches they come changes nothing.

    Parameters
    ----------
    windows : Windows
        All windows.
    dim : int
        Columns of a vector.
    dtype : str
        Of the windows' vectors.

    Attributes
    ----------
    rows : ndarray of shape (n_texts, dim), of type `dtype`
        Not of unit length; complete once all windows have come.
    """

    def __init__(self, windows: Windows, dim: int, dtype: str = "float32") -> None:
        self._windows = windows
        self.rows = np.zeros((len(windows.counts), dim), dtype)

    def add(self, batch: list[int], vectors: np.ndarray) -> None:
        """Take the vectors of some windows in."""
        texts, shares = self._windows.texts[batch], self._windows.shares[batch]
        whole = self._windows.counts[texts] == 1
        self.rows[texts[whole]] = vectors[whole]  # to the byte, also a zero's sign
        np.add.at(self.rows, texts[~whole], vectors[~whole] * shares[~whole, None])
