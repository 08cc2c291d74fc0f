"""Reading the prompts artifact: ids, conversations and splits, in the order of all row arrays.

:func:`load_prompts` returns whole rows; :func:`load_columns` returns ids, splits, occurrences and
labels only, for stages that need no conversations: 0.2 GB for a million prompts.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from isodense.pipeline.artifact import ids_sha256, read_checked
from isodense.pipeline.errors import ArtifactError
from isodense.pipeline.tables import read_batches, read_rows

# not the data's own columns
OWN = ("id", "prompt", "text", "count", "sources", "split", "leaked", "heldout", "label")
FEW_LABELS = 20  # that a small set may have although it is not twice as large
Split = Literal["train", "heldout"]


Loaded = TypeVar("Loaded", "PromptSet", "Columns")


@dataclass(frozen=True)
class PromptSet:
    """Unique prompts in order of first appearance.

    Attributes
    ----------
    rows : list of dict
        ``id, prompt, text, count, sources, split``, if true ``leaked`` and ``heldout`` (held out
        by the data itself), if known ``label``, and
        the columns that the data came with, where they are not null. ``count`` is the number of
        occurrences, and ``sources`` maps the names of sources to theirs.
    """

    rows: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids(self) -> list[str]:
        """Prompt ids, in row order."""
        return [row["id"] for row in self.rows]

    @property
    def texts(self) -> list[str]:
        """Texts that the encoder embeds, in row order."""
        return [row["text"] for row in self.rows]

    @property
    def labels(self) -> list[str] | None:
        """Labels in row order; None unless every row has one."""
        return _all_known([row.get("label") for row in self.rows])

    @property
    def labels_are_kinds(self) -> bool:
        """Whether labels can name kinds of prompts: there are some, and not one for each prompt."""
        return are_kinds([row.get("label") for row in self.rows])

    @property
    def columns(self) -> list[str]:
        """Names of the columns that the data came with, sorted."""
        return sorted({name for row in self.rows for name in row}.difference(OWN))

    @property
    def ids_sha256(self) -> str:
        """Hash that ties row-aligned arrays to these prompts."""
        return ids_sha256(self.ids)

    def split(self, name: str) -> PromptSet:
        """Return the prompts of the split ``"train"`` or ``"heldout"``, in order."""
        return PromptSet([row for row in self.rows if row["split"] == name])

    def positions(self, name: str) -> list[int]:
        """Return the row numbers of a split."""
        return [index for index, row in enumerate(self.rows) if row["split"] == name]


@dataclass(frozen=True)
class Columns:
    """Columns of the prompts artifact without conversations, in order of first appearance.

    Attributes
    ----------
    ids : list of str
        Prompt ids.
    heldout : ndarray of shape (n,), bool
        Whether a prompt is held out of training.
    leaked : ndarray of shape (n,), bool
        Held out with a near-duplicate in training.
    counts : ndarray of shape (n,), int64
        Occurrences: the number of pairs with the prompt.
    row_labels : list of str or None
        Label of each prompt, None where unknown.
    """

    ids: list[str]
    heldout: np.ndarray
    leaked: np.ndarray
    counts: np.ndarray
    row_labels: list[str | None]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> list[str] | None:
        """Labels in row order; None unless every row has one."""
        return _all_known(self.row_labels)

    @property
    def labels_are_kinds(self) -> bool:
        """Whether labels can name kinds of prompts: there are some, and not one for each prompt."""
        return are_kinds(self.row_labels)

    @property
    def ids_sha256(self) -> str:
        """Hash that ties row-aligned arrays to these prompts."""
        return ids_sha256(self.ids)

    def split(self, name: Split) -> Columns:
        """Return the prompts of the split ``"train"`` or ``"heldout"``, in order."""
        rows = self.positions(name)
        return Columns(
            [self.ids[row] for row in rows],
            self.heldout[rows],
            self.leaked[rows],
            self.counts[rows],
            [self.row_labels[row] for row in rows],
        )

    def positions(self, name: Split) -> np.ndarray:
        """Return the row numbers of a split, an ndarray of int64."""
        return np.flatnonzero(self.heldout == (name == "heldout"))


def load_prompts(folder: str | Path) -> PromptSet:
    """Load ``data/prompts`` and check that the file and its ids are those of the manifest.

    Prompt ids are not computed again from the texts: that takes as long as parsing the file, 5 s
    for a million prompts, and the file's SHA-256 says as much.

    Parameters
    ----------
    folder : str or Path
        The prompts artifact.

    Raises
    ------
    ArtifactError
        If the artifact is incomplete or not that of the manifest.
    """
    manifest = read_checked(folder, "prompts")
    return _checked(folder, PromptSet(list(iter_rows(folder))), manifest)


def iter_rows(folder: str | Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Return the rows of ``data/prompts`` one by one, unchecked; see :class:`PromptSet`.

    Parameters
    ----------
    folder : str or Path
        The prompts artifact.
    columns : sequence of str, optional
        What to read of each row; by default everything.
    """
    return map(decoded, read_rows(folder, columns))


def decoded(row: dict[str, Any]) -> dict[str, Any]:
    """Return a stored row in the form of :class:`PromptSet`."""
    if "sources" in row:
        row["sources"] = {entry["source"]: entry["count"] for entry in row["sources"]}
    return row


def stored(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of :class:`PromptSet` in the form in which it is stored."""
    sources = [{"source": name, "count": count} for name, count in row["sources"].items()]
    return {**row, "sources": sources}


def load_columns(folder: str | Path) -> Columns:
    """Load ids, splits, occurrences and labels of ``data/prompts``, checked as by `load_prompts`.

    Nothing else is read: 0.2 GB for a million prompts.

    Parameters
    ----------
    folder : str or Path
        The prompts artifact.

    Raises
    ------
    ArtifactError
        If the artifact is incomplete or not that of the manifest.
    """
    manifest = read_checked(folder, "prompts")
    return _checked(folder, read_columns(folder), manifest)


def read_columns(folder: str | Path) -> Columns:
    """Do as :func:`load_columns` does, without a manifest to check the ids against."""
    ids: list[str] = []
    labels: list[str | None] = []
    heldout, leaked, counts = array("b"), array("b"), array("q")
    for batch in read_batches(folder, ("id", "split", "leaked", "count", "label")):
        found = batch.to_pydict()
        ids += found["id"]
        heldout.extend(split == "heldout" for split in found["split"])
        leaked.extend(value is True for value in found.get("leaked", [None] * len(batch)))
        counts.extend(found["count"])
        labels += (  # equal labels, one string
            None if label is None else sys.intern(label)
            for label in found.get("label", [None] * len(batch))
        )
    return Columns(
        ids,
        np.frombuffer(heldout, dtype=np.bool_),
        np.frombuffer(leaked, dtype=np.bool_),
        np.frombuffer(counts, dtype=np.int64),
        labels,
    )


def _checked(folder: str | Path, prompts: Loaded, manifest: dict[str, Any]) -> Loaded:
    if prompts.ids_sha256 != manifest["ids_sha256"]:
        message = f"{folder} does not hold the prompts of its manifest"
        raise ArtifactError(message, "run `dvc repro prompts`")
    return prompts


def _all_known(labels: list[str | None]) -> list[str] | None:
    return None if not labels or None in labels else labels  # type: ignore[return-value]


def are_kinds(labels: Iterable[str | None]) -> bool:
    """Return whether labels can name kinds of prompts: there are some, not one for each prompt."""
    known = [label for label in labels if label]
    return 0 < len(set(known)) <= max(FEW_LABELS, len(known) / 2)
