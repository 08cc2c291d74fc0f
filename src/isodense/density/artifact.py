"""What the density stage leaves behind: the artifact ``data/density``, and numbers for people.

The artifact holds all that was found, duplicate clusters and scales included, so that whoever
explains a weight or measures a new prompt reads it instead of estimating the density again.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from isodense.density.balance import effective_sample_size, rank_agreement, weight_statistics
from isodense.density.duplicates import Scales
from isodense.density.estimate import Estimate, estimate
from isodense.density.params import DensityParams
from isodense.neighbors.graph import Graph
from isodense.pipeline.artifact import publishing, write_manifest
from isodense.pipeline.params import as_dict, build
from isodense.sampling.weights import (
    CLUSTERS,
    DENSITY,
    HELDOUT_DENSITY,
    HELDOUT_LEAKED,
    IDS,
    PARAPHRASES,
    WEIGHTS,
    Weights,
)

LATER = {  # params that artifacts made before there were these lack, each as it was then: off
    "paraphrases": 0.0,
    "semdedup": 0.05,
    "clusters": None,
    "balance_by": None,
    "balance_power": 1.0,
    "quotas": None,
}


def publish(
    found: Estimate,
    heldout: np.ndarray,
    leaked: np.ndarray,
    ids: list[str],
    params: DensityParams,
    opinion: dict[str, Any],
    neighbors: dict[str, Any],
    neighbors_sha256: str,
    out: Path,
) -> None:
    """Write ``data/density``.

    Parameters
    ----------
    found : Estimate
        What was found for the training prompts.
    heldout : ndarray of shape (n_heldout,)
        Log density of the held-out prompts.
    leaked : ndarray of shape (n_heldout,), bool
        Whether each has a near-duplicate in training, by its words or by distance.
    ids : list of str
        Ids of the training prompts.
    params : DensityParams
        The stage's section.
    opinion : dict
        What :func:`isodense.density.opinion.judge` returns.
    neighbors : dict
        Manifest of the neighbour graph.
    neighbors_sha256 : str
        Hash of its content.
    out : Path
        The artifact's folder.
    """
    weights = found.weights.astype(np.float32)
    arrays = {
        WEIGHTS: weights,
        DENSITY: found.density.astype(np.float32),
        CLUSTERS: found.clusters.astype(np.int32),
        HELDOUT_DENSITY: heldout.astype(np.float32),
        HELDOUT_LEAKED: leaked.astype(np.bool_),
        IDS: np.asarray(ids, dtype="S32"),
    }
    if found.niches is not None:
        arrays[PARAPHRASES] = found.niches.astype(np.float32)
    with publishing(out) as staging:
        for name, array in arrays.items():
            np.save(staging / name, array, allow_pickle=False)
        write_manifest(
            staging,
            "density",
            rows=len(weights),
            n_prompts=len(weights),
            embedding_dim=neighbors["dim"],
            weights_min=float(weights.min()),
            weights_max=float(weights.max()),
            weights_mean=float(weights.mean(dtype=np.float64)),
            weights_std=float(weights.std(dtype=np.float64)),
            ess=effective_sample_size(weights),
            exponent=found.exponent,
            opinion=opinion,
            **asdict(found.scales),
            ids_sha256=neighbors["ids_sha256"],
            heldout_ids_sha256=neighbors["heldout_ids_sha256"],
            params=as_dict(params),
            inputs={"neighbors": neighbors_sha256},
        )


def stored(weights: Weights) -> Estimate:
    """Return what the density stage found, as the artifact holds it.

    Parameters
    ----------
    weights : Weights
        The loaded artifact.

    Returns
    -------
    Estimate
        With float32 arrays.
    """
    metadata = weights.metadata
    scales = Scales(*(metadata[name] for name in ("scale", "radius", "width", "dimension")))
    return Estimate(
        weights.weights,
        weights.density,
        weights.clusters,
        scales,
        metadata["exponent"],
        weights.niches,
    )


def stored_params(weights: Weights) -> DensityParams:
    """Return the params that the density stage had.

    Raises
    ------
    IsodenseError
        If the artifact has params that this version does not know.
    """
    return build(DensityParams, LATER | weights.metadata["params"], "the density's manifest")


def statistics(
    found: Estimate,
    graph: Graph,
    params: DensityParams,
    counts: np.ndarray | None = None,
    kinds: list[str] | None = None,
) -> dict[str, Any]:
    """Return the metrics of the stage.

    Parameters
    ----------
    found : Estimate
        What :func:`isodense.density.estimate.estimate` returns for the other arguments.
    graph : Graph
    params : DensityParams
    counts : ndarray of shape (n,), optional
    kinds : list of str, optional

    Returns
    -------
    dict
        What :func:`isodense.density.balance.weight_statistics` returns; ``exponent`` and ``scale``,
        see :class:`isodense.density.estimate.Estimate`; ``intrinsic_dimension``; and
        ``rank_stability``, the rank correlation of the weights with those at half as many
        neighbours (near 1: their order is that of the data, not of the choice of k), absent where
        it is undefined: one neighbour, weights all alike, or weights that no neighbour decides.
    """
    graph = graph.first(params.k)
    report = {
        **weight_statistics(found.weights, found.clusters),
        "exponent": round(found.exponent, 6),
        "scale": round(found.scales.scale, 6),
        "intrinsic_dimension": round(found.scales.dimension, 3),
    }
    if graph.k > 1 and params.method != "clusters":
        half = estimate(graph, params.model_copy(update={"k": graph.k // 2}), counts, None, kinds)
        agreement = rank_agreement(found.weights, half.weights)
        report |= {} if agreement is None else {"rank_stability": agreement}
    return report


def leakage(close: np.ndarray, leaked: np.ndarray) -> dict[str, int]:
    """Return how many held-out prompts have near-duplicates in training, for the metrics.

    Parameters
    ----------
    close : ndarray of shape (n_heldout,), bool
        Within the radius of near-duplicates of a training prompt.
    leaked : ndarray of shape (n_heldout,), bool
        By their words, as the prompts stage found.
    """
    return {
        "prompts": len(close),
        "near_duplicates": int(close.sum()),
        "near_duplicates_by_words": int(leaked.sum()),
        "clean": int((~(close | leaked)).sum()),
    }
