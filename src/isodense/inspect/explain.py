"""Why a prompt has the weight it has: its neighbours, its near-duplicates, its density.

A prompt of the set is looked up in the artifacts. A new prompt is embedded as the embeddings
stage does, compared with every training prompt, and given the density it has among them, by the
same formula as held-out prompts, and the weight that this density would mean.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from isodense.density.artifact import stored, stored_params
from isodense.density.estimate import (
    Estimate,
    heldout_density,
    heldout_niches,
    inverse_weights,
)
from isodense.density.kinds import load_kinds, shares
from isodense.density.params import DensityParams
from isodense.inspect.difficulty import of_row
from isodense.inspect.lookup import (
    Place,
    graph_of,
    places,
    require_same_prompts,
    row_at,
    rows_of,
)
from isodense.neighbors.graph import Graph, load_heldout_graph
from isodense.pipeline.artifact import (
    checked,
    content_sha256,
    load_array,
    read_manifest,
    require_same_ids,
)
from isodense.pipeline.errors import ArtifactError, IsodenseError
from isodense.prompts.conversations import Message, encoder_text, prompt_id
from isodense.prompts.reader import load_columns
from isodense.sampling.weights import HELDOUT_DENSITY, Weights, load_weights

ID = re.compile(r"(?=.*[0-9])[0-9a-f]{4,32}")  # no word such as "facade"
SHOWN = 5  # prompts named where the start of an id or of a text fits several
LETTERS = 60  # of a text that is named so


@dataclass(frozen=True)
class Folders:
    """Where the artifacts are; embeddings and encoder are read for new prompts only.

    Without a difficulty, or with an empty one, the explanation has none.
    """

    prompts: Path
    neighbors: Path
    density: Path
    embeddings: Path
    encoder: Path
    difficulty: Path | None = None


@dataclass(frozen=True)
class Trained:
    """The training prompts as the density stage saw them."""

    weights: Weights
    graph: Graph
    found: Estimate
    params: DensityParams

    @property
    def niches(self) -> np.ndarray | None:
        """With how many each shares its weight as paraphrases; None where it does not."""
        return self.found.niches if self.params.method == "soft_count" else None

    def relative(self, rows: int | slice) -> Any:
        """Return the weights of rows over the mean."""
        return self.weights.weights[rows].astype(np.float64) * len(self.graph)


@dataclass(frozen=True)
class Subject:
    """What is explained.

    Attributes
    ----------
    kind : {"training", "heldout", "new"}
    prompt : dict
        The prompt's row of the prompts artifact; id and text of a new prompt.
    indices, distances : ndarray of shape (k,)
        The nearest training prompts.
    density : float
        Log soft count.
    cluster : int
        Duplicate cluster that the prompt is in, or would be in; -1 where there is none.
    weight : dict or None
        The prompt's weight, where it has one.
    row : int
        The prompt's number among the training prompts; -1 where it is not one.
    niche : float or None
        How many prompts it shares, or would share, a weight with as paraphrases, itself included;
        None where it has no weight, or weights are not shared so.
    """

    kind: str
    prompt: dict[str, Any]
    indices: np.ndarray
    distances: np.ndarray
    density: float
    cluster: int
    weight: dict[str, Any] | None
    row: int = -1
    niche: float | None = None


def explain(
    query: str, folders: Folders, neighbors: int = 10, text: bool = False
) -> dict[str, Any]:
    """Return what is known of a prompt, and why its weight is what it is.

    Parameters
    ----------
    query : str
        A prompt's id, the start of one, a text, the beginning of one prompt's text, or a
        conversation as a JSON list of messages.
    folders : Folders
    neighbors : int
        How many of the nearest training prompts, and of the near-duplicates, to return at most.
    text : bool
        Take `query` as a whole text even where it looks like an id or JSON, or a prompt begins so.

    Returns
    -------
    dict
        JSON values: ``kind`` (``"training"``, ``"heldout"`` or ``"new"``), ``beginning``,
        ``prompt``, ``density``, ``weight``, ``known_kind``, ``difficulty``, ``near_duplicates``,
        ``paraphrases``, ``why`` and ``neighbors``; docs/explain.md describes them.

    Raises
    ------
    IsodenseError
        If the query is empty, looks like an id and fits no prompt or several, or several prompts
        begin with it.
    ArtifactError
        If an artifact is missing or belongs to others.
    """
    messages, name, beginning = _understood(query, text)
    weights = load_weights(folders.density)
    require_same_prompts(folders.prompts, weights)
    place, begins = _place(folders.prompts, query.strip(), messages, name, beginning)
    graph = graph_of(weights, folders.neighbors)
    trained = Trained(weights, graph, stored(weights), stored_params(weights))
    if place is None:
        subject = _new(messages, folders, trained)
    else:
        subject = (_heldout if place.heldout else _training)(place, folders, trained)
    report = _report(subject, trained, folders.prompts, neighbors)
    return report | {
        "beginning": begins,
        "known_kind": _known_kind(subject.row, trained, folders.prompts),
        "difficulty": of_row(subject.row, folders.difficulty, weights),
    }


def _understood(query: str, text: bool) -> tuple[list[Message], str | None, str | None]:
    """Return the conversation that `query` is, and the start of an id or of a text it may be."""
    try:
        query.encode()
    except UnicodeEncodeError:
        raise IsodenseError("the text is not UTF-8", "give it on standard input: -") from None
    conversation = None if text else _conversation(query.strip())
    messages = conversation or [{"role": "user", "content": query}]
    if not encoder_text(messages):
        raise IsodenseError("there are no words to explain", "name a prompt's id, or give a text")
    if text or conversation:
        return messages, None, None
    if ID.fullmatch(query.strip()):
        return messages, query.strip(), None
    return messages, None, encoder_text(messages)


def _conversation(query: str) -> list[Message] | None:
    """Return the messages of a JSON list, or None where `query` is no list of objects."""
    try:
        messages = json.loads(query) if query.startswith("[") else None
    except (ValueError, RecursionError):
        return None
    if not messages or not all(isinstance(item, dict) for item in messages):
        return None
    found = [{name: item.get(name) for name in ("role", "content")} for item in messages]
    if not all(isinstance(value, str) for item in found for value in item.values()):
        message = "each message needs a role and a content, both texts"
        raise IsodenseError(message, "correct it, or add --text if this is a text")
    if found[-1]["role"] != "user":
        message = f"the last message is the {found[-1]['role']}'s; that of a prompt is the user's"
        raise IsodenseError(message, "leave out what comes after the user's last message")
    return found


def _place(
    prompts: Path, query: str, messages: list[Message], name: str | None, beginning: str | None
) -> tuple[Place | None, bool]:
    """Return where the prompt is that the query means, and whether the query only begins it.

    None where it is a new prompt.
    """
    own, start = prompt_id(messages).encode(), (name or "none").encode()
    found: list[Place] = []
    begun: list[Place] = []  # the first of them
    number = 0

    def is_meant(identifier: bytes, text: str) -> bool:
        # a dialogue may be given as its text is stored, with its line breaks
        return identifier == own or identifier.startswith(start) or text == query

    def wanted(identifier: bytes, text: str) -> bool:
        return is_meant(identifier, text) or (beginning is not None and text.startswith(beginning))

    for place in places(prompts, wanted):
        if is_meant(place.id, place.text):
            found.append(place)
        else:
            number += 1
            begun += [place][: SHOWN - len(begun)]
    for same in ([x for x in found if x.id == own], [x for x in found if x.text == query]):
        if same:
            return same[0], False
    if name is not None:
        return _of_id(name, found), False
    if number > 1:
        raise IsodenseError(
            f"{number:,} prompts begin so: {_listed([_short(one.text) for one in begun], number)}",
            "give more of the text, or add --text if it is whole",
        )
    return (begun[0], True) if begun else (None, False)


def _of_id(name: str, found: list[Place]) -> Place:
    """Return the only prompt whose id starts with `name`."""
    if len(found) == 1:
        return found[0]
    if not found:
        message = f"no prompt's id starts with {name}"
        raise IsodenseError(message, "correct it, or add --text if this is a text")
    some = _listed([place.id.decode() for place in found[:SHOWN]], len(found))
    raise IsodenseError(f"{name} is the start of {len(found)} ids: {some}", "give more digits")


def _listed(some: list[str], number: int) -> str:
    return ", ".join(some) + ", …" * (number > len(some))


def _short(text: str) -> str:
    return repr(text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…")


def _training(place: Place, folders: Folders, trained: Trained) -> Subject:
    row, weights, niches = place.number, trained.weights, trained.niches
    if row >= len(trained.graph) or weights.prompt_ids[row] != place.id:
        message = f"prompt {place.id.decode()} is not where the weights have it"
        raise ArtifactError(message, "run `dvc repro density`, or `dvc checkout`")
    rank = 1 + int((weights.weights > weights.weights[row]).sum())
    return Subject(
        "training",
        row_at(folders.prompts, place.row),
        trained.graph.indices[row],
        trained.graph.distances[row],
        float(weights.density[row]),
        int(trained.found.clusters[row]),
        _weight(float(trained.relative(row)), rank, trained),
        row,
        None if niches is None else float(niches[row]),
    )


def _heldout(place: Place, folders: Folders, trained: Trained) -> Subject:
    near, k = load_heldout_graph(folders.neighbors), trained.params.k
    density = load_array(
        checked(folders.density, trained.weights.metadata, HELDOUT_DENSITY), mmap=True
    )
    heldout = load_columns(folders.prompts).split("heldout").ids_sha256
    what = f"the held-out densities in {folders.density}"
    require_same_ids(heldout, trained.weights.metadata, what, "heldout_ids_sha256")
    if not place.number < len(near) == len(density):
        message = f"{folders.neighbors} and {folders.density} have other held-out prompts"
        raise ArtifactError(message, "run `dvc repro density`, or `dvc checkout`")
    indices, distances = near.indices[place.number, :k], near.distances[place.number, :k]
    cluster = _cluster(indices, distances, trained)
    found = float(density[place.number])
    return Subject(
        "heldout", row_at(folders.prompts, place.row), indices, distances, found, cluster, None
    )


def _new(messages: list[Message], folders: Folders, trained: Trained) -> Subject:
    from isodense.inspect.query import nearest_to

    text = encoder_text(messages)
    embeddings = content_sha256(read_manifest(folders.embeddings, "embeddings"))
    if read_manifest(folders.neighbors, "neighbors")["inputs"]["embeddings"] != embeddings:
        message = f"{folders.neighbors} was not made of the vectors in {folders.embeddings}"
        raise ArtifactError(message, "run `dvc repro density`")
    near = nearest_to(
        text,
        min(trained.params.k, len(trained.graph)),
        folders.prompts,
        folders.embeddings,
        folders.encoder,
    )
    density = float(heldout_density(trained.found, near, trained.params)[0])
    cluster = _cluster(near.indices[0], near.distances[0], trained)
    prompt = {"id": prompt_id(messages), "text": text}
    niche = float(heldout_niches(trained.found, near, trained.params)[0])
    weight = _weight_at(density, niche, cluster, trained, folders.prompts)
    return Subject(
        "new",
        prompt,
        near.indices[0],
        near.distances[0],
        density,
        cluster,
        weight,
        niche=None if trained.niches is None else niche,
    )


def _cluster(indices: np.ndarray, distances: np.ndarray, trained: Trained) -> int:
    """Return the duplicate cluster that a prompt outside the training set is close to, or -1."""
    if not len(indices) or distances[0] > np.float64(trained.found.scales.radius):
        return -1
    return int(trained.found.clusters[indices[0]])


def _weight_at(
    density: float, niche: float, cluster: int, trained: Trained, prompts: Path
) -> dict[str, Any] | None:
    """Return the weight of a prompt of one occurrence that shares the weight of a cluster.

    With ``soft_count`` it follows from the density and any training prompt's weight; with ``knn``
    and others the density does not say it, nor where kinds are balanced.
    """
    found, method = trained.found, trained.params.method
    if method not in ("soft_count", "uniform") or trained.params.balance_by:
        return None
    relative = 1.0
    if method == "soft_count":
        sizes = np.bincount(found.clusters)
        size = 1 + int(sizes[cluster]) if cluster >= 0 else 1
        pair = inverse_weights(
            np.array([density, found.density[0]]),
            found.exponent,
            np.array([size * niche, found.sharers[0]]),
        )
        relative = float(pair[0] / pair[1] * trained.relative(0) / _count_factor(trained, prompts))
    rank = 1 + int((trained.relative(slice(None)) > relative).sum())
    return _weight(relative, rank, trained)


def _count_factor(trained: Trained, prompts: Path) -> float:
    """Return the factor by which counts have raised the weight of the first training prompt."""
    if not trained.params.count_power:
        return 1.0
    (row,) = rows_of(prompts, [trained.weights.prompt_ids[0]]).values()
    return float(row["count"] ** trained.params.count_power)


def _weight(relative: float, rank: int, trained: Trained) -> dict[str, Any]:
    return {
        "over_mean": relative,
        "rank": rank,  # 1 is the largest
        "of": len(trained.graph),
        "draws_per_epoch": relative,  # of as many draws as there are training prompts
    }


def _known_kind(row: int, trained: Trained, prompts: Path) -> dict[str, Any] | None:
    """Return what ``density.balance_by`` gives to the kind of a training prompt."""
    by = trained.params.balance_by
    if by is None or row < 0:
        return None
    kinds = load_kinds(prompts, by)
    found = shares(kinds, trained.weights.weights)
    return {"by": by, **next(one for one in found if one["name"] == kinds[row])}


def _report(subject: Subject, trained: Trained, prompts: Path, most: int) -> dict[str, Any]:
    clusters, weights = trained.found.clusters, trained.weights
    outside = clusters[subject.indices] != subject.cluster
    shares = _shares(subject, trained) * outside
    duplicates = np.flatnonzero(clusters == subject.cluster)
    duplicates = duplicates[duplicates != subject.row]
    listed = {*subject.indices[:most].tolist(), *duplicates[:most].tolist()}
    rows = rows_of(prompts, [weights.prompt_ids[row] for row in listed])

    def entry(row: int) -> dict[str, Any]:
        prompt = rows[weights.prompt_ids[row]]
        over_mean = float(trained.relative(row))
        return {"id": prompt["id"], "text": prompt["text"], "weight_over_mean": over_mean}

    return {
        "kind": subject.kind,
        "prompt": {name: value for name, value in subject.prompt.items() if name != "prompt"},
        "density": {
            "log_density": subject.density,
            "distinct_prompts": float(np.exp(subject.density)),  # q, itself included
            "denser_than": float((weights.density < subject.density).mean()),
        },
        "weight": subject.weight,
        "near_duplicates": {
            "number": len(duplicates),
            "radius": trained.found.scales.radius,
            "prompts": [entry(row) for row in duplicates[:most].tolist()],
        },
        "paraphrases": None
        if subject.niche is None
        else {
            "niche": subject.niche,
            "reach": trained.params.paraphrases * trained.found.scales.scale,
        },
        "why": _why(subject, shares, outside, trained),
        "neighbors": [
            {
                "distance": float(subject.distances[place]),
                "cosine": 1 - float(subject.distances[place]) ** 2 / 2,
                "near_duplicate": bool(~outside[place]),
                "counts": float(shares[place]),
                **entry(int(subject.indices[place])),
            }
            for place in range(min(most, len(subject.indices)))
        ],
    }


def _shares(subject: Subject, trained: Trained) -> np.ndarray:
    """Return what each neighbour adds to the soft count, were none of them a near-duplicate."""
    alone = Graph(subject.indices[:, None], subject.distances[:, None])
    return _soft_counts(alone, trained, dimension=0.0) - 1  # of which nothing lies beyond


def _why(
    subject: Subject, shares: np.ndarray, outside: np.ndarray, trained: Trained
) -> dict[str, Any]:
    """Return what the density comes from: itself, the neighbours listed, those beyond the last.

    The density of a prompt with near-duplicates is the mean over all of them that see beyond their
    cluster, so the prompt's own count differs from it.
    """
    listed, own = float(shares.sum()), 1.0
    whole = len(subject.indices) + (subject.row >= 0) >= len(trained.graph)  # nothing lies beyond
    if outside.any():
        near = Graph(subject.indices[None, outside], subject.distances[None, outside])
        dimension = 0.0 if whole else trained.found.scales.dimension
        own = float(_soft_counts(near, trained, dimension)[0])
    nearest = len(subject.indices)
    return {
        "nearest": nearest,
        "neighbors": listed,
        "beyond": max(own - listed - 1, 0.0),
        "own_count": own,
    }


def _soft_counts(near: Graph, trained: Trained, dimension: float) -> np.ndarray:
    """Return q of each row, itself included, with no neighbour taken for a near-duplicate."""
    scales = replace(trained.found.scales, dimension=dimension, radius=-1.0)
    return np.exp(heldout_density(replace(trained.found, scales=scales), near, trained.params))
