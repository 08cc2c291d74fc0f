"""Regions of the map: communities of the neighbour graph, named by their own words.

Communities are found by the Leiden algorithm (Traag, Waltman & van Eck, *Scientific Reports* 9,
2019; igraph has it), on each prompt's nearest neighbours. :mod:`isodense.report.words` says which
words are a region's own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isodense.neighbors.graph import Graph, load_graph, load_heldout_graph
from isodense.pipeline.artifact import ids_sha256, require_same_ids
from isodense.report.prompts import Prompts, one_line
from isodense.report.words import distinctive

NEAREST = 10  # neighbours of a prompt that the communities are found in
MOST = 40  # regions; smaller communities are in none
LEAST = 0.002  # share of the prompts that makes a region
SAMPLE = 2000  # prompts of a region whose words are counted, evenly spread over it
ALIKE = 0.05  # of the draws by uniform sampling: a change that is not told of
NAMING = 3  # words of a name
SEED = 0  # of the order in which Leiden looks at prompts


@dataclass(frozen=True)
class Region:
    """Prompts that lie together.

    Attributes
    ----------
    name : str
        The first of its words; a dash where it has none of its own.
    words : list of str
        What sets it apart, the most telling first.
    prompts : int
        Training prompts.
    uniform, weighted : float
        Share of the draws by uniform sampling, and by weight.
    example : str
        The text of the prompt in its middle.
    x, y : float
        Its middle on the map.
    """

    name: str
    words: list[str]
    prompts: int
    uniform: float
    weighted: float
    example: str
    x: float
    y: float

    @property
    def factor(self) -> float:
        """How many times as often as uniformly it is drawn."""
        return self.weighted / self.uniform


def regions_of(
    prompts: Prompts, neighbors: Path, coordinates: np.ndarray
) -> tuple[list[Region], np.ndarray]:
    """Do as :func:`find_regions` with a neighbours artifact.

    Raises
    ------
    ArtifactError
        If the artifact is damaged or of other prompts.
    """
    graph, manifest = load_graph(neighbors)
    ids = ids_sha256([prompts.ids[row] for row in prompts.train])
    require_same_ids(ids, manifest, f"the neighbours in {neighbors}")
    return find_regions(prompts, graph, load_heldout_graph(neighbors), coordinates)


def find_regions(
    prompts: Prompts, graph: Graph, heldout: Graph, coordinates: np.ndarray
) -> tuple[list[Region], np.ndarray]:
    """Return the regions, the largest first, and the region of each prompt.

    Parameters
    ----------
    prompts : Prompts
        All n prompts.
    graph : Graph
        Nearest training prompts of the training prompts.
    heldout : Graph
        Those of the held-out prompts, which are in the region of the nearest one.
    coordinates : ndarray of shape (n, 2), float32
        Their places on the map.

    Returns
    -------
    regions : list of Region
    numbers : ndarray of shape (n,), int64
        Number of each prompt's region; -1 for none.
    """
    train, found = prompts.train, communities(graph)
    sizes = np.bincount(found, minlength=1)
    kept = [one for one in np.argsort(-sizes, kind="stable") if sizes[one] >= LEAST * len(train)]
    number = np.full(len(sizes), -1)
    number[kept[:MOST]] = np.arange(len(kept[:MOST]))
    numbers = np.empty(len(prompts), dtype=np.int64)
    numbers[train] = number[found]
    numbers[prompts.heldout] = number[found[heldout.indices[:, 0]]] if heldout.k else -1
    members = [train[numbers[train] == one] for one in range(len(kept[:MOST]))]
    words = distinctive([[prompts.texts[row] for row in _spread(rows)] for rows in members])
    total = prompts.relative[train].sum()
    regions = [
        _region(prompts, coordinates, rows, mine, len(train), total)
        for rows, mine in zip(members, words, strict=True)
    ]
    return regions, numbers


def communities(graph: Graph) -> np.ndarray:
    """Return the number of each row's community, an ndarray of shape (n,), int64."""
    import igraph

    rows, k = len(graph), min(NEAREST, graph.k)
    if not k:
        return np.zeros(rows, dtype=np.int64)
    heads = np.repeat(np.arange(rows, dtype=np.int64), k)
    tails = np.asarray(graph.indices[:, :k], dtype=np.int64).ravel()
    low, high = np.minimum(heads, tails), np.maximum(heads, tails)
    edges = np.unique(low * rows + high)
    made = igraph.Graph(n=rows, edges=np.column_stack(np.divmod(edges, rows)))
    igraph.set_random_number_generator(random.Random(SEED))
    found = made.community_leiden("modularity", n_iterations=2)
    return np.array(found.membership)


def changes(regions: list[Region], shown: int = 2) -> str:
    """Return what the weights change, in a sentence; nothing of fewer than two regions."""
    if len(regions) < 2:
        return ""
    order = sorted(regions, key=lambda one: -one.factor)
    up = [one for one in order if one.factor > 1 + ALIKE][:shown]
    down = [one for one in reversed(order) if one.factor < 1 - ALIKE][:shown]
    parts = [
        f"{way} often than uniformly: "
        + ", ".join(f"{one.name} ({one.factor:.1f} ×)" for one in some)
        for way, some in (("more", up), ("less", down))
        if some
    ]
    return f"Regions that are drawn {'; '.join(parts)}." if parts else ""


def _region(
    prompts: Prompts,
    coordinates: np.ndarray,
    rows: np.ndarray,
    words: list[str],
    count: int,
    total: float,
) -> Region:
    x, y = np.median(coordinates[rows], axis=0)
    middle = rows[np.argmin(np.hypot(*(coordinates[rows] - (x, y)).T))]
    weighted = float(prompts.relative[rows].sum() / total)
    example = one_line(prompts.texts[middle], 120)
    name, uniform = " · ".join(words[:NAMING]) or "–", len(rows) / count
    return Region(name, words, len(rows), uniform, weighted, example, float(x), float(y))


def _spread(rows: np.ndarray) -> Any:
    """Return at most `SAMPLE` rows, evenly spread."""
    places = np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64)
    return rows[np.unique(places)]
