"""The words that set a class of texts apart from the others: class-based TF-IDF.

The weight of a word in a class is ``tf · log(1 + A / f)`` (c-TF-IDF, Grootendorst 2022, arXiv
2203.05794), where ``tf`` is how often the class has it, ``f`` how often all classes have it, and
``A`` the mean number of words of a class. A word is counted once per text, so that one long text
names no class. Words are runs of letters. Chinese and Japanese characters have no spaces between
words: every two neighbouring ones are counted as a word, and katakana by the run; of Thai, Lao,
Khmer and Burmese every four, which are parts of words more often than words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from isodense.report.prompts import LONGEST

WORDS = 8  # of a class, at most
SHARE = 0.02  # of the texts of a class that hold a word of it, at least
LIFT = 1.5  # share inside the class, over the share outside, at least
FILLERS = frozenset("did does doing done going got know need want".split())  # beside stop words
EVEN = 0.8  # weight over another's from which overlapping pairs of characters are one word
CJK, UNSPACED = 2, 4  # characters counted as a word


def tokens(text: str) -> Iterator[str]:
    """Yield what counts as words of a text, in lower case.

    Examples
    --------
    >>> list(tokens("Boil 3 eggs, don't fry them: 机器学习 データ"))
    ['boil', 'eggs', 'fry', '机器', '器学', '学习', 'データ']
    """
    for match in _pattern().finditer(text[:LONGEST].lower()):
        kind, word = match.lastgroup, match.group()
        if kind == "word":
            if len(word) > 1 and word not in _stop_words() and not _contracted(word):
                yield word
            continue
        size = {"han": CJK, "unspaced": UNSPACED}.get(kind, len(word))
        for start in range(max(1, len(word) - size + 1)):
            yield word[start : start + size]


def distinctive(classes: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the words of each class of texts that set it apart, the most telling first.

    Parameters
    ----------
    classes : sequence of sequence of str
        Texts of each class.

    Returns
    -------
    list of list of str
        At most `WORDS` for each class; words that contain one another, or share Chinese or
        Japanese characters, are not listed twice.

    Examples
    --------
    >>> eggs = ["how to boil an egg", "boil one egg", "fry an egg"]
    >>> distinctive([eggs, ["name a volcano", "which volcano is tallest", "a volcano in Italy"]])
    [['egg', 'boil', 'fry'], ['volcano', 'italy', 'tallest']]
    """
    if not any(map(len, classes)):
        return [[] for _ in classes]
    counted, words = _counted(classes)
    weight = counted * np.log1p(counted.sum() / len(classes) / counted.sum(axis=0))
    texts = np.array([[len(texts)] for texts in classes])
    inside = counted / np.maximum(texts, 1)
    outside = (counted.sum(axis=0) - counted) / np.maximum(texts.sum() - texts, 1)
    weight[(inside < SHARE) | (inside < LIFT * outside)] = 0
    return [_picked(row, words) for row in weight]


def _counted(classes: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return in how many texts of each class each word is, (n_classes, n_words), and the words."""
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(analyzer=tokens, binary=True)
    try:
        found = counter.fit_transform([text for texts in classes for text in texts])
    except ValueError:  # no text has a word
        return np.zeros((len(classes), 0)), np.array([])
    of = np.repeat(np.arange(len(classes)), [len(texts) for texts in classes])
    shape = (len(classes), len(of))
    member = csr_array((np.ones(len(of)), (of, np.arange(len(of)))), shape=shape)
    return (member @ csr_array(found)).toarray(), counter.get_feature_names_out()


def _picked(weight: np.ndarray, words: np.ndarray) -> list[str]:
    picked: list[str] = []
    weights: list[float] = []
    for place in np.argsort(-weight, kind="stable")[: 20 * WORDS]:
        if weight[place] <= 0:
            break
        word = str(words[place])
        alike = next((at for at, other in enumerate(picked) if _alike(word, other)), None)
        if alike is None and len(picked) < WORDS:
            picked.append(word)
            weights.append(weight[place])
        elif alike is not None and weight[place] >= EVEN * weights[alike]:
            picked[alike] = _joined(picked[alike], word)
    return picked


def _joined(one: str, other: str) -> str:
    """Return two overlapping pairs of Chinese or Japanese characters as one word; else the first.

    Examples
    --------
    >>> _joined("器学", "学习"), _joined("器学", "机器"), _joined("boil", "boiled")
    ('器学习', '机器学', 'boil')
    """
    if not _is_cjk(one) or other in one:
        return one
    if one.endswith(other[0]):
        return one + other[1:]
    return other[:-1] + one if one.startswith(other[-1]) else one


def _alike(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    same = len(short) > 3 and (long.startswith(short) or short[:-1] == long[: len(short) - 1])
    overlap = _is_cjk(one) and not set(one).isdisjoint(other)
    return same or overlap or long == short + "s"


def _is_cjk(word: str) -> bool:
    return word[0] > "\u2e7f"


def _contracted(word: str) -> bool:
    return "'" in word or "’" in word


@cache
def _pattern() -> Any:
    import regex

    return regex.compile(
        r"(?P<run>[\p{Katakana}ー]{2,})|(?P<han>\p{Han}{2,})"
        r"|(?P<unspaced>[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]{2,})"
        r"|(?P<word>[[\p{L}--[\p{Han}\p{Hiragana}\p{Katakana}]]\p{M}]+(?:['’]\p{L}+)?)",
        regex.V1,
    )


@cache
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return FILLERS | ENGLISH_STOP_WORDS
