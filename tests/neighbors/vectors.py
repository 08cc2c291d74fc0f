"""Vectors whose crowds are known."""

from __future__ import annotations

import numpy as np

from tests.neighbors.test_exact import unit


def clusters(n=6000, dim=24, count=60, seed=0):
    """Return unit vectors around random centres."""
    rng = np.random.default_rng(seed)
    X = unit(count, dim, seed)[rng.integers(count, size=n)] + 0.15 * rng.normal(size=(n, dim))
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
