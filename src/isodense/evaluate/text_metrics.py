"""Measures of a set of texts: diversity, repetition and stock phrases.

Diversity and repetition compare texts as lists of :func:`words`. They pool the n-grams of the whole
set, so they depend on its size: compare sets of as many texts to the same prompts.
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


def stock_phrases(texts: Sequence[str]) -> dict[str, float]:
    """Return the share of texts that hold each of the phrases that language models overuse.

    They are the em-dash, and "not just … but" (or "only", "merely") within a sentence.

    Examples
    --------
    >>> stock_phrases(["It is not just fast but cheap.", "A dash — or two — here.", "No.", "Yes."])
    {'em_dash': 0.25, 'not_just_but': 0.25}
    """
    return {
        name: sum(bool(phrase.search(text)) for text in texts) / len(texts)
        for name, phrase in STOCK_PHRASES.items()
    }
