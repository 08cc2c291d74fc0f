"""Metrics of a set of texts: distinct n-grams, repetition and stock phrases.

The first two take texts as lists of :func:`words` and pool the n-grams of the whole set, so they
depend on the size of the set: compare sets of equal size, answers to the same prompts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
STOCK_PHRASES = {
    "em_dash": re.compile("—"),
    "not_just_but": re.compile(
        r"(?:\bnot|n['’]t)\s+(?:just|only|merely)\b[^.!?]*?\bbut\b", re.IGNORECASE
    ),
}


def words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, in lower case.

    Examples
    --------
    >>> words("It's not A, it's B.")
    ["it's", 'not', 'a', ',', "it's", 'b', '.']
    """
    return WORD.findall(text.casefold())


def ngrams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return all n-grams: runs of `n` consecutive items."""
    return [tuple(items[start : start + n]) for start in range(len(items) - n + 1)]


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Return distinct-n, the share of distinct n-grams among all n-grams (Li et al. 2016).

    Parameters
    ----------
    texts : sequence of sequence of str
        Words of each text.
    n : int
        Words per n-gram.

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
    """Return the share of n-grams that occur earlier in the same text.

    Parameters
    ----------
    texts : sequence of sequence of str
        Words of each text.
    n : int
        Words per n-gram.

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


def stock_phrases(texts: Sequence[str]) -> dict[str, float]:
    """Return the share of texts that contain each of `STOCK_PHRASES`, which models overuse.

    These are the em-dash, and "not just … but" (or "only", "merely") within a sentence.

    Examples
    --------
    >>> stock_phrases(["It is not just fast but cheap.", "A dash — or two — here.", "No.", "Yes."])
    {'em_dash': 0.25, 'not_just_but': 0.25}
    """
    return {
        name: sum(bool(phrase.search(text)) for text in texts) / len(texts)
        for name, phrase in STOCK_PHRASES.items()
    }
