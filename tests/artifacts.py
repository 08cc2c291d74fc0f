"""Small complete artifacts from prompts to density, as the stages make them on a tiny encoder."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

from isodense.density.artifact import publish
from isodense.density.estimate import estimate, heldout_density, near_training
from isodense.density.kinds import load_kinds
from isodense.density.opinion import judge
from isodense.embeddings import truncation
from isodense.embeddings.build import embed
from isodense.neighbors.build import publish as publish_neighbors
from isodense.neighbors.graph import load_graph, load_heldout_graph
from isodense.neighbors.params import NeighborsParams
from isodense.pipeline.artifact import content_sha256, read_manifest
from isodense.prompts.reader import load_columns
from tests.density.vectors import PARAMS
from tests.embeddings.test_build import PARAMS as EMBEDDINGS
from tests.tables import publish_prompts

DENSITY = PARAMS.model_copy(update={"k": 12})


def make(data: Path, conversations: list, encoder: Path, **density: object) -> Path:
    """Write prompts, embeddings, neighbors and density into `data`; `density` changes its params.

    Each conversation is one pair, so one that comes twice was asked twice. Labels are left out.
    """
    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    pairs = [{"prompt": one, **answers, "source": "test"} for one in conversations]
    publish_prompts(pairs, data / "prompts", 0.2)
    settings = EMBEDDINGS.model_copy(update={"max_tokens": 24})
    cache = data.parent / "cache"
    with patch.object(truncation, "MOST", 1.0):  # tests make copies by texts that end alike
        embed(data / "prompts", encoder, settings, "cpu", cache, data / "embeddings")
    columns = load_columns(data / "prompts")
    section = NeighborsParams(
        k_max=12, method="exact", recall_sample=10, recall_floor=0.9, n_jobs=1, rows_per_slice=1000
    )
    out = data / "neighbors"
    publish_neighbors(data / "embeddings", columns, section, "cpu", 0, cache, out)
    write_density(data, **density)
    return data


def write_density(data: Path, **changes: object) -> None:
    """Write density anew, with other params."""
    params = DENSITY.model_copy(update=changes)
    prompts = load_columns(data / "prompts")
    train, leaked = prompts.split("train"), prompts.split("heldout").leaked
    graph, manifest = load_graph(data / "neighbors")
    kinds = load_kinds(data / "prompts", params.balance_by) if params.balance_by else None
    found = estimate(graph, params, train.counts, kinds=kinds)
    near = load_heldout_graph(data / "neighbors")
    heldout, leaked = (
        heldout_density(found, near, params),
        near_training(near, found.scales.radius) | leaked,
    )
    digest = content_sha256(read_manifest(data / "neighbors", "neighbors"))
    opinion = judge(found, graph, params, {}, kinds)
    publish(found, heldout, leaked, train.ids, params, opinion, manifest, digest, data / "density")
