"""What the report says of single prompts: weights, near-duplicates, held-out ones.

A prompt is anyone's text, of any length. The page shows the start of it, with a mark for each
character that is invisible and could change how its surroundings look.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isodense.density.duplicates import largest_clusters
from isodense.density.estimate import near_training
from isodense.neighbors.graph import load_heldout_graph
from isodense.pipeline.artifact import ids_sha256, read_checked, read_manifest, require_same_ids
from isodense.pipeline.errors import ArtifactError
from isodense.pipeline.tables import read_at
from isodense.prompts.reader import OWN, are_kinds, iter_rows
from isodense.sampling.weights import Weights

LONGEST = 1000  # characters of a prompt that tables show
SHOWN = 50  # most and least weighted prompts, duplicate clusters, held-out prompts
COLUMNS = 12  # of the data, for each prompt that tables show
NAME, LINE = 40, 120  # characters of a column's name and of its value
MEMBERS = 20  # of a duplicate cluster
UNSEEN = re.compile(  # controls, marks of writing direction, line separators, halves of surrogates
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


@dataclass(frozen=True)
class Prompts:
    """Prompts in the order of the set.

    Attributes
    ----------
    ids : list of str
    texts : list of str
        The first `LONGEST` characters, safe to show; longer ones end in their length.
    counts : ndarray of shape (n,), int64
        Occurrences of each.
    heldout : ndarray of shape (n,), bool
    leaked : ndarray of shape (n,), bool
        Held out with a near-duplicate in training, by the words.
    sources : list of str
        Names of the data sets that each is from, joined.
    labels : list of str
        Empty where unknown, and everywhere where labels do not name kinds of prompts.
    relative : ndarray of shape (n,), float64
        Weight over the mean weight; NaN where held out.
    """

    ids: list[str]
    texts: list[str]
    counts: np.ndarray
    heldout: np.ndarray
    leaked: np.ndarray
    sources: list[str]
    labels: list[str]
    relative: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ids_sha256(self) -> str:
        """Hash that ties row-aligned arrays to these prompts."""
        return ids_sha256(self.ids)

    @property
    def train(self) -> np.ndarray:
        """Row numbers of the training prompts, an ndarray of int64."""
        return np.flatnonzero(~self.heldout)


def shown(text: str) -> str:
    r"""Return what the page shows of a text.

    Examples
    --------
    >>> shown("a" + chr(0x202E) + "b") == "a" + chr(0xFFFD) + "b"
    True
    """
    kept = UNSEEN.sub("\ufffd", text[:LONGEST].replace("\r\n", "\n"))
    return kept if len(text) <= LONGEST else f"{kept}… ({len(text):,} characters)"


def one_line(text: str, width: int) -> str:
    r"""Return a text on one line, of at most `width` characters.

    Examples
    --------
    >>> one_line("a line\n and another", 10)
    'a line an…'
    """
    line = " ".join(UNSEEN.sub("\ufffd", text[: 4 * width]).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def load(folder: Path, weights: Weights) -> Prompts:
    """Read the prompts artifact, a row at a time, and join it with the weights.

    Raises
    ------
    ArtifactError
        If it is damaged, or the weights are of other prompts.
    """
    manifest = read_checked(folder, "prompts")
    ids, texts, sources, labels = [], [], [], []
    counts, heldout, leaked = [], [], []
    joined: dict[tuple[str, ...], str] = {}
    for row in iter_rows(folder, ("id", "text", "count", "sources", "split", "leaked", "label")):
        ids.append(row["id"])
        texts.append(shown(row["text"]))
        names = tuple(row["sources"])
        sources.append(joined.setdefault(names, " + ".join(names)))
        labels.append(row.get("label") or "")
        counts.append(row["count"])
        heldout.append(row["split"] == "heldout")
        leaked.append(row.get("leaked", False))
    held = np.array(heldout, dtype=bool)
    if not are_kinds(labels):
        labels = [""] * len(ids)
    if ids_sha256(ids) != manifest["ids_sha256"]:
        message = f"{folder} does not hold the prompts of its manifest"
        raise ArtifactError(message, "run `dvc repro prompts`")
    train = (name for name, out in zip(ids, heldout, strict=True) if not out)
    require_same_ids(ids_sha256(train), weights.metadata, "the weights")
    relative = np.full(len(ids), np.nan)
    relative[~held] = weights.weights.astype(np.float64) * len(weights.weights)
    marked = np.array(leaked, dtype=bool)
    return Prompts(ids, texts, np.array(counts), held, marked, sources, labels, relative)


def extremes(prompts: Prompts, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of the tables of the most and of the least weighted prompts.

    Parameters
    ----------
    prompts : Prompts
    folder : Path
        The prompts artifact, for the data's columns of the prompts that are shown.
    """
    train = prompts.train
    order = train[np.argsort(-prompts.relative[train], kind="stable")]
    most, least = order[:SHOWN], order[::-1][:SHOWN]
    whole = read_at(folder, [*most.tolist(), *least.tolist()])
    made = {row: _row(prompts, row) | {"columns": columns_line(whole[row])} for row in whole}
    return [made[row] for row in most.tolist()], [made[row] for row in least.tolist()]


def columns_line(row: dict[str, Any]) -> str:
    """Return the data's own columns of a prompt on one line, each cut to some length."""
    kept = {name: value for name, value in row.items() if name not in OWN}
    parts = [
        (name, value if isinstance(value, str) else repr(value))
        for name, value in sorted(kept.items())[:COLUMNS]
    ]
    said = (f"{one_line(name, NAME)}: {one_line(value, LINE)}" for name, value in parts)
    return "; ".join(said) + "; …" * (len(kept) > COLUMNS)


def clusters(prompts: Prompts, numbers: np.ndarray) -> list[dict[str, Any]]:
    """Return the largest duplicate clusters, largest first.

    Parameters
    ----------
    prompts : Prompts
    numbers : ndarray of shape (n_train,), int32
        Duplicate cluster of each training prompt.
    """
    found, train = [], prompts.train
    for members in largest_clusters(numbers, SHOWN):
        rows = train[members]
        found.append(
            {
                "size": len(rows),
                "count": int(prompts.counts[rows].sum()),
                "weight": float(prompts.relative[rows].sum()),
                "members": [_row(prompts, row) for row in rows[:MEMBERS]],
                "more": max(0, len(rows) - MEMBERS),
            }
        )
    return found


@dataclass(frozen=True)
class Heldout:
    """How near the held-out prompts are to training ones.

    Attributes
    ----------
    distances : ndarray of shape (n_heldout,), float32
        Distance to the nearest training prompt.
    near : list of dict
        Those nearest to a training prompt, the nearest first: ``distance, leaked, text, train``;
        near-duplicates and others.
    count : int
        Number of near-duplicates, by distance.
    by_words : int
        Number of near-duplicates by their words.
    """

    distances: np.ndarray
    near: list[dict[str, Any]]
    count: int
    by_words: int


def nearest_train(prompts: Prompts, neighbors: Path, radius: float) -> Heldout:
    """Return how near the held-out prompts are to training ones.

    Parameters
    ----------
    prompts : Prompts
    neighbors : Path
        The neighbours artifact.
    radius : float
        Prompts within it are near-duplicates.

    Raises
    ------
    ArtifactError
        If the artifact is of another number of prompts.
    """
    rows = np.flatnonzero(prompts.heldout)
    graph = load_heldout_graph(neighbors)
    ids = ids_sha256([prompts.ids[row] for row in rows])
    manifest = read_manifest(neighbors, "neighbors")
    require_same_ids(ids, manifest, f"the held-out prompts of {neighbors}", "heldout_ids_sha256")
    distances = np.array(graph.distances[:, 0])
    close = near_training(graph, radius)
    leaked = close | prompts.leaked[rows]
    near = [
        {
            "distance": float(distances[row]),
            "leaked": bool(leaked[row]),
            "text": prompts.texts[rows[row]],
            "train": prompts.texts[prompts.train[graph.indices[row, 0]]],
        }
        for row in np.argsort(distances, kind="stable")[:SHOWN]
    ]
    return Heldout(distances, near, int(close.sum()), int(prompts.leaked.sum()))


def _row(prompts: Prompts, row: int) -> dict[str, Any]:
    return {
        "weight": f"{prompts.relative[row]:.2f}",
        "count": int(prompts.counts[row]),
        "label": shown(prompts.labels[row]),
        "source": shown(prompts.sources[row]),
        "id": shown(prompts.ids[row])[:12],
        "text": prompts.texts[row],
        "columns": "",
    }
