"""The report's pictures as PNG files whose bytes repeat: for ``dvc plots`` and for documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from isodense.density.plots import BLUE, GREY, ORANGE, save
from isodense.pipeline.artifact import publishing
from isodense.report.prompts import Heldout, Prompts

SPREAD = 1.5  # doublings of the weight, either way, at which the colours end


def write_images(
    out: Path,
    prompts: Prompts,
    coordinates: np.ndarray | None,
    heldout: Heldout | None,
    radius: float,
) -> None:
    """Write ``weight_rank.png``, ``map.png`` and ``heldout_distance.png``.

    All are outputs of the stage, so there is a picture that says so where there is nothing to show.

    Parameters
    ----------
    out : Path
        Folder to write.
    prompts : Prompts
    coordinates : ndarray of shape (n, 2), optional
        Places of all prompts.
    heldout : Heldout, optional
        Distances of the held-out prompts to training ones.
    radius : float
        Prompts within it are near-duplicates.
    """
    with publishing(out) as staging:
        _rank(prompts.relative[prompts.train], staging / "weight_rank.png")
        if coordinates is None:
            _absent("no map", staging / "map.png")
        else:
            _map(prompts, coordinates, staging / "map.png")
        if heldout is None or not len(heldout.distances):
            _absent("no held-out prompts", staging / "heldout_distance.png")
        else:
            _distances(heldout.distances, radius, staging / "heldout_distance.png")


def _rank(relative: np.ndarray, path: Path) -> None:
    figure, axis = _figure(6, 3.4)
    axis.plot(np.arange(1, len(relative) + 1), np.sort(relative)[::-1], color=BLUE)
    axis.axhline(1, color=GREY, linestyle="--", linewidth=1)
    axis.set(title="Weight against rank", xlabel="rank", ylabel="weight / mean weight")
    axis.set_xscale("log")
    save(figure, path)


def _map(prompts: Prompts, coordinates: np.ndarray, path: Path) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    figure, axis = _figure(9, 5.6)
    colors = LinearSegmentedColormap.from_list("weight", [BLUE, GREY, ORANGE])
    size = float(np.clip(30_000 / max(len(prompts), 1), 0.1, 15))
    style = {"s": size, "linewidths": 0, "rasterized": True}
    held, train = prompts.heldout, prompts.train
    axis.scatter(*coordinates[held].T, color=GREY, alpha=0.3, **style)
    dots = axis.scatter(
        *coordinates[train].T,
        c=np.log2(np.maximum(prompts.relative[train], 2.0**-SPREAD)),
        cmap=colors,
        vmin=-SPREAD,
        vmax=SPREAD,
        alpha=0.85,
        **style,
    )
    axis.set_title(f"{len(train):,} training prompts by sampling weight", loc="left", fontsize=13)
    if held.any():
        about = f"pale: {int(held.sum()):,} held-out prompts, never drawn"
        axis.set_xlabel(about, loc="left", color="0.4")
    axis.set(xticks=[], yticks=[])
    axis.spines[["left", "bottom"]].set_visible(False)
    bar = figure.colorbar(dots, ax=axis, shrink=0.5, aspect=22, pad=0.01, ticks=[-1, 0, 1])
    bar.solids.set_alpha(1)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.ax.set_yticklabels(["½ × mean weight", "mean weight", "2 × mean weight"])
    bar.ax.set_title("isolated", fontsize=10, loc="left")
    bar.ax.set_xlabel("crowded", loc="left")
    save(figure, path)


def _distances(distances: np.ndarray, radius: float, path: Path) -> None:
    figure, axis = _figure(6, 3.4)
    axis.hist(distances, bins=40, color=BLUE)
    axis.axvline(radius, color=ORANGE, linestyle="--", linewidth=1.5, label="left: near-duplicates")
    axis.legend(frameon=False)
    axis.set(
        title="Distance of held-out prompts to the nearest training prompt",
        xlabel="distance",
        ylabel="held-out prompts",
    )
    save(figure, path)


def _absent(text: str, path: Path) -> None:
    figure, axis = _figure(6, 3.4)
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, ha="center", color="0.4")
    save(figure, path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis
