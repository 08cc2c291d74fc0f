"""The neighbour graph: its arrays, and reading the neighbors artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.artifact import checked, load_array, read_manifest
from isodense.pipeline.errors import ArtifactError, IsodenseError

INDICES = "indices.npy"
DISTANCES = "distances.npy"
HELDOUT_INDICES = "heldout_indices.npy"
HELDOUT_DISTANCES = "heldout_distances.npy"
TIE = 1e-6  # distances that differ by less count as equal


@dataclass(frozen=True)
class Graph:
    """Nearest neighbours of every row, itself excluded.

    Attributes
    ----------
    indices : ndarray of shape (n, k), int32
        Row numbers of the neighbours, by rising (distance, index).
    distances : ndarray of shape (n, k), float32
        Euclidean distances of unit vectors, in [0, 2], in the same order.

    Examples
    --------
    >>> graph = Graph(np.array([[1], [0]], np.int32), np.array([[0.6], [0.6]], np.float32))
    >>> len(graph), graph.k
    (2, 1)
    """

    indices: np.ndarray
    distances: np.ndarray

    @classmethod
    def empty(cls, rows: int, k: int) -> Graph:
        """Return an uninitialised graph of `rows` rows and `k` neighbours."""
        return cls(np.empty((rows, k), dtype=np.int32), np.empty((rows, k), dtype=np.float32))

    @property
    def k(self) -> int:
        """Neighbours per row."""
        return self.indices.shape[1]

    def __len__(self) -> int:
        return len(self.indices)

    def first(self, k: int) -> Graph:
        """Return the graph of the `k` nearest neighbours, or of all if there are no more rows.

        Raises
        ------
        IsodenseError
            If the graph holds fewer than `k` although the rows have more.
        """
        if k > self.k and self.k < len(self) - 1:
            message = f"k = {k} but the graph holds {self.k} neighbours"
            hint = "raise neighbors.k_max, or lower density.k; in Python, pass knn_graph a larger k"
            raise IsodenseError(message, hint)
        return Graph(self.indices[:, :k], self.distances[:, :k])


def graph_bytes(rows: int, k: int) -> int:
    """Return the size on disk of a graph, a number and a distance for each neighbour."""
    return rows * k * 8


def recall(found: Graph, exact: Graph) -> float:
    """Return the recall of an approximate graph.

    A neighbour counts as true if it is no farther than the exact k-th one, up to `TIE`, since
    duplicates are interchangeable.

    Parameters
    ----------
    found : Graph
        The graph to evaluate.
    exact : Graph
        Exact neighbours of the same rows, with the same k.

    Returns
    -------
    float
        Share of true neighbours, in [0, 1].
    """
    return float((found.distances <= exact.distances[:, -1:] + TIE).mean())


def load_graph(folder: str | Path) -> tuple[Graph, dict[str, Any]]:
    """Load ``data/neighbors`` memory-mapped.

    Returns
    -------
    graph : Graph
        Graph of the training prompts.
    manifest : dict
        The artifact's manifest.

    Raises
    ------
    ArtifactError
        If the artifact is incomplete or the shapes of the arrays disagree.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, "neighbors")
    indices = load_array(checked(folder, manifest, INDICES), mmap=True)
    distances = load_array(checked(folder, manifest, DISTANCES), mmap=True)
    if indices.shape != distances.shape or len(indices) != manifest["rows"]:
        message = f"{folder}: indices {indices.shape} and distances {distances.shape} disagree"
        raise ArtifactError(message, "run `dvc repro neighbors`")
    return Graph(indices, distances), manifest


def load_heldout_graph(folder: str | Path) -> Graph:
    """Load the nearest training prompts of the held-out prompts, memory-mapped.

    Returns
    -------
    Graph
        Row i is held-out prompt i; `indices` are row numbers of training prompts.

    Raises
    ------
    ArtifactError
        If the artifact is incomplete or damaged.
    """
    manifest = read_manifest(folder, "neighbors")
    return Graph(
        load_array(checked(folder, manifest, HELDOUT_INDICES), mmap=True),
        load_array(checked(folder, manifest, HELDOUT_DISTANCES), mmap=True),
    )
