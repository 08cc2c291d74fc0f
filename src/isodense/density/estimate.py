"""Local density of every prompt, and sampling weights that fall with it.

Default, ``soft_count``: how many *distinct* prompts a prompt has around it, counted with a Gaussian
kernel (:mod:`isodense.density.kernel`); duplicate clusters (:mod:`isodense.density.duplicates`)
count, and weigh, as one. The weight is a power of that count. The exponent brings the effective
sample size down to a chosen share of the distinct prompts, within bounds: where little contrast is
there to be had, more strength would amplify noise.

Sources: inverse-density sampling of training data, Sachdeva et al. 2024 (DENSITY, arXiv
2402.09668); density-dependent down-sampling, Qiu et al. 2011 (SPADE); density from the distance to
the k-th neighbour, Loftsgaarden and Quesenberry 1965; effective sample size, Kish 1965; root
finding, Brent 1973.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq

from isodense.density.balance import effective_sample_size
from isodense.density.baselines import evened_clusters, pruned
from isodense.density.duplicates import IDENTICAL, Scales, find_duplicates
from isodense.density.kernel import balanced, niche_counts, soft_counts
from isodense.density.kinds import balance_kinds
from isodense.density.params import DensityParams, Method
from isodense.neighbors.graph import Graph
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.params import build

TINY = 1e-20  # least weight, of the largest
EXPONENT_DIGITS = 9  # others depend on the last bits of sums, which differ between processors
EXACT = 1e-9  # the target of the effective sample size is reached this closely


@dataclass(frozen=True)
class Estimate:
    """What :func:`estimate` finds.

    Attributes
    ----------
    weights : ndarray of shape (n,), float64
        Sum 1; the more crowded a prompt, the lower.
    density : ndarray of shape (n,), float64
        Log soft count of distinct prompts, whatever the method; rises with crowding.
    clusters : ndarray of shape (n,), int32
        Duplicate cluster that each prompt belongs to.
    scales : Scales
    exponent : float
        a of weight ∝ exp(-a · density), shared by a duplicate cluster.
    niches : ndarray of shape (n,), float64, optional
        How many distinct prompts the weight is shared with as paraphrases, each prompt itself
        included; None where ``paraphrases`` is 0.
    """

    weights: np.ndarray
    density: np.ndarray
    clusters: np.ndarray
    scales: Scales
    exponent: float = 0.0
    niches: np.ndarray | None = None

    @property
    def sizes(self) -> np.ndarray:
        """How many prompts are in the duplicate cluster of each: ndarray of shape (n,), int64."""
        return np.bincount(self.clusters)[self.clusters]

    @property
    def sharers(self) -> np.ndarray:
        """How many prompts share the weight of one: ndarray of shape (n,), paraphrases by degree.

        The size of the duplicate cluster, times `niches`.
        """
        return self.sizes if self.niches is None else self.sizes * self.niches


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
    semdedup: float = 0.05,
    clusters: int | None = None,
    vectors: np.ndarray | None = None,
    kinds: Sequence[str] | None = None,
    balance_power: float = 1.0,
    quotas: Mapping[str, float] | None = None,
    paraphrases: float = 0.0,
) -> np.ndarray:
    """Return sampling weights inverse to local density, in O(n·k) from the graph alone.

    Parameters
    ----------
    graph : Graph
        Neighbours of every prompt, itself excluded.
    k : int
        Neighbours used.
    method : {"soft_count", "knn", "balance", "uniform", "semdedup", "clusters"}
        ``soft_count``: w ∝ q^(-a) / m, with q = 1 + Σ exp(-d²/2h²) / m_j over all prompts outside
        the prompt's own cluster of m near-duplicates; those beyond the k-th neighbour are
        extrapolated. ``knn``: w ∝ (r̄^D)^a, r̄ the mean distance to the neighbours and D the
        intrinsic dimension; simplest, fails on near-duplicates (ess 0.7 suits it). ``balance``:
        three steps w ← w / (K w)^0.7 on the symmetrised kernel graph, after the magnitude weighting
        of Leinster and Meckes 2016. To compare with: ``uniform``, all alike; ``semdedup``, all
        alike that have no earlier prompt too similar; ``clusters``, each cluster of k-means alike
        (see :mod:`isodense.density.baselines`).
    ess : float
        Target of the effective sample size, as a share of the distinct prompts (of all prompts for
        ``knn``); the exponent a is the smallest in [0, alpha_max] that reaches it.
    bandwidth : float
        The kernel weighs as much as a ball of this radius, a multiple of r₀, the median distance
        to the 20th neighbour.
    dup : float
        Prompts closer than this multiple of r₀ are near-duplicates, where the dimension is not so
        low that ordinary ones are.
    alpha_max : float
        Largest exponent.
    counts : ndarray of shape (n,), optional
        Occurrences of each prompt, at least 1.
    count_power : float
        Weights are multiplied by counts^count_power: at 0 a prompt of a thousand occurrences is one
        prompt, at 1 it is drawn a thousand times as often as one of a single occurrence. The
        exponent a is found before, so density and `ess` are about the prompts themselves.
    semdedup : float
        ``semdedup`` leaves out what has a cosine similarity above 1 minus this to an earlier
        prompt.
    clusters : int, optional
        Number of ``clusters``; by default the square root of the number of prompts.
    vectors : ndarray of shape (n, dim), float32, optional
        Embeddings, for ``clusters``.
    kinds : sequence of str, optional
        Known kind of each prompt, n of them, as a label or a source. The draws of each are set; the
        density decides within.
    balance_power : float
        b of mass ∝ share^(1 - b): at 1 all kinds are drawn alike, at 0 each as uniform sampling
        would.
    quotas : mapping of str to float, optional
        Share of the draws of each kind instead, of sum 1.
    paraphrases : float
        0: off. Otherwise prompts within this multiple of r₀, as 0.5 or 0.6, share a weight, the
        more the closer they are (``soft_count``): w ∝ q^(-a) / (m T), with T = 1 +
        Σ (1 - (d / (paraphrases r₀))⁴)² / m_j over the neighbours within it and outside the
        prompt's own cluster, the mean over the cluster; in q each neighbour counts 1 / T_j times.

    Returns
    -------
    ndarray of shape (n,), float64
        Positive, sum 1. Uniform where there are fewer than 3 prompts or all are identical. With
        ``soft_count`` no duplicate cluster weighs more than (n + 1)^a times another (k + 1 times
        that with `paraphrases`), and none more than an isolated prompt; with `count_power` above 0,
        and between kinds, there is no such bound.

    Raises
    ------
    IsodenseError
        If a keyword has no such value, the graph's arrays are unusable or hold fewer than `k`
        neighbours, or `counts` are missing where `count_power` asks for them, of another length,
        below 1 or not finite, or `vectors` are missing or too few for ``clusters``, or `kinds` are
        too few or other ones than `quotas` names.

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
        "paraphrases": paraphrases,
        "count_power": count_power,
        "semdedup": semdedup,
        "clusters": clusters,
        "balance_by": None if kinds is None else "kinds",
        "balance_power": balance_power,
        "quotas": None if quotas is None else dict(quotas),
    }
    plain = {name: value.item() if isinstance(value, np.generic) else value
             for name, value in values.items()}  # fmt: skip
    params = build(DensityParams, plain, "density_weights")
    return estimate(graph, params, counts, vectors, kinds).weights


def estimate(
    graph: Graph,
    params: DensityParams,
    counts: np.ndarray | None = None,
    vectors: np.ndarray | None = None,
    kinds: Sequence[str] | None = None,
) -> Estimate:
    """Estimate density and weights; see :func:`density_weights`."""
    graph = graph.first(params.k)
    graph = Graph(np.ascontiguousarray(graph.indices), np.ascontiguousarray(graph.distances))
    _check(graph)
    factors = _count_factors(counts, params.count_power, len(graph))
    found = _estimate(graph, params, vectors)
    weights = found.weights
    if params.count_power:
        weights = weights * factors
        weights /= weights.sum()
    if params.balance_by:
        if kinds is None:
            message = f"density.balance_by: {params.balance_by} needs the kinds of the prompts"
            raise IsodenseError(message, "pass kinds, one per row of the graph, in its order")
        weights = balance_kinds(weights, kinds, params.balance_power, params.quotas)
    return replace(found, weights=weights)


def _estimate(graph: Graph, params: DensityParams, vectors: np.ndarray | None) -> Estimate:
    clusters, scales = find_duplicates(graph, params.dup, params.bandwidth)
    sizes = np.bincount(clusters)[clusters]
    fixed = _without_density(graph, params, vectors)
    if not scales.scale:
        weights = 1.0 / sizes / (clusters.max() + 1) if fixed is None else fixed
        return Estimate(weights, np.zeros(len(graph)), clusters, scales)
    niches = None
    if params.paraphrases:
        niches = niche_counts(graph, clusters, sizes, params.paraphrases * scales.scale)
        sizes = sizes * niches
    counts, seen = soft_counts(graph, clusters, sizes, scales, len(graph))
    density = _shared(np.log1p(counts), clusters, seen)
    if fixed is not None:
        return Estimate(fixed, density, clusters, scales, niches=niches)
    if params.method == "balance":
        weights = balanced(graph, clusters, scales.width)
        return Estimate(weights, density, clusters, scales, 1.0, niches)
    crowding, units = density, clusters
    if params.method == "knn":  # single prompts, near-duplicates or not
        means = np.maximum(graph.distances.mean(axis=1, dtype=np.float64), IDENTICAL)
        crowding = -max(scales.dimension, 1.0) * np.log(means)
        units, sizes = np.arange(len(graph)), np.ones(len(graph))
    exponent = _exponent(crowding, units, sizes, params.ess, params.alpha_max)
    weights = inverse_weights(crowding, exponent, sizes)
    return Estimate(weights, density, clusters, scales, exponent, niches)


def _without_density(
    graph: Graph, params: DensityParams, vectors: np.ndarray | None
) -> np.ndarray | None:
    """Return the weights of a method that does not look at the density, None for others."""
    if params.method == "uniform":
        return np.full(len(graph), 1 / len(graph))
    if params.method == "semdedup":
        return pruned(graph, params.semdedup)
    if params.method != "clusters":
        return None
    if vectors is None or len(vectors) != len(graph):
        got = "there are none" if vectors is None else f"there are {len(vectors)}"
        message = f"method clusters needs the vectors of {len(graph)} prompts, and {got}"
        raise IsodenseError(message, "pass vectors, one per row of the graph, in its order")
    return evened_clusters(vectors, params.clusters)


def heldout_density(found: Estimate, near: Graph, params: DensityParams) -> np.ndarray:
    """Return the log soft count of prompts that are not in the graph, among those that are.

    Parameters
    ----------
    found : Estimate
        What :func:`estimate` found for the prompts in the graph.
    near : Graph
        The nearest prompts of the graph to each other prompt.
    params : DensityParams
        The params that `found` was estimated with.

    Returns
    -------
    ndarray of shape (m,), float64
        That of the duplicate cluster for near-duplicates of a prompt in the graph; zero where all
        prompts are alike.
    """
    near = Graph(near.indices[:, : params.k], near.distances[:, : params.k])
    if found.scales.scale == 0:
        return np.zeros(len(near))
    counts, _ = soft_counts(near, None, found.sharers, found.scales, len(found.clusters))
    close = near_training(near, found.scales.radius)
    return np.where(close, found.density[near.indices[:, 0]], np.log1p(counts))


def heldout_niches(found: Estimate, near: Graph, params: DensityParams) -> np.ndarray:
    """Return with how many prompts of the graph others would share a weight as paraphrases.

    Parameters
    ----------
    found, near, params
        As for :func:`heldout_density`.

    Returns
    -------
    ndarray of shape (m,), float64
        At least 1, the prompt itself; that of the duplicate cluster for near-duplicates of a prompt
        in the graph.
    """
    if found.niches is None:
        return np.ones(len(near))
    near = Graph(near.indices[:, : params.k], near.distances[:, : params.k])
    niches = niche_counts(near, None, found.sizes, params.paraphrases * found.scales.scale)
    close = near_training(near, found.scales.radius)
    return np.where(close, found.niches[near.indices[:, 0]], niches)


def near_training(near: Graph, radius: float) -> np.ndarray:
    """Return which prompts that are not in the graph are near-duplicates of one that is.

    Parameters
    ----------
    near : Graph
        The nearest prompts of the graph to each other prompt.
    radius : float
        Of near-duplicates, see :class:`isodense.density.duplicates.Scales`.

    Returns
    -------
    ndarray of shape (m,), bool
    """
    return near.distances[:, 0] <= np.float64(max(radius, IDENTICAL))


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
    """Return counts^power, checked."""
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
        raise IsodenseError(message, "count the occurrences of each prompt, the first one too")
    return counts**power


def _shared(density: np.ndarray, clusters: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Give the prompts of a duplicate cluster the mean density of those that see beyond it.

    Where none does, near-duplicates fill all their lists, and the density is taken to be the
    median.
    """
    members = np.bincount(clusters[seen], minlength=clusters.max() + 1)
    total = np.bincount(clusters[seen], weights=density[seen], minlength=len(members))
    typical = float(np.median(density[seen])) if seen.any() else 0.0
    return np.where(members > 0, total / np.maximum(members, 1), typical)[clusters]


def _exponent(
    log_density: np.ndarray,
    clusters: np.ndarray,
    sizes: np.ndarray,
    ess: float,
    high: float,
) -> float:
    """Return the smallest exponent in [0, high] at which the clusters' ESS is at most `ess`."""

    def excess(exponent: float) -> float:
        masses = np.bincount(clusters, weights=inverse_weights(log_density, exponent, sizes))
        return effective_sample_size(masses) / len(masses) - ess

    if excess(0.0) <= EXACT:
        return 0.0
    if excess(high) >= 0:
        return high
    found = float(brentq(excess, 0.0, high, xtol=1e-12))
    return round(found, EXPONENT_DIGITS)


def reached_ess(found: Estimate, params: DensityParams) -> float | None:
    """Return what the exponent makes of the effective sample size, to compare with ``ess``.

    Parameters
    ----------
    found : Estimate
        What :func:`estimate` found with `params`.
    params : DensityParams

    Returns
    -------
    float or None
        Share of the distinct prompts (of all prompts for ``knn``), before counts and kinds enter.
        Above ``ess`` where the exponent is at ``alpha_max``, or no exponent changes it; below where
        ``paraphrases`` alone take it there. None of methods that have no exponent to choose, and
        of ``knn`` with counts or kinds.
    """
    if params.method == "soft_count":
        weights = inverse_weights(found.density, found.exponent, found.sharers)
        masses = np.bincount(found.clusters, weights)
        return effective_sample_size(masses) / len(masses)
    if params.method == "knn" and not (params.count_power or params.balance_by):
        return effective_sample_size(found.weights) / len(found.weights)
    return None


def inverse_weights(log_density: np.ndarray, exponent: float, sizes: np.ndarray) -> np.ndarray:
    """Return weights of sum 1 inverse to a power of the density.

    Parameters
    ----------
    log_density : ndarray of shape (n,), float64
    exponent : float
    sizes : ndarray of shape (n,)
        How many prompts share one weight with each, see :attr:`Estimate.sharers`.

    Returns
    -------
    ndarray of shape (n,), float64
    """
    weights = np.exp(-exponent * (log_density - log_density.min())) / sizes
    weights = np.maximum(weights, TINY * weights.max())  # float32 keeps every weight positive
    return weights / weights.sum()
