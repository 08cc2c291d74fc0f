"""Lexical near-duplicates: texts most of whose pairs of adjacent words are the same.

A text is a set of word pairs, case, punctuation and Unicode form left out. Where a script has no
spaces, ideographs are words of their own, and of an alphabet any four letters in a row are one. Two
texts are near-duplicates if the Jaccard similarity of their sets reaches a threshold (Broder 1997)
and they share `FEW` pairs, or all pairs of one of them: of "what is 2+2" and "what is 2+3" the
shared words say nothing. Texts of the same words in the same order are near-duplicates, however
short.

A word pair counts in the first `COMMON` texts that have it, and in later ones it does not: text
that so many prompts share is a template, and what is left tells them apart. Where that is little,
`LEFT` shared pairs are enough if they are all that is left of one of the two.

Near-duplicates of a text are sought among the texts before it. They depend on these and on nothing
after it, and the search is exact: a pair of words belongs to `COMMON` texts at most, so comparing
the texts that share one is a product of two sparse matrices, in time linear in the number of texts.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from itertools import pairwise
from unicodedata import category

import numpy as np
from scipy.sparse import csr_array
from tqdm import tqdm

from isodense.pipeline.stage import progress

COMMON = 100  # texts that have a word pair before it is part of a template
FEW = 5  # shared word pairs that near-duplicates have
LEFT = 3  # that they have if these are all that a template left of one of them
BLOCK = 2048  # texts compared with the earlier ones at once; speed and memory only
PARTS = 16  # in which word pairs are sorted, one after the other; memory only

LETTERS = 4  # of the words that overlap where an alphabet has no spaces

# Numbers and operators tell questions of arithmetic and code apart; other punctuation does not.
MARKS = "".join(map(chr, filter(lambda code: category(chr(code))[0] == "M", range(0x300, 0xFE30))))
WORD = re.compile(rf"(?:[^\W_]|[{MARKS}])+|[-+*/=<>^%&|~$€£#±×÷·−√∞∑∫≠≈\u2264\u2265]")
IDEOGRAPH = re.compile("([\u2e80-\u9fff\uf900-\ufaff])")
ALPHABET = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+")  # Thai, Lao, Burmese, Khmer
POWER = re.compile("[⁰¹²³ⁱ⁴-⁾ⁿ]+")  # Unicode's compatible form of 3² is 32
FRACTION = re.compile("[¼-¾⅐-⅞]")  # and that of 3½ begins with 31
# Of Hebrew and Arabic, where they may be written or not
VOWELS = "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0640\u064b-\u0652\u0670"
# Besides them: apostrophes, and what has no width
IGNORED = re.compile(f"['’‘ʼ`´′\u00ad\u200b-\u200f\u2060\ufeff{VOWELS}]")


def words(text: str) -> list[str]:
    """Return the words of a text as near-duplicates have them in common.

    Examples
    --------
    >>> words("What's 2+2, please?")
    ['whats', '2', '+', '2', 'please']
    >>> words("今日は")
    ['今', '日', 'は']
    >>> words("3²+½")
    ['3', '^', '2', '+', '1', '/', '2']
    """
    plain = FRACTION.sub(r" \g<0> ", POWER.sub(r"^\g<0>", IGNORED.sub("", text)))
    folded = IGNORED.sub("", unicodedata.normalize("NFKC", plain).casefold().replace("⁄", "/"))
    spaced = ALPHABET.sub(_overlapping, IDEOGRAPH.sub(r" \1 ", folded))
    return WORD.findall(spaced) or [text]


def _overlapping(run: re.Match[str]) -> str:
    """Return all runs of `LETTERS` letters, as words: pairs of letters are too few to tell."""
    text = run[0]
    pieces = [text[start : start + LETTERS] for start in range(max(1, len(text) - LETTERS + 1))]
    return f" {' '.join(pieces)} "


class WordPairs:
    """Hashes of the word pairs of texts, in order: four bytes each, and twelve for each text."""

    def __init__(self) -> None:
        self._pairs, self._counts, self._whole = array("I"), array("I"), array("Q")

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, text: str) -> None:
        """Add the next text."""
        found = words(text)
        pairs = {zlib.crc32(f"{one} {two}".encode()) for one, two in pairwise(found)}
        pairs = pairs or {zlib.crc32(found[0].encode("utf-8", "surrogatepass"))}
        self._pairs.extend(sorted(pairs))
        self._counts.append(len(pairs))
        whole = " ".join(found).encode("utf-8", "surrogatepass")
        self._whole.append(int.from_bytes(blake2b(whole, digest_size=8).digest()))

    def near_duplicates(self, threshold: float) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each text that has near-duplicates before it, in order, with their numbers.

        Parameters
        ----------
        threshold : float
            Least Jaccard similarity of near-duplicates, in (0, 1].

        Yields
        ------
        row : int
            Number of the text.
        earlier : ndarray of int64
            Numbers of its near-duplicates before it, sorted. Of those with the same words as it,
            whose word pairs may all be common, the first and the last are among them.
        """
        same = self._same_words()
        shared = _Shared(np.frombuffer(self._pairs, np.uint32), np.frombuffer(self._counts, "u4"))
        for start in tqdm(range(0, len(self), BLOCK), "near-duplicates", **progress()):
            stop = min(start + BLOCK, len(self))
            row, other = shared.near(start, stop, threshold)
            same_here = same[:, (same[0] >= start) & (same[0] < stop)]
            row, other = np.unique(np.concatenate([[row, other], same_here], axis=1), axis=1)
            rows, starts = np.unique(row, return_index=True)
            yield from zip(rows.tolist(), np.split(other, starts[1:]), strict=False)

    def _same_words(self) -> np.ndarray:
        """Return texts, and the first and the last before each that have the same words."""
        whole = np.frombuffer(self._whole, np.uint64)
        order = np.argsort(whole, kind="stable")
        owner, start, _ = _groups(whole[order], order)
        again = np.flatnonzero(np.arange(len(owner)) > start)
        earlier = np.concatenate([owner[start[again]], owner[again - 1]])
        return np.stack([np.tile(owner[again], 2), earlier])


class _Shared:
    """Which texts have which word pairs, where a pair counts in the first `COMMON` of them.

    A pair is known by its hash: among a billion pairs two texts share one by chance in a fraction
    of their pairs that is too small to matter.

    Attributes
    ----------
    texts, pairs : csr_array
        Texts by pairs, and the same transposed: pairs that a single text has are left out.
    whole, counting : ndarray of shape (n,), int64
        How many pairs each text has, and how many of them count.
    """

    def __init__(self, pairs: np.ndarray, counts: np.ndarray) -> None:
        n = len(counts)
        self.whole = counts.astype(np.int64)
        rows = np.repeat(np.arange(n, dtype=np.int32), counts)
        self.counting = np.zeros(n, dtype=np.int64)
        owners, columns, ended = [], [], []
        total = 0
        for part in range(PARTS):
            where = np.flatnonzero(pairs >> np.uint32(28) == part)
            where = where[np.argsort(pairs[where], kind="stable")]
            owner, start, size = _groups(pairs[where], rows[where])
            rank = np.arange(len(owner)) - start
            counts_here = rank < COMMON
            self.counting += np.bincount(owner[counts_here], minlength=n)
            ending = counts_here & (size > COMMON)
            last = owner[np.minimum(start + COMMON, len(owner) - 1)]
            ended.append(np.stack([owner[ending], last[ending]]))
            several = counts_here & (size > 1)
            column = np.cumsum(several & (rank == 0)) - 1 + total
            owners.append(owner[several])
            columns.append(column[several].astype(np.int32))
            total += int((several & (rank == 0)).sum())
        owner, column = np.concatenate(owners), np.concatenate(columns)
        ones = np.ones(len(owner), dtype=np.int32)
        self.pairs = csr_array((ones, (column, owner)), shape=(total, n))
        self.texts = self.pairs.T.tocsr()
        self._ended = _Ended(np.concatenate(ended, axis=1), n)

    def near(self, start: int, stop: int, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the near-duplicates of the texts `start` to `stop` before each: two columns."""
        found = (self.texts[start:stop] @ self.pairs).tocoo()
        row, other = found.coords[0].astype(np.int64) + start, found.coords[1].astype(np.int64)
        shared = found.data
        kept = (other < row) & (shared >= threshold * self.counting[row] - 1e-9)
        row, other, shared = row[kept], other[kept], shared[kept]
        own, theirs = self.counting[row], self.counting[other] - self._ended.before(row, other)
        alike = shared >= threshold * (own + theirs - shared) - 1e-9
        short = np.minimum(self.whole[row], self.whole[other])
        left = np.minimum(own, theirs)
        alike &= (shared >= FEW) | (shared == short) | ((shared == left) & (shared >= LEFT))
        return row[alike], other[alike]


class _Ended:
    """Pairs that counted in a text and no longer do, once `COMMON` texts have them."""

    def __init__(self, owner_and_end: np.ndarray, n: int) -> None:
        self._n, (owner, end) = n, owner_and_end
        self._ends = np.sort(owner.astype(np.int64) * n + end)  # by text, then by where it ended
        self._start = np.searchsorted(self._ends, np.arange(n, dtype=np.int64) * n)

    def before(self, row: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return how many pairs of each `other` do not count any more at the text `row`."""
        ended = np.searchsorted(self._ends, other * self._n + row, side="right")
        return ended - self._start[other]


def _groups(values: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return owners, and for each where its group of equal values starts, and the group's size."""
    heads = np.flatnonzero(np.r_[True, values[1:] != values[:-1]][: len(owner)])
    sizes = np.diff(np.r_[heads, len(owner)])
    return owner, np.repeat(heads, sizes), np.repeat(sizes, sizes)
