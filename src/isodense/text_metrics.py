"""Measures of a set of texts: diversity and repetition.

Texts are compared as lists of :func:`words`. All measures pool the n-grams of the whole set, so
they depend on its size: compare sets of as many texts to the same prompts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, in lower case.

    Examples
    --------
    >>> words("It's not A, it's B.")
    ["it's", 'not', 'a', ',', "it's", 'b', '.']
    """
    return WORD.findall(text.casefold())


def ngrams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return all runs of `n` neighbouring items."""
    return [tuple(items[start : start + n]) for start in range(len(items) - n + 1)]


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Return the share of distinct n-grams among all n-grams of the set (Li et al. 2016).

    Returns
    -------
    float
        In [0, 1]; 0 if no text has n words.

    Examples
    --------
    >>> distinct([["a", "b"], ["a", "c"]], 1)
    0.75
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(texts: Sequence[Sequence[str]], n: int = 4) -> float:
    """Return the share of n-grams that occur earlier in their own text.

    Returns
    -------
    float
        In [0, 1): 0 if no text repeats itself, near 1 for loops.

    Examples
    --------
    >>> repetition([["so", "it", "goes"] * 4], n=3)
    0.7
    """
    grams = [ngrams(text, n) for text in texts]
    total = sum(map(len, grams))
    return 1 - sum(len(set(row)) for row in grams) / total if total else 0.0
