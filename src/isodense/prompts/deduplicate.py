"""Exact deduplication: from examples to unique prompts, in order of first appearance.

Two prompts are duplicates if their canonical conversations are equal
(:mod:`isodense.prompts.conversations`). A unique prompt keeps the number of occurrences
(``count``), their sources, and the columns of its first example, the conversation included, with
white space unchanged; ``text`` is what the encoder embeds.

Examples of one prompt may disagree in a column: a question with the ground truths 4 and 5 teaches
nothing. The prompts that do are counted for each column, and left out for the columns that
``prompts.drop_conflicting`` names.

The examples are read twice and never held: a million prompts take some hundred megabytes.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.artifact import publishing, write_manifest
from isodense.pipeline.errors import DataError
from isodense.pipeline.params import as_dict
from isodense.pipeline.tables import write_rows
from isodense.prompts.conversations import encoder_text, id_of
from isodense.prompts.near_duplicates import WordPairs
from isodense.prompts.params import PromptsParams
from isodense.prompts.reader import FEW_LABELS, OWN, PromptSet, read_columns, stored
from isodense.prompts.split import Split, split

log = logging.getLogger("isodense")

Row = dict[str, Any]
Read = Callable[[], Iterable[Row]]

ANSWERS = ("id", "chosen", "rejected", "source")  # of an example, not of a prompt
WIDTH = 60  # characters of a value in the log
MANY, TOO_MANY = 500, 1.5  # prompts from which on that many times the share is no chance
FEW, LARGE = 20, 0.1  # share of the prompts, where they are not few, in one cluster: it is said


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
        self.no_text = 0
        self.conflicting: dict[str, set[int]] = {}
        self.first_conflict: dict[str, tuple[int, Any]] = {}
        self._sources: dict[str, array[int]] = {}
        self._values: dict[str, array[int]] = {}  # hashes of the first example's, by column
        for row in rows:
            self._add(row)

    def __len__(self) -> int:
        return len(self.counts)

    def split(self, heldout: float, near_duplicate: float | None) -> Split:
        """Decide which prompts are held out; see :func:`isodense.prompts.split.split`."""
        return split([key.hex() for key in self.number_of], self.texts, heldout, near_duplicate)

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
            for counts in self._sources.values():
                counts.append(0)
        self.counts[number] += 1
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


def unique_rows(read: Read, known: Uniques, found: Split, dropped: set[int]) -> Iterator[Row]:
    """Yield the rows of ``data/prompts``: the first example of each prompt.

    Parameters
    ----------
    read : callable
        Returns the rows of ``data/examples``.
    known : Uniques
        Of the same rows.
    found : Split
        Which of them are held out.
    dropped : set of int
        Numbers of the prompts to leave out.
    """
    following = 0
    for row in read():
        text = encoder_text(row["prompt"])
        identifier = id_of(row)
        number = known.number_of.get(bytes.fromhex(identifier))
        if not text or number != following:
            continue
        following += 1
        if number in dropped:
            continue
        kept = {name: value for name, value in row.items() if name not in (*ANSWERS, *OWN)}
        label = known.labels[number]
        yield {
            "id": identifier,
            "prompt": row["prompt"],
            "text": text,
            "count": known.counts[number],
            "sources": known.sources(number, row["source"]),
            **found.column(number),
            **({"label": label} if label else {}),
            **kept,
        }


@dataclass
class Statistics:
    """What is counted while the rows are written."""

    multi_turn: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    labels: set[str] = field(default_factory=set)
    counts: array[int] = field(default_factory=lambda: array("q"))
    chars: array[int] = field(default_factory=lambda: array("q"))

    def counted(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield `rows` as they are, counting them."""
        for row in rows:
            self.multi_turn += len(row["prompt"]) > 1
            self.splits[row["split"]] += 1
            self.sources.update(row["sources"])
            self.labels |= {row["label"]} if "label" in row else set()
            self.counts.append(row["count"])
            self.chars.append(len(row["text"]))
            yield row

    def metrics(self) -> dict[str, Any]:
        """Return counts of prompts and examples, lengths, sources."""
        unique, examples = len(self.counts), sum(self.counts)
        return {
            "unique": unique,
            "examples": examples,
            "repeated_share": round(1 - unique / examples, 6),
            "largest_count": max(self.counts),
            "train": self.splits["train"],
            "heldout": self.splits["heldout"],
            "multi_turn": self.multi_turn,
            "labels": len(self.labels),
            "chars_median": int(np.median(self.chars)),
            "chars_p95": int(np.percentile(self.chars, 95)),
            "chars_max": max(self.chars),
            "examples_by_source": dict(sorted(self.sources.items())),
        }


def unique_prompts(
    rows: Sequence[Row], heldout: float, near_duplicate: float | None = None
) -> PromptSet:
    """Return the unique prompts of rows of ``data/examples``, in memory."""
    known = Uniques(rows, texts_for(heldout, near_duplicate))
    found = known.split(heldout, near_duplicate)
    return PromptSet(list(unique_rows(lambda: rows, known, found, set())))


def texts_for(heldout: float, near_duplicate: float | None) -> WordPairs | None:
    """Return what takes in the texts, or None where the split does without them."""
    return WordPairs() if heldout and near_duplicate is not None else None


def publish(read: Read, params: PromptsParams, examples_sha256: str, out: Path) -> dict[str, Any]:
    """Write ``data/prompts`` and return its statistics.

    Parameters
    ----------
    read : callable
        Returns the rows of ``data/examples``; called twice, and once more to show a conflict.
    params : PromptsParams
        The stage's section.
    examples_sha256 : str
        SHA-256 of the examples' manifest.
    out : Path
        The artifact's folder.

    Raises
    ------
    DataError
        If there is no valid prompt, no training prompt is left, or a column to compare is absent.
    """
    known = Uniques(read(), texts_for(params.heldout, params.near_duplicate))
    found = Statistics()
    if not len(known):
        hint = "check download.sources and run `dvc repro download`"
        raise DataError("no valid prompts found", "data/examples", hint=hint)
    dropped = known.disagreeing(params.drop_conflicting)
    _warn(read, known)
    parts = known.split(params.heldout, params.near_duplicate)
    kept = np.ones(len(known), dtype=bool)
    kept[list(dropped)] = False
    _warn_of_template(read, known, parts, kept)
    with publishing(out) as folder:
        rows = unique_rows(read, known, parts, dropped)
        write(found.counted(rows), as_dict(params), examples_sha256, folder)
        if not found.splits["train"]:
            message = f"all {len(known)} prompts are held out or conflicting"
            hint = (
                "lower prompts.heldout, raise prompts.near_duplicate, look at "
                "prompts.drop_conflicting, or add prompts"
            )
            raise DataError(message, "data/prompts", hint=hint)
    conflicting = {name: len(rows) for name, rows in sorted(known.conflicting.items())}
    _warn_of_labels(found)
    _warn_of_share(found, params.heldout)
    near = {} if known.texts is None else parts.metrics(kept)
    return (
        found.metrics()
        | near
        | {
            "no_text": known.no_text,
            "conflicting": conflicting,
            "dropped_conflicting": len(dropped),
        }
    )


def _warn(read: Read, known: Uniques) -> None:
    """Say in which columns examples of one prompt disagree, with the first case of each."""
    wanted = {number: name for name, (number, _) in known.first_conflict.items()}
    numbers = {}
    for row in read() if wanted else ():
        key = bytes.fromhex(id_of(row))
        number = known.number_of.get(key, -1)
        if number in wanted and number not in numbers:
            numbers[number] = row
            if len(numbers) == len(wanted):
                break
    for name, (number, other) in sorted(known.first_conflict.items()):
        row, count = numbers[number], len(known.conflicting[name])
        log.warning(
            "%d prompts have examples that disagree in %s, first %s: %s and %s "
            "(prompts.drop_conflicting leaves such prompts out)",
            count,
            name,
            *(_short(value) for value in (encoder_text(row["prompt"]), row.get(name), other)),
        )


def _warn_of_template(read: Read, known: Uniques, found: Split, kept: np.ndarray) -> None:
    """Say so if one cluster of near-duplicates, all of one split, is a large share of the set."""
    sizes = np.bincount(found.first[kept], minlength=len(known))
    first, total = int(sizes.argmax()), int(kept.sum())
    if total < FEW or sizes[first] <= LARGE * total:
        return
    key = list(known.number_of)[first].hex()
    text = next(encoder_text(row["prompt"]) for row in read() if id_of(row) == key)
    log.warning(
        "%d of %d prompts are near-duplicates of %s or of each other, so they are %s together: if "
        "they are different questions in one form of words, raise prompts.near_duplicate, or set "
        "it to null to split by id alone",
        sizes[first],
        total,
        _short(text),
        "held out" if found.heldout[first] else "trained on",
    )


def _warn_of_share(found: Statistics, wanted: float) -> None:
    """Say so if near-duplicates have brought many more prompts into the held-out split."""
    total, heldout = len(found.counts), found.splits["heldout"]
    if total >= MANY and heldout > TOO_MANY * wanted * total:
        log.warning(
            "%d of %d prompts are held out, and prompts.heldout is %g: near-duplicates of held-out "
            "prompts are held out with them. If they are different questions, raise "
            "prompts.near_duplicate",
            heldout,
            total,
            wanted,
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= WIDTH else text[:WIDTH] + "…"


def _warn_of_labels(found: Statistics) -> None:
    if len(found.labels) > max(FEW_LABELS, len(found.counts) / 2):
        log.warning(
            "label has %d values for %d prompts: it should name kinds of prompts. If it holds the "
            "answers, keep them in a column of another name (download.*.columns)",
            len(found.labels),
            len(found.counts),
        )


def write(
    rows: Iterable[Row], params: dict[str, Any], examples_sha256: str | None, folder: Path
) -> dict[str, Any]:
    """Write the files of a prompts artifact into an empty folder and return the manifest."""
    write_rows(folder, map(stored, rows))
    written = read_columns(folder)
    return write_manifest(
        folder,
        "prompts",
        rows=len(written),
        ids_sha256=written.ids_sha256,
        train_ids_sha256=written.split("train").ids_sha256,
        params=params,
        inputs={"examples": examples_sha256},
    )
