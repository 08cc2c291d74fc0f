"""Finding single prompts in a set of any size, without holding the set in memory.

``prompts.jsonl`` is read line by line, and only lines that are asked for are parsed: a second for
a million prompts, where loading them takes a minute and gigabytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isodense.neighbors.graph import Graph, load_graph
from isodense.pipeline.artifact import content_sha256, read_manifest
from isodense.pipeline.errors import ArtifactError
from isodense.prompts.reader import FILE, load_columns
from isodense.sampling.weights import Weights

START = b'{"id": "'  # of a line, as the prompts stage writes it
ID = slice(len(START), len(START) + 32)
HELDOUT = b'"split": "heldout"'  # inside a text its quotes would be escaped


@dataclass(frozen=True)
class Line:
    """One line of ``prompts.jsonl``.

    Attributes
    ----------
    id : bytes
        The prompt's id.
    number : int
        The prompt's row among those of the same split.
    heldout : bool
    raw : bytes
        The whole line.
    """

    id: bytes
    number: int
    heldout: bool
    raw: bytes

    @property
    def row(self) -> dict[str, Any]:
        """What the line holds."""
        row: dict[str, Any] = json.loads(self.raw)
        return row


def lines(folder: Path, wanted: Callable[[bytes, bytes], bool]) -> Iterator[Line]:
    """Yield the prompts that `wanted`, called with id and line, says yes to.

    Raises
    ------
    ArtifactError
        If a line is not as the prompts stage writes it, or there are fewer than in the manifest.
    """
    manifest = read_manifest(folder, "prompts")
    numbers = [0, 0]
    with (folder / FILE).open("rb") as stream:
        for raw in stream:
            if not raw.startswith(START):
                message = f"{folder / FILE} was not written by the prompts stage"
                raise ArtifactError(message, "run `dvc checkout --force prompts`")
            heldout = HELDOUT in raw
            if wanted(raw[ID], raw):
                yield Line(raw[ID], numbers[heldout], heldout, raw)
            numbers[heldout] += 1
    if sum(numbers) != manifest["rows"]:
        message = f"{folder / FILE} has {sum(numbers)} rows, not {manifest['rows']}"
        raise ArtifactError(message, "run `dvc checkout --force prompts`")


def rows_of(folder: Path, ids: Collection[bytes]) -> dict[bytes, dict[str, Any]]:
    """Return the rows of the prompts `ids`.

    Raises
    ------
    ArtifactError
        If one is not there.
    """
    left = set(ids)
    found = {line.id: line.row for line in lines(folder, lambda name, _: name in left)}
    if absent := left - found.keys():
        message = f"{folder} lacks {len(absent)} prompts, first {min(absent).decode()}"
        raise ArtifactError(message, "run `dvc repro density`")
    return found


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
    flags = bytearray()

    def noted(_: bytes, raw: bytes) -> bool:
        flags.append(HELDOUT in raw)
        return False

    for _ in lines(folder, noted):
        pass
    return np.frombuffer(flags, dtype=np.bool_)
