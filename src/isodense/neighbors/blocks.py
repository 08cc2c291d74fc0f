"""Neighbour search in blocks of queries: cached, shared by workers, grown.

A finished block is kept in :mod:`isodense.pipeline.cache`: a run that was cut off computes only
what is not there. The blocks stay when the graph is published. Where the rows to search in are more
than a machine is to hold at once, they are searched slice by slice; what a block has found so far
is kept after each. If the present rows begin with those of an exact graph that was finished
earlier, old rows are compared with the new ones only: what they had and what they find hold the k
nearest, in the bytes of a search from nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from isodense.neighbors.exact import Exact
from isodense.neighbors.graph import Graph
from isodense.pipeline.artifact import write_json
from isodense.pipeline.cache import Entry, Store
from isodense.pipeline.errors import ArtifactError
from isodense.pipeline.executor import compute, device_of_workers, workers
from isodense.pipeline.tasks import Job, Task, Workers

ROWS = 16_384  # queries of a block
NOTE, PIECE = "finished.json", ".safetensors"

log = logging.getLogger("isodense")


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


@dataclass(frozen=True)
class Search:
    """How neighbours are found.

    Attributes
    ----------
    order : ndarray of shape (n,)
        Training rows in the order in which blocks take them.
    job : Job
        What workers do.
    task : callable
        Takes a side, rows of it and a slice, and returns the arguments and arrays of the task that
        gives the Graph of these rows among those of the slice.
    slices : list of range
        Training rows that are searched at a time.
    last : Last, optional
        An earlier graph to grow.
    here : bool
        Whether it is no work to share: the index is in this process.
    """

    order: np.ndarray
    job: Job
    task: Callable[[Side, np.ndarray, range], tuple[tuple[Any, ...], dict[str, np.ndarray]]]
    slices: list[range]
    last: Last | None = None
    here: bool = False


def fingerprint(vectors: np.ndarray) -> str:
    """Return a hash of all rows."""
    found = hashlib.sha256(str(vectors.shape[1:]).encode())
    found.update(np.ascontiguousarray(vectors).data)
    return found.hexdigest()


def search_blocks(
    sides: list[Side], prepare: Callable[[], Search], entry: Entry, size: int = ROWS
) -> list[Graph]:
    """Find the neighbours of all rows of all sides, taking finished blocks from a folder.

    Parameters
    ----------
    sides : list of Side
    prepare : callable
        Makes the Search; called only if a block is missing.
    entry : Entry
        Where blocks are kept.
    size : int
        Queries of a block.

    Returns
    -------
    list of Graph
        Of each side.
    """
    places = [(side, start) for side in sides for start in range(0, len(side.vectors), size)]
    missing = [place for place in places if not entry.holds(f"{_name(*place, size)}{PIECE}")]
    if missing:
        search = prepare()
        blocks = [_Block.begun(side, start, size, search, entry) for side, start in missing]
        _search(blocks, search)
    if len(missing) < len(places):
        where = entry.folder
        log.info("%d of %d blocks computed, the rest were in %s", len(missing), len(places), where)
    return [_joined(entry, side, size) for side in sides]


@dataclass
class _Block:
    """Queries that are searched for together, and what has been found so far."""

    side: Side
    rows: np.ndarray
    name: str
    slices: list[range]
    left: list[range]  # slices to search
    last: Last | None
    entry: Entry

    @classmethod
    def begun(cls, side: Side, start: int, size: int, search: Search, entry: Entry) -> _Block:
        """Return a block as the cache has it."""
        order = search.order if side.name == "train" else np.arange(len(side.vectors))
        rows, slices, name = order[start : start + size], search.slices, _name(side, start, size)
        block = cls(side, rows, name, slices, list(slices), search.last, entry)
        if entry.holds(block._part):
            arrays = load_file(entry.path(block._part))
            done = {range(*ends) for ends in arrays["slices"].tolist()}
            if done < set(slices) and arrays["grown"].tolist() == block._grown:
                block.left = [part for part in slices if part not in done]
                return block
        entry.discard(block._part)
        return block

    @property
    def _part(self) -> str:
        return f"{self.name}.part{PIECE}"

    @property
    def _grown(self) -> list[int]:
        """Rows that the earlier graph points into, and how many it has; both 0 without one."""
        return [self.last.rows, len(self.last.graphs[self.side.name])] if self.last else [0, 0]

    @property
    def _known(self) -> np.ndarray:
        """Of each row, whether the earlier graph has it."""
        return self.rows < self._grown[1]

    def asking(self, part: range) -> np.ndarray:
        """Return which rows are to be searched for in a slice: the earlier graph knows the rest."""
        old = self.last is not None and part.stop <= self.last.rows
        return ~self._known if old else np.ones(len(self.rows), dtype=bool)

    def add(self, part: range, asked: np.ndarray, found: Graph | None) -> None:
        """Keep what a slice has given, and the block itself after the last one."""
        graph = self._so_far()
        if graph is None and found is not None and found.k == self.side.k:
            graph = found  # of all rows, and nothing to merge it with
        else:
            graph = _filled(len(self.rows), self.side.k) if graph is None else graph
            if found is not None:
                new = _filled(len(self.rows), self.side.k)
                new.indices[asked, : found.k] = found.indices
                new.distances[asked, : found.k] = found.distances
                graph = merged(graph, new)
        self.left.remove(part)
        arrays = {"rows": self.rows, "indices": graph.indices, "distances": graph.distances}
        if self.left:
            done = [(one.start, one.stop) for one in self.slices if one not in self.left]
            state = {"slices": np.array(done), "grown": np.array(self._grown)}
            with self.entry.writing(self._part) as path:
                save_file(arrays | state, path)
        else:
            with self.entry.writing(f"{self.name}{PIECE}") as path:
                save_file(arrays, path)
            self.entry.discard(self._part)

    def _so_far(self) -> Graph | None:
        """Return what has been found; None before anything was."""
        if self.entry.holds(self._part):
            arrays = load_file(self.entry.path(self._part))
            return Graph(arrays["indices"], arrays["distances"])
        known = self._known
        if self.last is None or not known.any():
            return None
        graph, old = _filled(len(self.rows), self.side.k), self.last.graphs[self.side.name]
        graph.indices[known, : old.k] = old.indices[self.rows[known]]
        graph.distances[known, : old.k] = old.distances[self.rows[known]]
        return graph


def _search(blocks: list[_Block], search: Search) -> None:
    """Search all blocks in all slices, slice by slice, so that a machine holds few at once."""
    asked: dict[str, tuple[_Block, range, np.ndarray]] = {}

    def tasks() -> Iterator[Task]:
        for part in search.slices:
            for block in (block for block in blocks if part in block.left):
                mask = block.asking(part)
                if not mask.any():
                    block.add(part, mask, None)
                    continue
                name = f"{block.name} among rows {part.start} to {part.stop - 1}"
                asked[name] = block, part, mask
                rows = block.rows[mask]
                yield Task(name, len(rows), *search.task(block.side, rows, part))

    total = sum(int(block.asking(part).sum()) for block in blocks for part in block.left)
    found = nullcontext(Workers(search.job)) if search.here else workers(search.job)
    with found as ready:
        for task, graph in compute(ready, tasks(), total, "row"):
            block, part, mask = asked.pop(task.name)
            block.add(part, mask, graph)


def _filled(rows: int, k: int) -> Graph:
    """Return a graph that has found nothing yet."""
    indices = np.full((rows, k), -1, dtype=np.int32)
    return Graph(indices, np.full((rows, k), np.inf, dtype=np.float32))


def merged(one: Graph, other: Graph) -> Graph:
    """Return the nearest of what two searches among different rows have found."""
    indices = np.concatenate([one.indices, other.indices], axis=1)
    distances = np.concatenate([one.distances, other.distances], axis=1)
    order = np.lexsort((indices, distances), axis=1)[:, : one.k]
    return Graph(
        np.take_along_axis(indices, order, axis=1), np.take_along_axis(distances, order, axis=1)
    )


class ExactSearch:
    """What finds exact neighbours in a worker.

    Parameters
    ----------
    device : {"cpu", "cuda"}
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._start, self._exact = -1, Exact(np.empty((0, 1), dtype=np.float32), "cpu")

    def __call__(
        self, queries: np.ndarray, own: np.ndarray, k: int, start: int, X: np.ndarray
    ) -> Graph:
        """Return the nearest rows of a slice, as many as it has, up to `k`.

        Parameters
        ----------
        queries : ndarray of shape (m, dim), float32
        own : ndarray of shape (m,)
            The training rows that the queries are themselves, -1 for others.
        k : int
        start : int
            First training row of the slice.
        X : ndarray of shape (n, dim), float32
            Rows of the slice.
        """
        if (self._start, len(self._exact.X)) != (start, len(X)):
            self._start, self._exact = start, Exact(X, self._device)
        inside = (own >= start) & (own < start + len(X))
        graph = _filled(len(queries), min(k, len(X)))
        for rows in (inside, ~inside):
            most = min(k, len(X) - bool(inside[rows].any()))
            if rows.any() and most:
                own_here = np.where(inside[rows], own[rows] - start, -1)
                found = self._exact.nearest(queries[rows], most, own_here, done=lambda _: None)
                graph.indices[rows, :most] = found.indices + np.int32(start)
                graph.distances[rows, :most] = found.distances
        return graph


def exact_search(train: Side, last: Last | None, device: str, most: int | None = None) -> Search:
    """Return the exact search among the rows of `train`, growing an earlier graph if there is one.

    Parameters
    ----------
    train : Side
    last : Last, optional
    device : str
        Param ``base.device``.
    most : int, optional
        Most rows that a machine holds at once.
    """
    where, count = device_of_workers(device), len(train.vectors)
    borders = [0, *([last.rows] if last and last.rows < count else []), count]
    slices = [
        range(start, min(start + (most or count), stop))
        for first, stop in itertools.pairwise(borders)
        for start in range(first, stop, most or count)
    ]

    def task(side: Side, rows: np.ndarray, part: range) -> tuple[tuple[Any, ...], dict[str, Any]]:
        arrays = {f"rows-{part.start}-{part.stop}": train.vectors[part.start : part.stop]}
        return (side.vectors[rows], side.own(rows), side.k, part.start), arrays

    job = Job(ExactSearch, settings={"device": where}, device=where)
    return Search(np.arange(count), job, task, slices, last)


def finish(
    entry: Entry, recipe: str, sides: list[Side], prints: list[str], size: int = ROWS
) -> None:
    """Note in the entry of a finished search what it is of, so that a larger set can grow it."""
    rows = {s.name: [len(s.vectors), p] for s, p in zip(sides, prints, strict=True)}
    note = {"recipe": recipe, "rows": rows, "k": [side.k for side in sides], "block": size}
    if entry.holds(NOTE) and _note(entry) == note:
        return
    with entry.writing(NOTE) as path:  # or anew, if it is of blocks of another size
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
            old = [
                Side(side.name, side.vectors[:count], k)
                for side, (count, _), k in zip(sides, known, note["k"], strict=True)
            ]
            size = note.get("block", ROWS)
            if not all(entry.holds(name) for side in old for name in _names(side, size)):
                continue
            log.info("growing the graph of the first %d training prompts", known[0][0])
            graphs = {side.name: _joined(entry, side, size) for side in old}
            return Last(known[0][0], graphs)
    return None


def _note(entry: Entry) -> dict[str, Any]:
    note: dict[str, Any] = json.loads(entry.path(NOTE).read_text(encoding="utf-8"))
    return note


def _begins(side: Side, rows: int, known: str) -> bool:
    return rows <= len(side.vectors) and fingerprint(side.vectors[:rows]) == known


def _name(side: Side, start: int, size: int) -> str:
    """Return the name of a block, which tells its rows: blocks may have another size later."""
    return f"{side.name}-{start}-to-{min(start + size, len(side.vectors)) - 1}"


def _names(side: Side, size: int) -> list[str]:
    """Return the names of the pieces that hold a side's blocks."""
    return [f"{_name(side, start, size)}{PIECE}" for start in range(0, len(side.vectors), size)]


def _joined(entry: Entry, side: Side, size: int) -> Graph:
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
