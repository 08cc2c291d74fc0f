"""Local density of every prompt, and sampling weights that fall with it.

Default, ``soft_count``: how many *distinct* prompts a prompt has around it, counted with a
Gaussian kernel over its nearest neighbours; groups of near-copies count, and weigh, as one. The
weight is a power of that count, just strong enough to bring the effective sample size down to a
chosen share of the prompts.

Sources: inverse-density sampling of training data, Sachdeva et al. 2024 (DENSITY, arXiv
2402.09668); density-dependent down-sampling, Qiu et al. 2011 (SPADE); effective sample size, Kish
1965; intrinsic dimension, Levina and Bickel 2004 with the average of MacKay and Ghahramani 2005.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from isodense.artifacts import publishing, write_manifest
from isodense.errors import IsodenseError
from isodense.graph import Graph
from isodense.params import as_dict, param
from isodense.weights import DENSITY, HELDOUT_DENSITY, IDS, WEIGHTS

Method = Literal["soft_count", "knn", "balance", "uniform"]

COPY = 1e-6  # distance under which two vectors are the same
TINY = 1e-20  # least weight, of the largest


@dataclass(frozen=True)
class DensityParams:
    """Section ``density`` of ``params.yaml``; see :func:`density_weights`."""

    k: int = param(minimum=1, maximum=1000)
    method: Method = param()
    ess: float = param(minimum=0.05, maximum=1.0)
    bandwidth: float = param(minimum=0.01, maximum=10.0)
    dup: float = param(minimum=0.0, maximum=1.0)
    alpha_max: float = param(minimum=1.0, maximum=20.0)


@dataclass(frozen=True)
class Estimate:
    """What :func:`estimate` finds.

    Attributes
    ----------
    weights : ndarray of shape (n,), float64
        Sum 1; fall with crowding.
    density : ndarray of shape (n,), float64
        Log soft count of distinct prompts, whatever the method; rises with crowding.
    units : ndarray of shape (n,), int32
        Group of near-copies that each prompt belongs to.
    scale : float
        r₀, the median distance to the k-th neighbour; 0 where all prompts are alike.
    exponent : float
        a of weight ∝ density^(-a).
    """

    weights: np.ndarray
    density: np.ndarray
    units: np.ndarray
    scale: float
    exponent: float


def density_weights(
    graph: Graph,
    k: int = 20,
    method: Method = "soft_count",
    ess: float = 0.8,
    bandwidth: float = 0.4,
    dup: float = 0.15,
    alpha_max: float = 4.0,
) -> np.ndarray:
    """Return sampling weights inverse to local density, in O(n·k) from the graph alone.

    Parameters
    ----------
    graph : Graph
        Neighbours of every prompt, itself excluded.
    k : int
        Neighbours used.
    method : {"soft_count", "knn", "balance", "uniform"}
        ``soft_count``: w ∝ q^(-a) / m, with q = 1 + Σ exp(-d²/2h²) / m_j over the neighbours
        outside the prompt's own group of m near-copies. ``knn``: w ∝ r̄^a, r̄ the mean distance to
        the neighbours; simplest, fails on copies (ess 0.7 suits it). ``balance``: three steps
        w ← w / (K w)^0.7 on the symmetrised kernel graph, after the magnitude weighting of
        Leinster and Meckes 2016 (k 50 suits it). ``uniform``: all alike.
    ess : float
        Target of the effective sample size, as a share of the distinct prompts; the exponent a is
        the smallest in [1, alpha_max] that reaches it (in [0, alpha_max] for ``knn``).
    bandwidth : float
        Kernel width h as a multiple of r₀, the median distance to the k-th neighbour.
    dup : float
        Prompts closer than this multiple of r₀ are near-copies.
    alpha_max : float
        Largest exponent.

    Returns
    -------
    ndarray of shape (n,), float64
        Positive, sum 1. Uniform where there are fewer than 3 prompts or all are identical.

    Raises
    ------
    IsodenseError
        If the graph's arrays are unusable or hold fewer than `k` neighbours.

    Examples
    --------
    >>> import numpy as np
    >>> from isodense.neighbors import knn_graph
    >>> angles = np.array([0.0, 0.1, 0.2, 0.3, 2.0])         # four in a crowd, one alone
    >>> X = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    >>> int(density_weights(knn_graph(X, k=3), k=3).argmax())
    4
    """
    return estimate(graph, DensityParams(k, method, ess, bandwidth, dup, alpha_max)).weights


def estimate(graph: Graph, params: DensityParams) -> Estimate:
    """Estimate density and weights; see :func:`density_weights`."""
    _check(graph)
    graph = graph.first(params.k)
    distances = graph.distances.astype(np.float64)
    n = len(graph)
    uniform = np.full(n, 1 / n)
    if n < 3 or not (distances > COPY).any():
        units = _connected(graph, distances <= COPY)
        return Estimate(uniform, np.zeros(n), units, 0.0, 0.0)
    units, scale = _units(graph, distances, params.dup)
    sizes = np.bincount(units)[units]
    kernel = _kernel(graph, distances, units, params.bandwidth * scale)
    density = np.log1p(kernel @ (1.0 / sizes))
    if params.method == "uniform":
        return Estimate(uniform, density, units, scale, 0.0)
    if params.method == "balance":
        return Estimate(_balanced(kernel, sizes), density, units, scale, 1.0)
    crowding, low = density, 1.0
    if params.method == "knn":
        crowding, low, sizes = -np.log(np.maximum(distances.mean(axis=1), COPY)), 0.0, 1
    exponent = _exponent(crowding, units, sizes, params.ess, low, params.alpha_max)
    return Estimate(_weights(crowding, exponent, sizes), density, units, scale, exponent)


def heldout_density(found: Estimate, near: Graph, params: DensityParams) -> np.ndarray:
    """Return the log soft count of prompts that are not in the graph, among those that are.

    Parameters
    ----------
    found : Estimate
        Of the prompts in the graph.
    near : Graph
        The nearest of them to each other prompt.
    params : DensityParams
        As used for `found`.

    Returns
    -------
    ndarray of shape (m,), float64
        Zero where all prompts are alike.
    """
    distances = near.distances[:, : params.k].astype(np.float64)
    if found.scale == 0:
        return np.zeros(len(near))
    sizes = np.bincount(found.units)[found.units]
    width = params.bandwidth * found.scale
    kernel = np.exp(-(distances**2) / (2 * width**2)) / sizes[near.indices[:, : params.k]]
    kernel[distances <= params.dup * found.scale] = 0  # the prompt's own group is the 1 of log1p
    return np.log1p(kernel.sum(axis=1))


def effective_sample_size(weights: np.ndarray) -> float:
    """Return (Σw)² / Σw², the number of equally weighted prompts that vary as much (Kish 1965)."""
    weights = np.asarray(weights, dtype=np.float64)
    return float(weights.sum() ** 2 / np.square(weights).sum())


def intrinsic_dimension(graph: Graph) -> float:
    """Return the maximum-likelihood intrinsic dimension (Levina and Bickel 2004).

    Averaged over prompts as MacKay and Ghahramani proposed; 0 where distances do not vary.
    """
    distances = graph.distances.astype(np.float64)
    used = distances[(distances[:, :1] > COPY).all(axis=1)] if graph.k > 2 else distances[:0]
    logs = np.log(used[:, -1:] / used[:, :-1]) if len(used) else np.zeros((1, 1))
    inverse = logs.mean(axis=1) * logs.shape[1] / max(logs.shape[1] - 1, 1)
    return float(1 / inverse.mean()) if inverse.mean() > 0 else 0.0


def statistics(found: Estimate, graph: Graph) -> dict[str, Any]:
    """Return what a person reads to judge weights."""
    weights = found.weights
    sizes = np.bincount(found.units)
    ess = effective_sample_size(weights)
    return {
        "prompts": len(weights),
        "ess": round(ess, 3),
        "ess_share": round(ess / len(weights), 6),
        "max_over_mean": round(float(weights.max() * len(weights)), 6),
        "min_over_mean": round(float(weights.min() * len(weights)), 6),
        "exponent": round(found.exponent, 6),
        "scale": round(found.scale, 6),
        "intrinsic_dimension": round(intrinsic_dimension(graph), 3),
        "copy_groups": int((sizes > 1).sum()),
        "prompts_in_copy_groups": int(sizes[sizes > 1].sum()),
        "copies_mass_uniform": round(float((sizes[found.units] > 1).mean()), 6),
        "copies_mass": round(float(weights[sizes[found.units] > 1].sum()), 6),
    }


def label_statistics(weights: np.ndarray, labels: list[str]) -> dict[str, float]:
    """Return how even known labels are under uniform sampling and under the weights.

    ``entropy``: of the label distribution, over log of the number of labels. ``rarest_quarter``:
    mass of the quarter of labels with the fewest prompts. ``gap``: share of the Kullback-Leibler
    divergence of uniform sampling from even labels that the weights remove (1 perfect, 0 no
    better than uniform, below 0 worse).
    """
    names, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rare = np.argsort(counts, kind="stable")[: max(1, len(names) // 4)]
    masses = {"_uniform": counts / counts.sum(), "": np.bincount(index, weights=weights)}
    report: dict[str, float] = {"labels": len(names)}
    lost = {}
    for name, mass in masses.items():
        entropy = -float((mass * np.log(np.maximum(mass, 1e-300))).sum())
        lost[name] = np.log(len(names)) - entropy
        share = entropy / np.log(len(names)) if len(names) > 1 else 1.0
        report[f"entropy{name}"] = round(share, 6)
        report[f"rarest_quarter{name}"] = round(float(mass[rare].sum()), 6)
    if lost["_uniform"] > 1e-9:
        report["gap"] = round(1 - lost[""] / lost["_uniform"], 6)
    return report


def publish(
    found: Estimate,
    heldout: np.ndarray,
    ids: list[str],
    params: DensityParams,
    neighbors: dict[str, Any],
    neighbors_sha256: str,
    out: Path,
) -> None:
    """Write ``data/density``.

    Parameters
    ----------
    found : Estimate
        Of the training prompts.
    heldout : ndarray of shape (n_heldout,)
        Log density of the held-out prompts.
    ids : list of str
        Ids of the training prompts.
    params : DensityParams
        The stage's section.
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
        HELDOUT_DENSITY: heldout.astype(np.float32),
        IDS: np.asarray(ids, dtype="S32"),
    }
    with publishing(out) as scratch:
        for name, array in arrays.items():
            np.save(scratch / name, array, allow_pickle=False)
        write_manifest(
            scratch,
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
            scale=found.scale,
            ids_sha256=neighbors["ids_sha256"],
            heldout_ids_sha256=neighbors["heldout_ids_sha256"],
            params=as_dict(params),
            inputs={"neighbors": neighbors_sha256},
        )


def _check(graph: Graph) -> None:
    if not len(graph):
        raise IsodenseError("the graph has no rows", "run `dvc repro prompts` on data with prompts")
    if not np.isfinite(graph.distances).all() or (np.asarray(graph.distances) < 0).any():
        raise IsodenseError("the graph holds distances that are not finite and >= 0")
    if graph.k and (graph.indices.min() < 0 or graph.indices.max() >= len(graph)):
        raise IsodenseError("the graph points to rows that do not exist")


def _units(graph: Graph, distances: np.ndarray, dup: float) -> tuple[np.ndarray, float]:
    """Return each prompt's group of near-copies and the scale r₀, a median over groups."""
    units = np.arange(len(graph), dtype=np.int32)
    scale = 0.0
    for _ in range(2):
        scale = _median(distances[:, -1], 1.0 / np.bincount(units)[units])
        units = _connected(graph, distances <= max(dup * scale, COPY))
    return units, scale


def _connected(graph: Graph, joined: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(joined)
    edges = coo_array(
        (np.ones(len(rows), dtype=np.int8), (rows, graph.indices[rows, columns])),
        shape=(len(graph), len(graph)),
    )
    return connected_components(edges, directed=False)[1]


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted median of the values above zero."""
    values, weights = values[values > COPY], weights[values > COPY]
    if not len(values):
        return 0.0
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, cumulative[-1] / 2)])


def _kernel(graph: Graph, distances: np.ndarray, units: np.ndarray, width: float) -> csr_array:
    """Return exp(-d²/2h²) of the edges that leave a group of near-copies."""
    values = np.exp(-(distances**2) / (2 * width**2))
    values[units[graph.indices] == units[:, None]] = 0
    pointer = np.arange(0, values.size + 1, graph.k)
    return csr_array((values.ravel(), graph.indices.ravel(), pointer), shape=(len(graph),) * 2)


def _exponent(
    log_density: np.ndarray,
    units: np.ndarray,
    sizes: np.ndarray | int,
    ess: float,
    low: float,
    high: float,
) -> float:
    """Return the smallest exponent in [low, high] whose ESS over groups is at most the target."""

    def too_even(exponent: float) -> bool:
        groups = np.bincount(units, weights=_weights(log_density, exponent, sizes))
        return effective_sample_size(groups) > ess * len(groups)

    if not too_even(low):
        return low
    if too_even(high):
        return high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if too_even(middle) else (low, middle)
    return high


def _weights(log_density: np.ndarray, exponent: float, sizes: np.ndarray | int) -> np.ndarray:
    weights = np.exp(-exponent * (log_density - log_density.min())) / sizes
    weights = np.maximum(weights, TINY * weights.max())  # float32 keeps every weight positive
    return weights / weights.sum()


def _balanced(kernel: csr_array, sizes: np.ndarray) -> np.ndarray:
    """Return weights after three damped steps towards equal kernel mass everywhere."""
    both = kernel.maximum(kernel.T)
    weights = 1.0 / sizes
    for _ in range(3):
        weights = weights / (weights * sizes + both @ weights) ** 0.7
    return weights / weights.sum()
