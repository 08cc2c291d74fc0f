"""How even sampling weights are: over the prompts, and over labels where these are known.

Sources: effective sample size, Kish 1965; expected number of distinct classes in a sample, the
rarefaction curve of Hurlbert 1971, here for draws with replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWS = 256  # of ``labels_in_256``: a batch or two of RL fine-tuning


def effective_sample_size(weights: np.ndarray) -> float:
    """Return (Σw)² / Σw², the number of equally weighted prompts that vary as much (Kish 1965)."""
    weights = np.asarray(weights, dtype=np.float64)
    return float(weights.sum() ** 2 / np.square(weights).sum())


def weight_statistics(weights: np.ndarray, clusters: np.ndarray) -> dict[str, Any]:
    """Return how even weights are, and what falls on near-duplicates.

    Parameters
    ----------
    weights : ndarray of shape (n,), float64
        Sampling weights, sum 1.
    clusters : ndarray of shape (n,), int32
        Duplicate cluster that each prompt belongs to.

    Returns
    -------
    dict
        ``prompts``, their number; ``ess`` and ``ess_share``, the effective sample size and its
        share of them; ``max_over_mean``, also the expected draws of the likeliest prompt in an
        epoch of as many draws as there are prompts, and ``min_over_mean``, of the least likely;
        ``duplicate_clusters`` and ``prompts_in_duplicate_clusters``, of two prompts or more;
        ``duplicates_mass_uniform`` and ``duplicates_mass``, the share of draws that falls on those
        under uniform sampling and under the weights.
    """
    sizes = np.bincount(clusters)
    copied = sizes[clusters] > 1
    ess = effective_sample_size(weights)
    return {
        "prompts": len(weights),
        "ess": round(ess, 3),
        "ess_share": round(ess / len(weights), 6),
        "max_over_mean": round(float(weights.max() * len(weights)), 6),
        "min_over_mean": round(float(weights.min() * len(weights)), 6),
        "duplicate_clusters": int((sizes > 1).sum()),
        "prompts_in_duplicate_clusters": int(copied.sum()),
        "duplicates_mass_uniform": round(float(copied.mean()), 6),
        "duplicates_mass": round(float(weights[copied].sum()), 6),
    }


def rank_agreement(weights: np.ndarray, other: np.ndarray) -> float | None:
    """Return Spearman's correlation of two weightings of the same prompts.

    Differences below a millionth of the mean weight are ties. None where all weights of one tie.
    """
    from scipy.stats import spearmanr  # half a second to import

    relative = [np.round(one * (len(one) / one.sum()), 6) for one in (weights, other)]
    if any(np.ptp(one) == 0 for one in relative):
        return None
    return round(float(spearmanr(*relative).statistic), 6)


def label_statistics(weights: np.ndarray, labels: list[str]) -> dict[str, float]:
    """Return how even known labels are under the weights, and under uniform sampling.

    Parameters
    ----------
    weights : ndarray of shape (n,), float64
        Sampling weights, sum 1.
    labels : list of str
        A known label of every prompt, n of them.

    Returns
    -------
    dict
        ``labels``, their number; and each of these twice, as ``<name>`` under the weights and as
        ``<name>_uniform`` under uniform sampling:

        - ``entropy``: of the label distribution p, over the log of the number of labels;
        - ``kl_to_even``: Kullback-Leibler divergence of p from even labels, in nats (0 is even);
        - ``rarest_quarter``: mass of the quarter of labels with the fewest prompts;
        - ``labels_in_256``: labels expected among 256 draws with replacement,
          Σ 1 - (1 - p)^256; ``labels_in_256_best`` is that of even labels.

        ``gap``: share of ``kl_to_even_uniform`` that the weights remove (1 perfect, 0 no better
        than uniform sampling, below 0 worse); absent where the labels are even to begin with.
    """
    index, names = coded(labels)
    size = len(names)
    counts = np.bincount(index, minlength=size)
    rare = np.argsort(counts, kind="stable")[: max(1, size // 4)]
    masses = {"_uniform": counts / counts.sum(), "": np.bincount(index, weights=weights)}
    report: dict[str, float] = {"labels": size}
    lost = {}
    for name, mass in masses.items():
        entropy = -float((mass * np.log(np.maximum(mass, 1e-300))).sum())
        lost[name] = float(np.log(size)) - entropy
        report[f"entropy{name}"] = round(entropy / float(np.log(size)) if size > 1 else 1.0, 6)
        report[f"kl_to_even{name}"] = round(max(lost[name], 0.0), 6)
        report[f"rarest_quarter{name}"] = round(float(mass[rare].sum()), 6)
        report[f"labels_in_{DRAWS}{name}"] = round(_labels_drawn(mass), 3)
    report[f"labels_in_{DRAWS}_best"] = round(_labels_drawn(np.full(size, 1 / size)), 3)
    if lost["_uniform"] > 1e-9:
        report["gap"] = round(1 - lost[""] / lost["_uniform"], 6)
    return report


def coded(labels: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return the number of each label, and the different ones that there are, in that order.

    Parameters
    ----------
    labels : sequence of str

    Returns
    -------
    codes : ndarray of shape (n,), int64
    names : list of str
        In alphabetic order.
    """
    names = sorted(set(labels))
    number = {label: code for code, label in enumerate(names)}
    codes = np.fromiter(map(number.__getitem__, labels), dtype=np.int64, count=len(labels))
    return codes, names


def _labels_drawn(mass: np.ndarray) -> float:
    with np.errstate(divide="ignore"):  # a label that has all the mass: log 0, which is right
        missed = DRAWS * np.log1p(-np.minimum(mass, 1.0))
    return float(-np.expm1(missed).sum())
