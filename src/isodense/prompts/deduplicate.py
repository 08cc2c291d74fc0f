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
from isodense.prompts.params import HeldoutBy, PromptsParams
from isodense.prompts.reader import FEW_LABELS, OWN, PromptSet, read_columns, stored
from isodense.prompts.split import Split
from isodense.prompts.uniques import ANSWERS, Uniques

log = logging.getLogger("isodense")

Row = dict[str, Any]
Read = Callable[[], Iterable[Row]]

WIDTH = 60  # characters of a value in the log
MANY, TOO_MANY = 500, 1.5  # prompts from which on that many times the share is no chance
FEW, LARGE = 20, 0.1  # share of the prompts, where they are not few, in one cluster: it is said


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
    rows: Sequence[Row],
    heldout: float,
    near_duplicate: float | None = None,
    heldout_by: HeldoutBy = "id",
) -> PromptSet:
    """Return the unique prompts of rows of ``data/examples``, in memory."""
    known = Uniques(rows, texts_for(near_duplicate))
    found = known.split(heldout, near_duplicate, heldout_by)
    return PromptSet(list(unique_rows(lambda: rows, known, found, set())))


def texts_for(near_duplicate: float | None) -> WordPairs | None:
    """Return what takes in the texts, or None where the split does without them."""
    return None if near_duplicate is None else WordPairs()


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
    known = Uniques(read(), texts_for(params.near_duplicate))
    found = Statistics()
    if not len(known):
        hint = "check download.sources and run `dvc repro download`"
        raise DataError("no valid prompts found", "data/examples", hint=hint)
    dropped = known.disagreeing(params.drop_conflicting)
    _warn(read, known)
    parts = known.split(params.heldout, params.near_duplicate, params.heldout_by)
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
    _warn_of_share(found, params.heldout, int(parts.marked[kept].sum()))
    return (
        found.metrics()
        | parts.metrics(kept)
        | _heldout_metrics(known, parts, kept, params.heldout_by)
        | {
            "no_text": known.no_text,
            "conflicting": conflicting,
            "dropped_conflicting": len(dropped),
        }
    )


def _heldout_metrics(
    known: Uniques, parts: Split, kept: np.ndarray, heldout_by: HeldoutBy
) -> dict[str, int]:
    """Return counts of what the data holds out itself, and of labels without a held-out prompt."""
    found: dict[str, int] = {}
    if parts.marked[kept].any():
        both = int((known.both & kept).sum())
        found = {
            "heldout_marked": int(parts.marked[kept].sum()),
            "heldout_also_in_training": both,
        }
        if both:
            log.warning(
                "%d prompts that the data holds out are asked in its training rows, too; they are "
                "held out",
                both,
            )
    if heldout_by == "label":
        rows = np.flatnonzero(kept)
        held = {known.labels[row] for row in rows if parts.heldout[row]}
        found["labels_without_heldout"] = len({known.labels[row] for row in rows} - held - {None})
    return found


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


def _warn_of_share(found: Statistics, wanted: float, marked: int) -> None:
    """Say so if near-duplicates have brought many more prompts into the held-out split."""
    total, heldout = len(found.counts), found.splits["heldout"]
    if total >= MANY and heldout - marked > TOO_MANY * wanted * total:
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
