"""Local density of every prompt, and sampling weights that fall with it.

Default, ``soft_count``: how many *distinct* prompts a prompt has around it, counted with a
Gaussian kernel; duplicate clusters count, and weigh, as one. The graph holds the nearest k; what
the kernel would count beyond them follows from r_k and the intrinsic dimension, so that a crowd
larger than k is told from one of k. The weight is a power of that count, of an exponent that brings
the effective sample size down to a chosen share of the distinct prompts, within bounds: where
little contrast is there to be had, more strength would amplify noise.

Sources: inverse-density sampling of training data, Sachdeva et al. 2024 (DENSITY, arXiv
2402.09668); density-dependent down-sampling, Qiu et al. 2011 (SPADE); density from the distance to
the k-th neighbour, Loftsgaarden and Quesenberry 1965; effective sample size, Kish 1965; root
finding, Brent 1973; intrinsic dimension, Levina and Bickel 2004 with the average of MacKay and
Ghahramani 2005.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import gammaincc, gammaln

from isodense.density.balance import effective_sample_size, rank_agreement, weight_statistics
from isodense.density.params import ALPHA_MIN, DensityParams, Method
from isodense.neighbors.graph import Graph
from isodense.pipeline.artifact import publishing, write_manifest
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.params import as_dict, build
from isodense.sampling.weights import DENSITY, HELDOUT_DENSITY, IDS, WEIGHTS

COPY = 1e-6  # distance under which two vectors are the same
RANK = 20  # r₀ is the median distance to this neighbour, whatever k is
STRAY = 0.05  # ordinary neighbours within the radius of near-duplicates, at most
ROUNDS = 5  # at most, of finding near-duplicates, r₀ and the dimension in turn
SURVEYED = 100_000  # rows that the dimension is measured on
TINY = 1e-20  # least weight, of the largest
BLOCK = 1024  # rows whose kernel is held at once; speed and memory only


@dataclass(frozen=True)
class Scales:
    """Lengths and the dimension of a set of prompts; all 0 where all are alike.

    Attributes
    ----------
    scale : float
        r₀, the median distance to the 20th neighbour, over duplicate clusters.
    radius : float
        Prompts within it are near-duplicates.
    width : float
        Of the kernel: h.
    dimension : float
        Intrinsic dimension, near-duplicates left out.
    """

    scale: float
    radius: float
    width: float
    dimension: float


@dataclass(frozen=True)
class Estimate:
    """What :func:`estimate` finds.

    Attributes
    ----------
    weights : ndarray of shape (n,), float64
        Sum 1; fall with crowding.
    density : ndarray of shape (n,), float64
        Log soft count of distinct prompts, whatever the method; rises with crowding.
    clusters : ndarray of shape (n,), int32
        Duplicate cluster that each prompt belongs to.
    scales : Scales
    exponent : float
        a of weight ∝ density^(-a).
    """

    weights: np.ndarray
    density: np.ndarray
    clusters: np.ndarray
    scales: Scales
    exponent: float = 0.0


def density_weights(
    graph: Graph,
    k: int = 50,
    method: Method = "soft_count",
    ess: float = 0.8,
    bandwidth: float = 1.0,
    dup: float = 0.15,
    alpha_max: float = 1.25,
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
        ``soft_count``: w ∝ q^(-a) / m, with q = 1 + Σ exp(-d²/2h²) / m_j over all prompts outside
        the prompt's own group of m near-duplicates; those beyond the k-th neighbour are
        extrapolated. ``knn``: w ∝ (r̄^D)^a, r̄ the mean distance to the neighbours and D the
        intrinsic dimension; simplest, fails on copies (ess 0.7 suits it). ``balance``: three steps
        w ← w / (K w)^0.7 on the symmetrised kernel graph, after the magnitude weighting of Leinster
        and Meckes 2016. ``uniform``: all alike.
    ess : float
        Target of the effective sample size, as a share of the distinct prompts; the exponent a is
        the smallest in [0.5, alpha_max] that reaches it (in [0, alpha_max], and over all prompts,
        for ``knn``).
    bandwidth : float
        The kernel weighs as much as a ball of this radius, a multiple of r₀, the median distance
        to the 20th neighbour.
    dup : float
        Prompts closer than this multiple of r₀ are near-duplicates, where the dimension is not so
        low that ordinary ones are.
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
        ``soft_count`` no duplicate cluster weighs more than (n + 1)^a times another, and none
        more than an isolated prompt; with `count_power` above 0 there is no such bound.

    Raises
    ------
    IsodenseError
        If a keyword has no such value, the graph's arrays are unusable or hold fewer than `k`
        neighbours, or `counts` are missing where `count_power` asks for them, of another length,
        below 1 or not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from isodense.neighbors.build import knn_graph
    >>> angles = np.array([0.0, 0.1, 0.2, 0.3, 2.0])         # four in a crowd, one alone
    >>> X = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    >>> int(density_weights(knn_graph(X, k=3), k=3).argmax())
    4
    """
    values = {
        "k": k,
        "method": method,
        "ess": ess,
        "bandwidth": bandwidth,
        "dup": dup,
        "alpha_max": alpha_max,
        "count_power": count_power,
    }
    plain = {name: value.item() if isinstance(value, np.generic) else value
             for name, value in values.items()}  # fmt: skip
    return estimate(graph, build(DensityParams, plain, "density_weights"), counts).weights


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
    if n < 3:
        return Estimate(uniform, np.zeros(n), _connected(graph, COPY), Scales(0.0, 0.0, 0.0, 0.0))
    clusters, scales = _clusters(graph, params)
    sizes = np.bincount(clusters)[clusters]
    if not scales.scale:
        weights = uniform if params.method == "uniform" else 1.0 / sizes / (clusters.max() + 1)
        return Estimate(weights, np.zeros(n), clusters, scales)
    counts, seen = _counts(graph, clusters, sizes, scales, n)
    density = _shared(np.log1p(counts), clusters, seen)
    if params.method == "uniform":
        return Estimate(uniform, density, clusters, scales)
    if params.method == "balance":
        return Estimate(_balanced(graph, clusters, scales.width), density, clusters, scales, 1.0)
    crowding, low, groups = density, ALPHA_MIN, clusters
    if params.method == "knn":  # of single prompts, copies or not
        means = np.maximum(graph.distances.mean(axis=1, dtype=np.float64), COPY)
        crowding, low = -max(scales.dimension, 1.0) * np.log(means), 0.0
        groups, sizes = np.arange(n), np.ones(n)
    exponent = _exponent(crowding, groups, sizes, params.ess, low, params.alpha_max)
    weights = inverse_weights(crowding, exponent, sizes)
    return Estimate(weights, density, clusters, scales, exponent)


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
    near = Graph(near.indices[:, : params.k], near.distances[:, : params.k])
    if found.scales.scale == 0:
        return np.zeros(len(near))
    sizes = np.bincount(found.clusters)[found.clusters]
    counts, _ = _counts(near, None, sizes, found.scales, len(found.clusters))
    copies = near.distances[:, 0] <= np.float64(found.scales.radius)  # of a group: its density
    return np.where(copies, found.density[near.indices[:, 0]], np.log1p(counts))


def intrinsic_dimension(graph: Graph, clusters: np.ndarray | None = None) -> float:
    """Return the maximum-likelihood intrinsic dimension (Levina and Bickel 2004).

    Its inverse is averaged, as MacKay and Ghahramani (2005) proposed, over duplicate clusters.
    Each group counts as one neighbour, and the row's own as none. Of many rows some 100,000 at
    equal steps are enough.

    Parameters
    ----------
    graph : Graph
    clusters : ndarray of shape (n,), optional
        Duplicate cluster of each row; by default each is one of its own.

    Returns
    -------
    float
        0 where distances do not vary.
    """
    clusters = np.arange(len(graph)) if clusters is None else clusters
    shares = 1.0 / np.bincount(clusters)[clusters]
    rows = np.arange(0, len(graph), max(1, len(graph) // SURVEYED))
    indices = graph.indices[rows]
    distinct = shares[indices] * (clusters[indices] != clusters[rows, None])
    logs = np.log(np.maximum(graph.distances[rows].astype(np.float64), COPY))
    total = np.einsum("ij,ij->i", logs[:, -1:] - logs, distinct)
    count = distinct[:, :-1].sum(axis=1)  # the last one's log is 0
    used = count > 1
    inverse = (total[used] / count[used] * shares[rows[used]]).sum()
    return float(shares[rows[used]].sum() / inverse) if inverse > 0 else 0.0


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
        Those of :func:`isodense.density.balance.weight_statistics`; ``exponent`` and ``scale``, see
        :class:`Estimate`; ``intrinsic_dimension``; and ``rank_stability``, the rank correlation of
        the weights with those at half as many neighbours (near 1: their order is that of the data,
        not of the choice of k), absent where it is undefined: one neighbour, or weights all alike.
    """
    graph = graph.first(params.k)
    report = {
        **weight_statistics(found.weights, found.clusters),
        "exponent": round(found.exponent, 6),
        "scale": round(found.scales.scale, 6),
        "intrinsic_dimension": round(found.scales.dimension, 3),
    }
    if graph.k > 1:
        half = estimate(graph, params.model_copy(update={"k": graph.k // 2}), counts)
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
            scale=found.scales.scale,
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


def _clusters(graph: Graph, params: DensityParams) -> tuple[np.ndarray, Scales]:
    """Return each prompt's duplicate cluster, and the lengths that are found with them.

    r₀ and the dimension decide what a near-duplicate is, and near-duplicates are left out of both,
    so they are found in turn. Where the dimension is so low that ordinary prompts lie within `dup`,
    the radius shrinks until `STRAY` of them do: else they would chain.
    """
    close = graph.first(min(RANK, graph.k))
    farthest = close.distances[:, -1].astype(np.float64)
    order = np.argsort(farthest)
    order = order[farthest[order] > COPY]
    if not len(order):  # nothing but duplicate clusters
        return _connected(graph, COPY), Scales(0.0, 0.0, 0.0, 0.0)
    scale = float(farthest[order[3 * len(order) // 4]])  # high, as copies may be in the majority
    radius, dimension = params.dup * scale, 0.0
    clusters = np.arange(len(graph), dtype=np.int32)
    for _ in range(ROUNDS):
        limit = max(radius, COPY)
        last, clusters = clusters, _connected(graph, limit)
        if dimension and np.array_equal(clusters, last):
            break
        mass = np.cumsum(1.0 / np.bincount(clusters)[clusters[order]])
        half = mass[-1] / 2 * (1 - 1e-10)  # sums of thirds round by the order of the rows
        scale = float(farthest[order[np.searchsorted(mass, half)]])
        dimension = intrinsic_dimension(close, clusters)
        stray = (STRAY / RANK) ** (1 / dimension) if dimension else 1.0
        radius = min(params.dup, stray) * scale
    ball = float(np.exp(-gammaln(dimension / 2 + 1) / max(dimension, 1e-9))) / 2**0.5
    return clusters, Scales(scale, limit, params.bandwidth * scale * ball, dimension)


def _connected(graph: Graph, radius: float) -> np.ndarray:
    """Return the component of each row in the graph of edges no longer than `radius`, int32."""
    limit = np.float64(radius)  # a bare float would be rounded to float32
    near, heads, tails = np.arange(len(graph)), [], []
    for column in range(graph.k):  # rows are sorted: who has none here has none to the right
        near = near[graph.distances[near, column] <= limit]
        heads.append(near)
        tails.append(graph.indices[near, column])
    edges = np.stack([np.concatenate([*ends, near[:0]]) for ends in (heads, tails)])
    joined = np.zeros(len(graph), dtype=bool)
    joined[edges] = True
    nodes, place = np.flatnonzero(joined), np.cumsum(joined) - 1
    square = coo_array(
        (np.ones(edges.shape[1], dtype=np.int8), place[edges]), shape=(len(nodes),) * 2
    )
    count, label = connected_components(square, directed=False)
    first = np.empty(count, dtype=np.int64)
    first[label[::-1]] = nodes[::-1]  # the last one written stays
    clusters = np.arange(len(graph))
    clusters[nodes] = first[label]
    kept = np.ones(len(graph), dtype=bool)
    kept[nodes] = False
    kept[first] = True
    return (np.cumsum(kept, dtype=np.int32) - 1)[clusters]


def _counts(
    graph: Graph, clusters: np.ndarray | None, sizes: np.ndarray, scales: Scales, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the soft count of distinct prompts around each row, and whether it sees any.

    Parameters
    ----------
    graph : Graph
        Neighbours of each row among n prompts.
    clusters : ndarray of shape (n,), optional
        Group of each row; None for rows from elsewhere, which are in none.
    sizes : ndarray of shape (n,)
        Of the groups of the n prompts.
    """
    counts, inside = np.zeros(len(graph)), np.zeros(len(graph))
    inverse = 1.0 / sizes

    def count(rows: slice) -> None:
        scaled, indices = np.array(graph.distances[rows]), graph.indices[rows]  # float32 does
        shares = inverse.take(indices)
        if clusters is not None:
            grouped = np.flatnonzero(sizes[rows] > 1)  # the others have no neighbour in their group
            outside = clusters.take(indices[grouped]) != clusters[rows][grouped, None]
            shares[grouped] *= outside
        inside[rows] = shares.sum(axis=1)
        np.square(scaled, out=scaled)
        scaled /= np.float32(2 * scales.width**2)
        last = scaled[:, -1].astype(np.float64)
        np.exp(np.negative(scaled, out=scaled), out=scaled)
        counts[rows] = np.einsum("ij,ij->i", shares, scaled)
        if graph.k < n - 1:
            counts[rows] += _beyond(inside[rows], last, scales.dimension)

    _in_blocks(count, len(graph))
    return np.minimum(counts, n), inside > 0


def _beyond(inside: np.ndarray, last: np.ndarray, dimension: float) -> np.ndarray:
    """Return what the kernel would count beyond the last neighbour.

    With `inside` distinct prompts within r_k, at a density that stays what it is there in D
    dimensions: the integral over r > r_k of exp(-r²/2h²) · inside · D · r^(D-1) / r_k^D, which is
    inside · Γ(D/2 + 1) · t^(-D/2) · Q(D/2, t), with t = r_k²/2h² and Q the regularised upper
    incomplete gamma function.
    """
    if not dimension:
        return np.zeros(len(inside))
    last = np.maximum(last, 1e-12)
    power = gammaln(dimension / 2 + 1) - dimension / 2 * np.log(last)
    return inside * np.exp(np.minimum(power, 700)) * gammaincc(dimension / 2, last)


def _shared(density: np.ndarray, clusters: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Give the prompts of a group the mean density of those that see beyond the group.

    Where none does, copies fill all their lists, and the density is taken to be the median.
    """
    members = np.bincount(clusters[seen], minlength=clusters.max() + 1)
    total = np.bincount(clusters[seen], weights=density[seen], minlength=len(members))
    typical = float(np.median(density[seen])) if seen.any() else 0.0
    return np.where(members > 0, total / np.maximum(members, 1), typical)[clusters]


def _in_blocks(work: Callable[[slice], None], n: int) -> None:
    """Run `work` on blocks of rows, on all cores; each row's result is its own."""
    blocks = [slice(start, start + BLOCK) for start in range(0, n, BLOCK)]
    with ThreadPoolExecutor(min(len(blocks), os.cpu_count() or 1) or 1) as pool:
        list(pool.map(work, blocks))


def _exponent(
    log_density: np.ndarray,
    clusters: np.ndarray,
    sizes: np.ndarray,
    ess: float,
    low: float,
    high: float,
) -> float:
    """Return the smallest exponent in [low, high] whose ESS over groups is at most the target."""

    def excess(exponent: float) -> float:
        groups = np.bincount(clusters, weights=inverse_weights(log_density, exponent, sizes))
        return effective_sample_size(groups) / len(groups) - ess

    if excess(low) <= 0:
        return low
    if excess(high) >= 0:
        return high
    return float(brentq(excess, low, high, xtol=1e-12))


def inverse_weights(log_density: np.ndarray, exponent: float, sizes: np.ndarray) -> np.ndarray:
    """Return weights of sum 1 inverse to a power of the density.

    Parameters
    ----------
    log_density : ndarray of shape (n,), float64
    exponent : float
        Of the density.
    sizes : ndarray of shape (n,), int
        Of the duplicate cluster, which share one weight.

    Returns
    -------
    ndarray of shape (n,), float64
    """
    weights = np.exp(-exponent * (log_density - log_density.min())) / sizes
    weights = np.maximum(weights, TINY * weights.max())  # float32 keeps every weight positive
    return weights / weights.sum()


def _balanced(graph: Graph, clusters: np.ndarray, width: float) -> np.ndarray:
    """Return weights after three damped steps towards equal kernel mass everywhere."""
    values = np.exp(-(graph.distances.astype(np.float64) ** 2) / (2 * width**2))
    values[clusters[graph.indices] == clusters[:, None]] = 0
    pointer = np.arange(0, values.size + 1, graph.k)
    kernel = csr_array((values.ravel(), graph.indices.ravel(), pointer), shape=(len(graph),) * 2)
    both = kernel.maximum(kernel.T)
    sizes = np.bincount(clusters)[clusters]
    weights = 1.0 / sizes
    for _ in range(3):
        weights = weights / (weights * sizes + both @ weights) ** 0.7
    return weights / weights.sum()
