"""Figures of the density stage: CSV files that ``dvc plots`` compares, PNGs that people look at."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from isodense.pipeline.artifact import publishing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#94a3b8"
POINTS = 2000  # of the scatter that dvc plots compares
BINS = 4  # per doubling of the weight, the same in every run, so that dvc plots can compare
LEAST = 2.0**-10  # of the mean weight: what is less counts as this


def density_plots(
    weights: np.ndarray, density: np.ndarray, labels: list[str] | None, out: Path
) -> None:
    """Write the density stage's figures.

    Parameters
    ----------
    weights : ndarray of shape (n,)
        Sampling weights, sum 1.
    density : ndarray of shape (n,)
        Log density.
    labels : list of str or None
        Known labels, for the figure that holds the weights against the truth.
    out : Path
        Folder to write ``weights.csv``, ``density_weight.csv`` and ``density.png`` to.
    """
    relative = weights * len(weights)
    step = -(-len(weights) // POINTS)
    order = np.argsort(density, kind="stable")[::step]
    with publishing(out) as staging:
        _write(
            staging / "weights.csv",
            ("weight_over_mean", "prompts"),
            _bins(relative),
        )
        _write(
            staging / "density_weight.csv",
            ("log_density", "weight_over_mean"),
            zip(_rounded(density[order]), _rounded(relative[order]), strict=True),
        )
        _figure(relative, density, labels, weights, staging / "density.png")


def _bins(relative: np.ndarray) -> Iterable[tuple[float, int]]:
    """Count prompts in bins of equal ratio, whose centres are powers of 2^(1/4)."""
    places = np.rint(BINS * np.log2(np.maximum(relative, LEAST))).astype(np.int64)
    first, last = int(places.min()) - 1, int(places.max()) + 1  # an empty one at either end
    counts = np.bincount(places - first, minlength=last - first + 1)
    centres = 2.0 ** (np.arange(first, last + 1) / BINS)
    return zip(_rounded(centres), counts.tolist(), strict=True)


def label_shares(labels: list[str], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each label's share of draws in percent, the most frequent label first.

    Parameters
    ----------
    labels : list of str
        Labels of n prompts.
    weights : ndarray of shape (n,)
        Sampling weights; they need not sum to 1.

    Returns
    -------
    uniform, weighted : ndarray of shape (n_labels,), float64
        Under uniform sampling, and under the weights.
    """
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    weighted = np.bincount(index, weights=weights)[order]
    return 100 * counts[order] / counts.sum(), 100 * weighted / weights.sum()


def save(figure: Any, path: Path | BinaryIO) -> None:
    """Save a matplotlib figure as a PNG whose bytes repeat."""
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]


def _figure(
    relative: np.ndarray,
    density: np.ndarray,
    labels: list[str] | None,
    weights: np.ndarray,
    path: Path,
) -> None:
    from matplotlib.figure import Figure

    panels = 3 if labels is not None else 2
    figure = Figure(figsize=(4.6 * panels, 3.6), layout="constrained")
    axes = figure.subplots(1, panels)
    _histogram(axes[0], relative)
    _scatter(axes[1], density, relative)
    if labels is not None:
        _label_shares(axes[2], labels, weights)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _histogram(axis: Axes, relative: np.ndarray) -> None:
    axis.hist(relative, bins=40, color=BLUE)
    axis.axvline(1, color=GREY, linestyle="--", linewidth=1)
    axis.set(title="Sampling weights", xlabel="weight / mean weight", ylabel="prompts")


def _scatter(axis: Axes, density: np.ndarray, relative: np.ndarray) -> None:
    axis.scatter(density, relative, s=5, alpha=0.35, color=BLUE, linewidths=0)
    axis.axhline(1, color=GREY, linestyle="--", linewidth=1)
    axis.set(
        title="The more crowded, the less often drawn",
        xlabel="log density",
        ylabel="weight / mean weight",
    )


def _label_shares(axis: Axes, labels: list[str], weights: np.ndarray) -> None:
    uniform, weighted = label_shares(labels, weights)
    rank = np.arange(1, len(uniform) + 1)
    axis.plot(rank, uniform, color=ORANGE, label="uniform sampling")
    axis.plot(rank, weighted, color=BLUE, label="density weights")
    even = 100 / len(uniform)
    axis.axhline(even, color=GREY, linestyle="--", linewidth=1, label="perfectly even")
    axis.set(
        title="Share of each label in training",
        xlabel="label, most frequent first",
        ylabel="share of draws, %",
        yscale="log",
    )
    axis.legend(frameon=False)
