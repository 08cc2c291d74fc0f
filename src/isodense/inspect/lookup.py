"""Finding single prompts in a set of any size, without holding the set in memory.

Only ids, splits and texts are looked through, and whole rows read where asked for: a second or two
for a million prompts, where loading them takes a minute and gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isodense.neighbors.graph import Graph, load_graph
from isodense.pipeline.artifact import content_sha256, read_checked, read_manifest
from isodense.pipeline.errors import ArtifactError
from isodense.pipeline.tables import read_at, read_batches
from isodense.prompts.reader import decoded, load_columns
from isodense.sampling.weights import Weights


@dataclass(frozen=True)
class Place:
    """Where a prompt is.

    Attributes
    ----------
    id : bytes
        The prompt's id.
    text : str
        What the encoder reads of it.
    row : int
        Its row in ``data/prompts``.
    number : int
        Its row among those of the same split.
    heldout : bool
    """

    id: bytes
    text: str
    row: int
    number: int
    heldout: bool


def places(folder: Path, wanted: Callable[[bytes, str], bool]) -> Iterator[Place]:
    """Yield the prompts that `wanted`, called with id and text, says yes to.

    Raises
    ------
    ArtifactError
        If there are other prompts than in the manifest, by number.
    """
    manifest = read_checked(folder, "prompts")
    numbers = [0, 0]
    for batch in read_batches(folder, ("id", "text", "split")):
        columns = (batch.column(name).to_pylist() for name in ("id", "text", "split"))
        for name, text, split in zip(*columns, strict=True):
            heldout, identifier = split == "heldout", name.encode()
            if wanted(identifier, text):
                yield Place(identifier, text, sum(numbers), numbers[heldout], heldout)
            numbers[heldout] += 1
    if sum(numbers) != manifest["rows"]:
        message = f"{folder} has {sum(numbers)} rows, not {manifest['rows']}"
        raise ArtifactError(message, "run `dvc checkout --force prompts`")


def row_at(folder: Path, row: int) -> dict[str, Any]:
    """Return one row of ``data/prompts``."""
    read_checked(folder, "prompts")
    return decoded(read_at(folder, [row])[row])


def rows_of(folder: Path, ids: Collection[bytes]) -> dict[bytes, dict[str, Any]]:
    """Return the rows of the prompts `ids`.

    Raises
    ------
    ArtifactError
        If one is not there.
    """
    read_checked(folder, "prompts")
    left = {name.decode() for name in ids}
    rows: dict[str, int] = {}
    start = 0
    for batch in read_batches(folder, ("id",)):
        names = batch.column("id").to_pylist()
        rows |= {name: start + place for place, name in enumerate(names) if name in left}
        start += len(names)
    if absent := left - rows.keys():
        message = f"{folder} lacks {len(absent)} prompts, first {min(absent)}"
        raise ArtifactError(message, "run `dvc repro density`")
    found = read_at(folder, rows.values())
    return {name.encode(): decoded(found[row]) for name, row in rows.items()}


def require_same_prompts(folder: Path, weights: Weights) -> None:
    """Raise unless the weights are those of the training prompts in `folder`."""
    manifest = read_manifest(folder, "prompts")
    train = manifest.get("train_ids_sha256")
    if (train or load_columns(folder).split("train").ids_sha256) != weights.metadata["ids_sha256"]:
        message = f"the weights belong to other prompts than those in {folder}"
        raise ArtifactError(message, "run `dvc repro density`, or `dvc checkout`")


def graph_of(weights: Weights, neighbors: Path) -> Graph:
    """Return the graph that weights were made from, the nearest ``density.k`` of every prompt.

    Parameters
    ----------
    weights : Weights
    neighbors : Path
        The neighbours artifact.

    Raises
    ------
    ArtifactError
        If the weights were made from another graph.
    """
    graph, manifest = load_graph(neighbors)
    if weights.metadata["inputs"]["neighbors"] != content_sha256(manifest):
        message = f"the weights were not made from the graph in {neighbors}"
        raise ArtifactError(message, "run `dvc repro density`, or `dvc checkout`")
    return graph.first(weights.metadata["params"]["k"])


def heldout_rows(folder: Path) -> np.ndarray:
    """Return whether each prompt is held out, an ndarray of bool in the order of the set."""
    read_checked(folder, "prompts")
    parts = [
        batch.column("split").to_numpy(zero_copy_only=False) == "heldout"
        for batch in read_batches(folder, ("split",))
    ]
    return np.concatenate(parts)
