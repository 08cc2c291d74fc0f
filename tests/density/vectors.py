"""Sets of unit vectors whose density is known, and params to estimate it with."""

from __future__ import annotations

import numpy as np

from isodense.density.params import DensityParams
from isodense.neighbors.build import knn_graph
from isodense.neighbors.graph import Graph

PARAMS = DensityParams(
    k=50,
    method="soft_count",
    ess=0.8,
    bandwidth=1.0,
    dup=0.15,
    paraphrases=0.0,
    alpha_max=1.25,
    count_power=0.0,
    semdedup=0.05,
    clusters=None,
    balance_by=None,
    balance_power=1.0,
    quotas=None,
)
METHODS = ["soft_count", "knn", "balance"]


def unit(X):
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)


def circle(angles):
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def lopsided(seed=0):
    """Return unit vectors in 5 dimensions and the density they were drawn from.

    Density exp(2 x) of the first coordinate (von Mises-Fisher), by rejection from the uniform.
    """
    rng = np.random.default_rng(seed)
    X = unit(rng.normal(size=(20000, 5)))
    X = X[rng.random(len(X)) < np.exp(2 * (X[:, 0] - 1))][:3000]
    assert len(X) == 3000
    return X, np.exp(2 * X[:, 0].astype(float))


def with_copies(seed, n=120, dim=6, copies=20):
    """Return the graph of unit vectors, some of them repeated."""
    rng = np.random.default_rng(seed)
    X = unit(rng.normal(size=(n, dim)))
    return knn_graph(np.concatenate([X, X[rng.integers(n, size=copies)]]), 50)


def reordered(graph, order):
    place = np.argsort(order).astype(np.int32)
    return Graph(place[graph.indices[order]], graph.distances[order])


def with_groups(seed, groups, size, lone, noise, dim=8):
    """Return unit vectors, some of them near-duplicates, and the group of each, lone ones last."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(groups + lone, dim)))
    group = np.r_[np.repeat(np.arange(groups), size), np.arange(groups, groups + lone)]
    spread = noise * (group < groups)[:, None] * rng.normal(size=(len(group), dim))
    return unit(centres[group] + spread), group


def thousands():
    """Return the graph of more rows than a block has, a third of them copies."""
    X = np.concatenate([*with_groups(4, 40, 30, 1200, 1e-4, dim=5)[:1], lopsided()[0][:600]])
    return knn_graph(X, 50)
