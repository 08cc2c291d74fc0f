"""How near held-out prompts are to training ones: near-duplicates, and the closest that are none.

What lies within the radius of near-duplicates is counted and left out of the clean figures. No
radius catches every paraphrase, so the closest pairs are shown whether they are within it or not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from isodense.density.artifact import leakage, stored
from isodense.density.estimate import near_training
from isodense.inspect.growth import read_texts
from isodense.inspect.lookup import graph_of
from isodense.neighbors.graph import load_heldout_graph
from isodense.pipeline.artifact import require_same_ids
from isodense.pipeline.errors import ArtifactError
from isodense.pipeline.terminal import rendered, table
from isodense.prompts.reader import load_columns
from isodense.sampling.weights import load_weights


def closest(prompts: Path, density: Path, neighbors: Path, top: int) -> dict[str, Any]:
    """Return the held-out prompts that are closest to a training prompt.

    Parameters
    ----------
    prompts, density, neighbors : Path
        The artifacts.
    top : int
        Pairs to return at most.

    Returns
    -------
    dict
        What :func:`isodense.density.artifact.leakage` counts; ``radius``, of near-duplicates; and
        ``closest``, the nearest first: ``distance``, ``leaked`` (a near-duplicate by distance or by
        words), and ``id`` and ``text`` of the held-out prompt and ``train_id`` and ``train`` of the
        training prompt.

    Raises
    ------
    ArtifactError
        If the artifacts do not belong together.
    """
    weights, columns = load_weights(density), load_columns(prompts)
    require_same_ids(columns.split("train").ids_sha256, weights.metadata, "the weights")
    graph_of(weights, neighbors)
    near, rows = load_heldout_graph(neighbors), columns.positions("heldout")
    if len(near) != len(rows):
        message = f"{neighbors} has {len(near)} held-out prompts, not {len(rows)}"
        raise ArtifactError(message, "run `dvc repro neighbors`")
    what = f"the held-out densities in {density}"
    heldout = columns.split("heldout").ids_sha256
    require_same_ids(heldout, weights.metadata, what, "heldout_ids_sha256")
    found, train = stored(weights), columns.positions("train")
    close, by_words = near_training(near, found.scales.radius), columns.leaked[rows]
    order = np.argsort(near.distances[:, 0], kind="stable")[:top]
    pairs = np.stack([rows[order], train[near.indices[order, 0]]], axis=1).tolist()
    texts = read_texts(prompts, {row for pair in pairs for row in pair})
    return {
        **leakage(close, by_words),
        "radius": found.scales.radius,
        "closest": [
            {
                "distance": float(near.distances[at, 0]),
                "leaked": bool(close[at] or by_words[at]),
                "id": columns.ids[one],
                "text": texts[one],
                "train_id": columns.ids[other],
                "train": texts[other],
            }
            for at, (one, other) in zip(order.tolist(), pairs, strict=True)
        ],
    }


def describe(found: dict[str, Any], width: int | None = None) -> str:
    """Return what :func:`closest` found as text for a terminal.

    Parameters
    ----------
    found : dict
    width : int, optional
        Columns of a prompt's text; what the terminal has room for by default.
    """
    said = (
        f"{found['prompts']} held-out prompts: {found['near_duplicates']} within "
        f"{found['radius']:.3f} of a training prompt, the radius of near-duplicates, and "
        f"{found['near_duplicates_by_words']} with near-duplicates in training by their words; "
        f"{found['clean']} clean\n"
    )
    if not found["closest"]:
        return said
    rows = []
    for one in found["closest"]:
        mark = "yes" if one["leaked"] else "no"
        rows.append((f"{one['distance']:.3f}", mark, one["id"][:8], one["text"]))
        rows.append(("", "", one["train_id"][:8], f"in training: {one['train']}"))
    header = ("distance", "near-duplicate", "id", "prompt")
    shown = table(header, rows, left=header[1:], text="prompt", width=width)
    return f"{said}\n{rendered(shown, indent=2)}"
