"""What came of a comparison: each arm's difference to the first, with intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isodense.evaluate.intervals import interval
from isodense.experiments.measures import MEASURES, chosen
from isodense.experiments.power import seeds_needed
from isodense.pipeline.terminal import rendered, table

CLEAR = (
    "the 95% interval over seeds is clear of 0, not corrected for how many there are. "
    "Seeds to show it: with 80% power at 5%, if the true difference is the one seen."
)


@dataclass(frozen=True)
class Row:
    """One measure of one arm.

    Attributes
    ----------
    measure : str
        Key of :data:`isodense.experiments.measures.MEASURES`.
    arm : str
    values : ndarray of shape (n_seeds,), float64
    differences : ndarray of shape (n_seeds,), float64
        To the first arm, seed by seed.
    """

    measure: str
    arm: str
    values: np.ndarray
    differences: np.ndarray

    @property
    def title(self) -> str:
        """What people call the measure."""
        return MEASURES[self.measure]

    @property
    def agreeing(self) -> int:
        """Number of seeds whose difference has the sign of the mean difference."""
        return int((self.differences * self.differences.mean() > 0).sum())

    def as_dict(self) -> dict[str, Any]:
        """Return the row with means, intervals, agreement and power."""
        mean, low, high = interval(self.values)
        difference, difference_low, difference_high = interval(self.differences)
        return {
            "measure": self.measure,
            "title": self.title,
            "arm": self.arm,
            "values": [round(float(value), 6) for value in self.values],
            "mean": mean,
            "low": low,
            "high": high,
            "differences": [round(float(value), 6) for value in self.differences],
            "difference": difference,
            "difference_low": difference_low,
            "difference_high": difference_high,
            "seeds_with_its_sign": self.agreeing,
            "seeds_needed": seeds_needed(self.differences),
        }


def tabulate(found: dict[str, list[dict[str, Any]]], decide: Sequence[str]) -> list[Row]:
    """Return a row for each measure that all runs have, and each arm; what decides comes first.

    Parameters
    ----------
    found : dict
        Metrics of each arm's runs in the order of seeds, the arm to compare with first.
    decide : sequence of str
        See :func:`isodense.experiments.measures.deciding`.

    Raises
    ------
    IsodenseError
        If not all runs have a measure that decides.
    """
    values = {
        measure: {arm: [_look_up(metrics, measure) for metrics in found[arm]] for arm in found}
        for measure in MEASURES
    }
    present = [
        measure
        for measure, by_arm in values.items()
        if not any(value is None for row in by_arm.values() for value in row)
    ]
    first = chosen(decide, present)
    present.sort(key=lambda measure: measure != first)
    baseline = next(iter(found))
    rows = []
    for measure in present:
        arrays = {arm: np.array(row, dtype=float) for arm, row in values[measure].items()}
        rows += [Row(measure, arm, row, row - arrays[baseline]) for arm, row in arrays.items()]
    return rows


def _look_up(metrics: Any, path: str) -> float | None:
    for key in path.split("."):
        metrics = metrics.get(key) if isinstance(metrics, dict) else None
    return None if metrics is None or math.isnan(metrics) else float(metrics)


def markdown(rows: Sequence[Row]) -> str:
    """Return Markdown: the measure that decides, a line for each arm; then the other measures."""
    parts = [_heading(rows, "**{}**"), _markdown(_decided(rows, "**{}**"))]
    parts += [_markdown(_grid(others, "**{}**"))] if (others := _others(rows)) else []
    return "\n".join([*parts, f"Bold: {CLEAR}\n"])


def describe(rows: Sequence[Row]) -> str:
    """Return the same as text for a terminal."""
    tables = [_decided(rows, "{}*"), *([_grid(others, "{}*")] if (others := _others(rows)) else [])]
    shown = [rendered(table(head, lines, left=head[:1])) for head, *lines in tables]
    return "\n".join([_heading(rows, "{}"), *shown, f"*: {CLEAR}\n"])


def _heading(rows: Sequence[Row], strong: str) -> str:
    seeds = len(rows[0].values)
    name = strong.format(rows[0].title)
    return f"What decides: {name} ({rows[0].measure}), {seeds} seeds of each arm.\n"


def _others(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.measure != rows[0].measure]


def _markdown(grid: list[list[str]]) -> str:
    header, *lines = grid
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *lines))


def _decided(rows: Sequence[Row], clear: str) -> list[list[str]]:
    """Return the cells of the measure that decides, header first."""
    lines = [["arm", "mean", f"− {rows[0].arm}", "seeds with that sign", "seeds to show it"]]
    for row in (row for row in rows if row.measure == rows[0].measure):
        found = row.as_dict()
        mean = _cell(found, "", "", "{}")
        if row.arm == rows[0].arm:
            lines.append([row.arm, mean, "", "", ""])
            continue
        needed = "–" if found["seeds_needed"] is None else f"{found['seeds_needed']:,}"
        agreeing = f"{row.agreeing} of {len(row.values)}"
        lines.append([row.arm, mean, _cell(found, "difference", "+", clear), agreeing, needed])
    return lines


def _grid(rows: Sequence[Row], clear: str) -> list[list[str]]:
    """Return a line of cells for each measure, header first; `clear` marks what is clear of 0."""
    arms = list(dict.fromkeys(row.arm for row in rows))
    lines = [["measure", arms[0], *(f"{arm} − {arms[0]}" for arm in arms[1:])]]
    for measure in dict.fromkeys(row.measure for row in rows):
        of_arm = {row.arm: row.as_dict() for row in rows if row.measure == measure}
        cells = [_cell(of_arm[arm], "difference", "+", clear) for arm in arms[1:]]
        lines.append([MEASURES[measure], _cell(of_arm[arms[0]], "", "", "{}"), *cells])
    return lines


def _cell(row: dict[str, Any], what: str, sign: str, clear: str) -> str:
    prefix = f"{what}_" if what else ""
    mean, low, high = (row[key] for key in (what or "mean", f"{prefix}low", f"{prefix}high"))
    if low is None:  # of one seed
        return f"{mean:{sign}.3f}".replace("-", "−")
    digits = 3 if max(abs(mean), abs(low), abs(high)) < 10 else 1
    shown = [f"{value:{sign}.{digits}f}".replace("-", "−") for value in (mean, low, high)]
    if low == high:  # the same with every seed
        return shown[0]
    found = clear.format(shown[0]) if low > 0 or high < 0 else shown[0]
    return f"{found} ({shown[1]} to {shown[2]})"
