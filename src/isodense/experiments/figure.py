"""The figure of a comparison: what decides, large; then everything else that differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isodense.evaluate.intervals import interval
from isodense.experiments.differences import Row

COLUMNS = 3
PER_ARM, AROUND = 0.3, 0.75  # inches: the height of an arm, and of what is around the axes


def figure(rows: Sequence[Row], path: Path) -> None:
    """Draw differences to the first arm as a PNG: 95% intervals, and each seed as a tick.

    Parameters
    ----------
    rows : sequence of Row
        What decides first. Its arms are sorted by difference, and so are those of other measures.
    path : Path
    """
    from matplotlib.figure import Figure

    from isodense.density.plots import save

    decides, baseline = rows[0].measure, rows[0].arm
    leading = [row for row in rows if row.measure == decides and row.arm != baseline]
    leading.sort(key=lambda row: -row.differences.mean())
    arms = [row.arm for row in leading]
    others = list(dict.fromkeys(row.measure for row in rows if row.differences.any()))
    others = [measure for measure in others if measure != decides]
    lines = -(-len(others) // COLUMNS)
    height = PER_ARM * len(arms) + AROUND
    made = Figure(figsize=(13, 2 * height + lines * height + 0.5), layout="constrained")
    grid = made.add_gridspec(lines + 1, COLUMNS, height_ratios=[2, *[1] * lines])
    _draw(made.add_subplot(grid[0, :]), leading, large=True)
    for number, measure in enumerate(others):
        by_arm = {row.arm: row for row in rows if row.measure == measure}
        axis = made.add_subplot(grid[1 + number // COLUMNS, number % COLUMNS])
        _draw(axis, [by_arm[arm] for arm in arms])
    seeds = len(rows[0].values)
    made.suptitle(f"Difference to {baseline}, 95% interval over {seeds} seeds", fontsize=13)
    save(made, path)


def _draw(axis: Any, rows: Sequence[Row], large: bool = False) -> None:
    """Draw one measure, a line for each arm."""
    from isodense.density.plots import BLUE, GREY

    for place, row in enumerate(rows):
        mean, low, high = interval(row.differences)
        if low is not None and high is not None:
            axis.plot([low, high], [place, place], color=BLUE, linewidth=4 if large else 2)
        ticks = np.full(len(row.differences), place)
        axis.plot(row.differences, ticks, "|", color=GREY, markersize=14 if large else 6)
        axis.plot(mean, place, "o", color=BLUE, markersize=9 if large else 6)
    axis.axvline(0, color=GREY, linestyle="--", linewidth=1)
    axis.set(yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5))
    axis.set_yticklabels([row.arm for row in rows], fontsize=12 if large else 9)
    axis.set_title(
        rows[0].title, fontsize=13 if large else 10, fontweight="bold" if large else None
    )
    axis.locator_params(axis="x", nbins=9 if large else 5)
    axis.spines[["top", "right"]].set_visible(False)
