"""What one pass over the examples finds of each unique prompt: occurrences, labels, conflicts."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from isodense.pipeline.errors import DataError
from isodense.prompts.conversations import encoder_text, id_of
from isodense.prompts.near_duplicates import WordPairs
from isodense.prompts.params import HeldoutBy
from isodense.prompts.split import Split, split

Row = dict[str, Any]

ANSWERS = ("id", "chosen", "rejected", "source", "heldout")  # of an example, not of a prompt


class Uniques:
    """What is known of each unique prompt after one pass over the examples.

    Parameters
    ----------
    rows : iterable of dict
        Rows of ``data/examples``.
    texts : WordPairs, optional
        To which the text of each is added.

    Attributes
    ----------
    number_of : dict of bytes to int
        Number of each prompt, in order of first appearance, by the 16 bytes of its id.
    counts : array of int64
        Occurrences of each.
    labels : list of str or None
        The first label of each.
    marked, trained : bytearray
        Whether an example of it is held out by the data, or is not.
    no_text : int
        Examples whose prompt has no text to embed.
    conflicting : dict of str to set of int
        For each column in which examples of a prompt disagree: the numbers of those prompts.
    first_conflict : dict of str to tuple of (int, Any)
        The first of them in each column, and the value that differs.
    """

    def __init__(self, rows: Iterable[Row], texts: WordPairs | None = None) -> None:
        self.texts = texts
        self.number_of: dict[bytes, int] = {}
        self.counts = array("q")
        self.labels: list[str | None] = []
        self.marked, self.trained = bytearray(), bytearray()
        self.no_text = 0
        self.conflicting: dict[str, set[int]] = {}
        self.first_conflict: dict[str, tuple[int, Any]] = {}
        self._sources: dict[str, array[int]] = {}
        self._values: dict[str, array[int]] = {}  # hashes of the first example's, by column
        for row in rows:
            self._add(row)

    def __len__(self) -> int:
        return len(self.counts)

    def split(
        self, heldout: float, near_duplicate: float | None, heldout_by: HeldoutBy = "id"
    ) -> Split:
        """Decide which prompts are held out; see :func:`isodense.prompts.split.split`."""
        ids = [key.hex() for key in self.number_of]
        marked = np.frombuffer(self.marked, dtype=np.bool_)
        return split(ids, self.texts, heldout, near_duplicate, heldout_by, self.labels, marked)

    @property
    def both(self) -> np.ndarray:
        """Which prompts are held out by the data and asked in its training rows, too."""
        parts = (np.frombuffer(part, dtype=np.bool_) for part in (self.marked, self.trained))
        return np.logical_and(*parts)

    def sources(self, number: int, first: str) -> dict[str, int]:
        """Return how many occurrences of a prompt are from each source, the `first` one first."""
        found = {name: self._sources[name][number] for name in (first, *self._sources)}
        return {name: count for name, count in found.items() if count}

    def disagreeing(self, columns: Sequence[str]) -> set[int]:
        """Return the numbers of the prompts whose examples disagree in one of `columns`.

        Raises
        ------
        DataError
            If no example has such a column.
        """
        for name in columns:
            if name not in self._values:
                known = ", ".join(sorted(self._values)) or "no column beside the prompt"
                message = f"names {name!r}, and the data has {known}"
                raise DataError(message, "prompts.drop_conflicting", hint="correct the name")
        return set().union(*(self.conflicting.get(name, set()) for name in columns))

    def _add(self, row: Row) -> None:
        text = encoder_text(row["prompt"])
        if not text:
            self.no_text += 1
            return
        key = bytes.fromhex(id_of(row))
        number = self.number_of.setdefault(key, len(self.counts))
        first = number == len(self.counts)
        if first:
            if self.texts is not None:
                self.texts.add(text)
            self.counts.append(0)
            self.labels.append(None)
            self.marked.append(False)
            self.trained.append(False)
            for counts in self._sources.values():
                counts.append(0)
        self.counts[number] += 1
        (self.marked if row.get("heldout") else self.trained)[number] = True
        self.labels[number] = self.labels[number] or row.get("label")
        source = row["source"]
        if source not in self._sources:
            self._sources[source] = array("q", bytes(8 * len(self.counts)))
        self._sources[source][number] += 1
        self._compare(number, row, first)

    def _compare(self, number: int, row: Row, first: bool) -> None:
        """Note the values of a prompt's first example, or in which columns a later one differs."""
        names = [name for name in row if name not in ANSWERS and name != "prompt"]
        for name in names if first else dict.fromkeys([*names, *self._values]):
            values = self._values.setdefault(name, array("q"))
            values.extend([_hash(None)] * (len(self.counts) - len(values)))
            if first:
                values[number] = _hash(row.get(name))
            elif values[number] != _hash(row.get(name)):
                self.conflicting.setdefault(name, set()).add(number)
                self.first_conflict.setdefault(name, (number, row.get(name)))


def _hash(value: Any) -> int:
    return hash(value if isinstance(value, str) or value is None else repr(value))
