"""Local density of every prompt, and sampling weights that fall with it.

Default, ``soft_count``: how many *distinct* prompts a prompt has around it, counted with a
Gaussian kernel over its nearest neighbours; groups of near-copies count, and weigh, as one. The
weight is a power of that count, just strong enough to bring the effective sample size down to a
chosen share of the prompts.

Sources: inverse-density sampling of training data, Sachdeva et al. 2024 (DENSITY, arXiv
2402.09668); density-dependent down-sampling, Qiu et al. 2011 (SPADE); effective sample size, Kish
1965; root finding, Brent 1973; intrinsic dimension, Levina and Bickel 2004 with the average of
MacKay and Ghahramani 2005.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from isodense.artifacts import publishing, write_manifest
from isodense.errors import IsodenseError
from isodense.evenness import effective_sample_size, rank_agreement, weight_statistics
from isodense.graph import Graph
from isodense.params import as_dict, param
from isodense.weights import DENSITY, HELDOUT_DENSITY, IDS, WEIGHTS

Method = Literal["soft_count", "knn", "balance", "uniform"]

COPY = 1e-6  # distance under which two vectors are the same
TINY = 1e-20  # least weight, of the largest
BLOCK = 4096  # rows whose kernel is held at once; speed and memory only


@dataclass(frozen=True)
class DensityParams:
    """Section ``density`` of ``params.yaml``; see :func:`density_weights`."""

    k: int = param(minimum=1, maximum=1000)
    method: Method = param()
    ess: float = param(minimum=0.05, maximum=1.0)
    bandwidth: float = param(minimum=0.01, maximum=10.0)
    dup: float = param(minimum=0.0, maximum=1.0)
    alpha_max: float = param(minimum=1.0, maximum=20.0)
    count_power: float = param(minimum=0.0, maximum=1.0)


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
    counts: np.ndarray | None = None,
    count_power: float = 0.0,
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
    counts : ndarray of shape (n,), optional
        How often each prompt was asked, at least 1.
    count_power : float
        Weights are multiplied by counts^count_power: at 0 a prompt asked a thousand times is one
        prompt, at 1 it is drawn a thousand times as often as if asked once. The exponent a is found
        before, so density and `ess` are about the prompts themselves.

    Returns
    -------
    ndarray of shape (n,), float64
        Positive, sum 1. Uniform where there are fewer than 3 prompts or all are identical. With
        ``soft_count`` no group of near-copies weighs more than (k + 1)^a times another, so that
        nothing, however odd, takes over; with `count_power` above 0 there is no such bound.

    Raises
    ------
    IsodenseError
        If the graph's arrays are unusable or hold fewer than `k` neighbours, or `counts` are
        missing where `count_power` asks for them, of another length, below 1 or not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from isodense.neighbors import knn_graph
    >>> angles = np.array([0.0, 0.1, 0.2, 0.3, 2.0])         # four in a crowd, one alone
    >>> X = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    >>> int(density_weights(knn_graph(X, k=3), k=3).argmax())
    4
    """
    params = DensityParams(k, method, ess, bandwidth, dup, alpha_max, count_power)
    return estimate(graph, params, counts).weights


def estimate(graph: Graph, params: DensityParams, counts: np.ndarray | None = None) -> Estimate:
    """Estimate density and weights; see :func:`density_weights`."""
    graph = graph.first(params.k)
    graph = Graph(np.ascontiguousarray(graph.indices), np.ascontiguousarray(graph.distances))
    _check(graph)
    factors = _count_factors(counts, params.count_power, len(graph))
    found = _estimate(graph, params)
    if params.count_power == 0:
        return found
    weights = found.weights * factors
    return replace(found, weights=weights / weights.sum())


def _estimate(graph: Graph, params: DensityParams) -> Estimate:
    n = len(graph)
    uniform = np.full(n, 1 / n)
    if n < 3 or graph.distances[:, -1].max() <= COPY:  # rows are sorted
        return Estimate(uniform, np.zeros(n), _connected(graph, COPY), 0.0, 0.0)
    units, scale = _units(graph, params.dup)
    sizes = np.bincount(units)[units]
    width = params.bandwidth * scale
    density = _log_counts(graph, units, width)
    if params.method == "uniform":
        return Estimate(uniform, density, units, scale, 0.0)
    if params.method == "balance":
        return Estimate(_balanced(graph, units, width), density, units, scale, 1.0)
    crowding, low = density, 1.0
    if params.method == "knn":
        means = graph.distances.mean(axis=1, dtype=np.float64)
        crowding, low, sizes = -np.log(np.maximum(means, COPY)), 0.0, np.ones(n)
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
    own = distances <= max(params.dup * found.scale, COPY)
    kernel[own] = 0  # the prompt's own group is the 1 of log1p
    return np.log1p(kernel.sum(axis=1))


def intrinsic_dimension(graph: Graph) -> float:
    """Return the maximum-likelihood intrinsic dimension (Levina and Bickel 2004).

    Averaged over prompts as MacKay and Ghahramani proposed; 0 where distances do not vary.
    """
    distances = graph.distances.astype(np.float64)
    used = distances[(distances[:, :1] > COPY).all(axis=1)] if graph.k > 2 else distances[:0]
    logs = np.log(used[:, -1:] / used[:, :-1]) if len(used) else np.zeros((1, 1))
    inverse = logs.mean(axis=1) * logs.shape[1] / max(logs.shape[1] - 1, 1)
    return float(1 / inverse.mean()) if inverse.mean() > 0 else 0.0


def statistics(
    found: Estimate, graph: Graph, params: DensityParams, counts: np.ndarray | None = None
) -> dict[str, Any]:
    """Return what a person reads to judge weights.

    Parameters
    ----------
    found : Estimate
        Of `graph`, `params` and `counts`, the other arguments.

    Returns
    -------
    dict
        Those of :func:`isodense.evenness.weight_statistics`; ``exponent`` and ``scale``, see
        :class:`Estimate`; ``intrinsic_dimension``; and ``rank_stability``, the rank correlation of
        the weights with those at half as many neighbours (near 1: their order is that of the data,
        not of the choice of k), absent where it is undefined: one neighbour, or weights all alike.
    """
    graph = graph.first(params.k)
    report = {
        **weight_statistics(found.weights, found.units),
        "exponent": round(found.exponent, 6),
        "scale": round(found.scale, 6),
        "intrinsic_dimension": round(intrinsic_dimension(graph), 3),
    }
    if graph.k > 1:
        half = estimate(graph, replace(params, k=graph.k // 2), counts)
        agreement = rank_agreement(found.weights, half.weights)
        report |= {} if agreement is None else {"rank_stability": agreement}
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
    if not graph.k:
        return
    if not (graph.distances.min() >= 0 and graph.distances.max() < np.inf):  # NaN fails both
        message = "the graph holds distances that are not finite and >= 0"
        raise IsodenseError(message, "run `dvc repro neighbors`, or build it with knn_graph")
    if graph.indices.min() < 0 or graph.indices.max() >= len(graph):
        message = "the graph points to rows that do not exist"
        raise IsodenseError(message, "run `dvc repro neighbors`, or build it with knn_graph")


def _count_factors(counts: np.ndarray | None, power: float, n: int) -> np.ndarray:
    """Return counts^power."""
    if counts is None:
        if power > 0:
            message = f"count_power = {power} needs the counts of the prompts"
            raise IsodenseError(message, "pass counts, or set density.count_power: 0")
        return np.ones(n)
    counts = np.asarray(counts, dtype=np.float64)
    if counts.shape != (n,):
        message = f"counts of shape {counts.shape} for {n} prompts"
        raise IsodenseError(message, "pass one count per row of the graph, in its order")
    bad = np.flatnonzero(~(np.isfinite(counts) & (counts >= 1)))
    if len(bad):
        message = f"{len(bad)} counts are not finite and >= 1, first in row {bad[0]}"
        raise IsodenseError(message, "count how often each prompt was asked, itself included")
    return counts**power


def _units(graph: Graph, dup: float) -> tuple[np.ndarray, float]:
    """Return each prompt's group of near-copies and the scale r₀, a median over groups.

    That is the weighted median of the distances above zero, a prompt weighing 1 / size of group.
    """
    farthest = graph.distances[:, -1].astype(np.float64)
    order = np.argsort(farthest, kind="stable")
    order = order[farthest[order] > COPY]
    units = np.arange(len(graph), dtype=np.int32)
    for _ in range(2):
        mass = np.cumsum(1.0 / np.bincount(units)[units[order]])
        half = mass[-1] / 2 * (1 - 1e-10)  # sums of thirds round by the order of the rows
        scale = float(farthest[order[np.searchsorted(mass, half)]])
        units = _connected(graph, max(dup * scale, COPY))
    return units, scale


def _connected(graph: Graph, radius: float) -> np.ndarray:
    """Return the component of each row in the graph of edges no longer than `radius`."""
    limit = np.float64(radius)  # a bare float would be rounded to float32
    near = np.flatnonzero(graph.distances[:, :1] <= limit)  # rows are sorted: no others have any
    rows, columns = np.nonzero(graph.distances[near] <= limit)
    rows = near[rows]
    edges = coo_array(
        (np.ones(len(rows), dtype=np.int8), (rows, graph.indices[rows, columns])),
        shape=(len(graph), len(graph)),
    )
    return connected_components(edges, directed=False)[1]


def _kernel(graph: Graph, units: np.ndarray, width: float, rows: slice) -> np.ndarray:
    """Return exp(-d²/2h²) of the edges from `rows`, 0 within a group of near-copies."""
    values = graph.distances[rows].astype(np.float64)
    np.square(values, out=values)
    values /= -(2 * width**2)
    np.exp(values, out=values)
    values *= units.take(graph.indices[rows]) != units[rows, None]
    return values


def _log_counts(graph: Graph, units: np.ndarray, width: float) -> np.ndarray:
    """Return the log soft count of distinct prompts around each."""
    shares = 1.0 / np.bincount(units)[units]
    counts = np.empty(len(graph))
    for start in range(0, len(graph), BLOCK):
        rows = slice(start, start + BLOCK)
        kernel = _kernel(graph, units, width, rows)
        counts[rows] = np.einsum("ij,ij->i", kernel, shares.take(graph.indices[rows]))
    return np.log1p(counts)


def _exponent(
    log_density: np.ndarray,
    units: np.ndarray,
    sizes: np.ndarray,
    ess: float,
    low: float,
    high: float,
) -> float:
    """Return the smallest exponent in [low, high] whose ESS over groups is at most the target."""

    def excess(exponent: float) -> float:
        groups = np.bincount(units, weights=_weights(log_density, exponent, sizes))
        return effective_sample_size(groups) / len(groups) - ess

    if excess(low) <= 0:
        return low
    if excess(high) >= 0:
        return high
    return float(brentq(excess, low, high, xtol=1e-12))


def _weights(log_density: np.ndarray, exponent: float, sizes: np.ndarray) -> np.ndarray:
    weights = np.exp(-exponent * (log_density - log_density.min())) / sizes
    weights = np.maximum(weights, TINY * weights.max())  # float32 keeps every weight positive
    return weights / weights.sum()


def _balanced(graph: Graph, units: np.ndarray, width: float) -> np.ndarray:
    """Return weights after three damped steps towards equal kernel mass everywhere."""
    values = _kernel(graph, units, width, slice(None)).ravel()
    pointer = np.arange(0, values.size + 1, graph.k)
    kernel = csr_array((values, graph.indices.ravel(), pointer), shape=(len(graph),) * 2)
    both = kernel.maximum(kernel.T)
    sizes = np.bincount(units)[units]
    weights = 1.0 / sizes
    for _ in range(3):
        weights = weights / (weights * sizes + both @ weights) ** 0.7
    return weights / weights.sum()
