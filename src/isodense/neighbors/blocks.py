"""Neighbour search in blocks of queries: cached, shared by ranks, grown.

A finished block is kept in :mod:`isodense.pipeline.cache`: a run that was cut off computes only
what is not there, and ranks started by torchrun take turns at the missing blocks. The blocks stay
when the graph is published. If the present rows begin with those of an exact graph that was
finished earlier, old rows are compared with the new ones only: what they had and what they find
hold the k nearest, in the bytes of a search from nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from isodense.neighbors.exact import Exact
from isodense.neighbors.graph import Graph
from isodense.pipeline.artifact import write_json
from isodense.pipeline.cache import Entry, Store
from isodense.pipeline.errors import ArtifactError
from isodense.pipeline.executor import Progress, Rank

ROWS = 16_384  # queries of a block
NOTE = "finished.json"

log = logging.getLogger("isodense")

OnDone = Callable[[int], object]


@dataclass(frozen=True)
class Side:
    """Prompts whose nearest training prompts are wanted.

    Attributes
    ----------
    name : str
        ``train`` or ``heldout``.
    vectors : ndarray of shape (n, dim), float32
        Unit rows.
    k : int
        Neighbours of each.
    """

    name: str
    vectors: np.ndarray
    k: int

    def own(self, rows: np.ndarray) -> np.ndarray:
        """Return the training rows that `rows` are themselves, -1 for held-out ones."""
        return rows if self.name == "train" else np.full(len(rows), -1)


@dataclass(frozen=True)
class Search:
    """How neighbours are found.

    Attributes
    ----------
    order : ndarray of shape (n,)
        Training rows in the order in which blocks take them.
    find : callable
        Takes a side, rows of it and a function to be told of finished ones; returns their Graph.
    """

    order: np.ndarray
    find: Callable[[Side, np.ndarray, OnDone], Graph]


@dataclass(frozen=True)
class Last:
    """An exact graph finished earlier, of rows that the present ones begin with.

    Attributes
    ----------
    rows : int
        Training rows that it points into.
    graphs : dict of str to Graph
        By side.
    """

    rows: int
    graphs: dict[str, Graph]


def fingerprint(vectors: np.ndarray) -> str:
    """Return a hash of all rows."""
    found = hashlib.sha256(str(vectors.shape[1:]).encode())
    found.update(np.ascontiguousarray(vectors).data)
    return found.hexdigest()


def search_blocks(
    sides: list[Side], prepare: Callable[[], Search], entry: Entry, rank: Rank, size: int = ROWS
) -> list[Graph] | None:
    """Find the neighbours of all rows of all sides, taking finished blocks from a folder.

    Parameters
    ----------
    sides : list of Side
    prepare : callable
        Makes the Search; called only if a block is missing.
    entry : Entry
        Where blocks are kept, shared by the ranks.
    rank : Rank
    size : int
        Queries of a block.

    Returns
    -------
    list of Graph or None
        Of each side; None on ranks but the first.
    """
    blocks = [(side, start) for side in sides for start in range(0, len(side.vectors), size)]
    names = [name for side in sides for name in _names(side, size)]
    missing = [number for number, name in enumerate(names) if not entry.holds(name)]
    mine = [number for number in missing if number % rank.world == rank.index]
    counts = [min(size, len(side.vectors) - start) for side, start in blocks]
    with Progress(entry.folder, rank, sum(counts[number] for number in missing), "blocks") as bar:
        if mine or (missing and not rank.index):  # others may wait for what the first prepares
            search = prepare()
            for number in mine:
                side, start = blocks[number]
                order = search.order if side.name == "train" else np.arange(len(side.vectors))
                rows = order[start : start + size]
                graph = search.find(side, rows, bar.add)
                arrays = {"rows": rows, "indices": graph.indices, "distances": graph.distances}
                with entry.writing(names[number]) as path:
                    save_file(arrays, path)
        if rank.index:
            return None
        bar.wait(missing, lambda number: entry.holds(names[number]))
    if len(missing) < len(blocks):
        where = entry.folder
        log.info("%d of %d blocks computed, the rest were in %s", len(missing), len(blocks), where)
    return [_joined(entry, side, size) for side in sides]


def exact_search(train: Side, last: Last | None, device: str) -> Search:
    """Return the exact search among the rows of `train`, growing an earlier graph if there is one.

    Parameters
    ----------
    train : Side
    last : Last, optional
    device : str
        Param ``base.device``.
    """
    every = Exact(train.vectors, device)
    new = Exact(train.vectors[last.rows if last else len(train.vectors) :], device)

    def find(side: Side, rows: np.ndarray, done: OnDone) -> Graph:
        known = rows < len(last.graphs[side.name]) if last else np.zeros(len(rows), dtype=bool)
        unknown = rows[~known]
        found = every.nearest(side.vectors[unknown], side.k, side.own(unknown), done=done)
        if not last or not known.any():
            return found
        graph = Graph.empty(len(rows), side.k)
        for where, part in ((~known, found), (known, _grown(last, side, rows[known], new, done))):
            graph.indices[where], graph.distances[where] = part.indices, part.distances
        return graph

    return Search(np.arange(len(train.vectors)), find)


def finish(entry: Entry, recipe: str, sides: list[Side], prints: list[str]) -> None:
    """Note in the entry of a finished search what it is of, so that a larger set can grow it."""
    if entry.holds(NOTE):
        return
    rows = {s.name: [len(s.vectors), p] for s, p in zip(sides, prints, strict=True)}
    note = {"recipe": recipe, "rows": rows, "k": [side.k for side in sides]}
    with entry.writing(NOTE) as path:
        write_json(path, note)


def load_last(store: Store, recipe: str, sides: list[Side]) -> Last | None:
    """Return the largest finished graph of rows that the present ones begin with.

    Parameters
    ----------
    store : Store
        Finished searches.
    recipe : str
        What the graph must depend on besides the vectors.
    sides : list of Side
        The present rows.
    """
    found = [(_note(entry), entry) for entry in store.entries(NOTE) if entry.holds(NOTE)]
    fitting = [(note, entry) for note, entry in found if note["recipe"] == recipe]
    for note, entry in sorted(fitting, key=lambda pair: -pair[0]["rows"]["train"][0]):
        known = [note["rows"][side.name] for side in sides]
        if all(_begins(s, *found) for s, found in zip(sides, known, strict=True)):
            log.info("growing the graph of the first %d training prompts", known[0][0])
            old = [
                Side(side.name, side.vectors[:count], k)
                for side, (count, _), k in zip(sides, known, note["k"], strict=True)
            ]
            if not all(entry.holds(name) for side in old for name in _names(side)):
                continue
            graphs = {side.name: _joined(entry, side) for side in old}
            return Last(known[0][0], graphs)
    return None


def _note(entry: Entry) -> dict[str, Any]:
    note: dict[str, Any] = json.loads(entry.path(NOTE).read_text(encoding="utf-8"))
    return note


def _begins(side: Side, rows: int, known: str) -> bool:
    return rows <= len(side.vectors) and fingerprint(side.vectors[:rows]) == known


def _grown(last: Last, side: Side, rows: np.ndarray, new: Exact, done: OnDone) -> Graph:
    """Merge what rows had with what is nearest to them among the new ones, which come after."""
    old = last.graphs[side.name]
    fresh = new.nearest(side.vectors[rows], min(side.k, len(new.X)), done=done)
    indices = np.concatenate([old.indices[rows], fresh.indices + np.int32(last.rows)], axis=1)
    distances = np.concatenate([old.distances[rows], fresh.distances], axis=1)
    order = np.argsort(distances, axis=1, kind="stable")[:, : side.k]
    return Graph(
        np.take_along_axis(indices, order, axis=1), np.take_along_axis(distances, order, axis=1)
    )


def _names(side: Side, size: int = ROWS) -> list[str]:
    """Return the names of the pieces that hold a side's blocks."""
    blocks = range(-(-len(side.vectors) // size))
    return [f"{side.name}-{number:05d}.safetensors" for number in blocks]


def _joined(entry: Entry, side: Side, size: int = ROWS) -> Graph:
    """Put blocks together; each row has to be in one of them."""
    graph, found = Graph.empty(len(side.vectors), side.k), np.zeros(len(side.vectors), dtype=int)
    for name in _names(side, size):
        block = load_file(entry.path(name))
        graph.indices[block["rows"]] = block["indices"]
        graph.distances[block["rows"]] = block["distances"]
        found[block["rows"]] += 1
    if (found != 1).any():
        message = f"the blocks in {entry.folder} do not hold each row once"
        raise ArtifactError(message, "delete that folder and run it again")
    return graph
