"""What came of a comparison: each arm's difference to the first, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isodense.evaluate.intervals import interval
from isodense.pipeline.terminal import rendered, table

MEASURES = {
    "reward by one judge": "judge.all",
    "… sparsest third of the prompts": "judge.sparse",
    "… most crowded third": "judge.crowded",
    "gain in the arm's reward": "eval.gain.reward",
    "reward, mean over labels": "eval.trained.reward_over_labels",
    "pass@1": "eval.trained.pass_at_1",
    "pass@1, mean over labels": "eval.trained.pass_at_1_over_labels",
    "accuracy of the reward": "reward.heldout.accuracy",
    "distinct-2": "eval.trained.distinct_2",
    "self-BLEU": "eval.trained.self_bleu",
    "Vendi score": "eval.trained.vendi",
    "Vendi score within prompts": "eval.trained.vendi_within",
    "frac_reward_zero_std": "eval.trained.frac_reward_zero_std",
    "KL to the base, nats": "eval.trained.kl",
    "em-dash": "eval.trained.em_dash",
    "not just … but": "eval.trained.not_just_but",
    "tokens": "eval.trained.tokens",
    "clipped_ratio": "eval.trained.clipped_ratio",
    "distinct prompts trained on": "train.distinct_prompts",
    "distinct labels trained on": "train.distinct_labels",
}
CLEAR = "the 95% interval is clear of 0, not corrected for how many there are."


@dataclass(frozen=True)
class Row:
    """One measure of one arm.

    Attributes
    ----------
    measure, arm : str
    values : ndarray of shape (n_seeds,), float64
    differences : ndarray of shape (n_seeds,), float64
        To the first arm, seed by seed.
    """

    measure: str
    arm: str
    values: np.ndarray
    differences: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """Return the row with means and intervals."""
        mean, low, high = interval(self.values)
        difference, difference_low, difference_high = interval(self.differences)
        return {
            "measure": self.measure,
            "arm": self.arm,
            "values": [round(float(value), 6) for value in self.values],
            "mean": mean,
            "low": low,
            "high": high,
            "difference": difference,
            "difference_low": difference_low,
            "difference_high": difference_high,
        }


def tabulate(found: dict[str, list[dict[str, Any]]]) -> list[Row]:
    """Return a row for each measure that all runs have, and each arm.

    Parameters
    ----------
    found : dict
        Metrics of each arm's runs in the order of seeds, the arm to compare with first.
    """
    rows = []
    baseline = next(iter(found))
    for measure, path in MEASURES.items():
        values = {arm: [_look_up(metrics, path) for metrics in found[arm]] for arm in found}
        if any(value is None for row in values.values() for value in row):
            continue
        arrays = {arm: np.array(row, dtype=np.float64) for arm, row in values.items()}
        rows += [Row(measure, arm, row, row - arrays[baseline]) for arm, row in arrays.items()]
    return rows


def _look_up(metrics: Any, path: str) -> float | None:
    for key in path.split("."):
        metrics = metrics.get(key) if isinstance(metrics, dict) else None
    return metrics


def markdown(rows: Sequence[Row]) -> str:
    """Return a Markdown table: a line for each measure, a column for each arm's difference."""
    header, *lines = _grid(rows, clear="**{}**")
    rule = ["---", *["---:"] * (len(header) - 1)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *lines))
    return f"{text}\nBold: {CLEAR}\n"


def describe(rows: Sequence[Row]) -> str:
    """Return the same table as text for a terminal."""
    header, *lines = _grid(rows, clear="{}*")
    return f"{rendered(table(header, lines, left=header[:1]))}\n*: {CLEAR}\n"


def _grid(rows: Sequence[Row], clear: str) -> list[list[str]]:
    """Return the cells, header first; `clear` marks a difference that is clear of 0."""
    arms = list(dict.fromkeys(row.arm for row in rows))
    lines = [["measure", arms[0], *(f"{arm} − {arms[0]}" for arm in arms[1:])]]
    for measure in dict.fromkeys(row.measure for row in rows):
        of_arm = {row.arm: row.as_dict() for row in rows if row.measure == measure}
        cells = [_cell(of_arm[arm], "difference", "+", clear) for arm in arms[1:]]
        lines.append([measure, _cell(of_arm[arms[0]], "", "", "{}"), *cells])
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


def figure(rows: Sequence[Row], path: Path) -> None:
    """Draw the differences to the first arm, with intervals, of what differs at all, as a PNG."""
    from matplotlib.figure import Figure

    from isodense.density.plots import BLUE, GREY, save

    measures = list(dict.fromkeys(row.measure for row in rows if row.differences.any()))
    arms = list(dict.fromkeys(row.arm for row in rows))[1:]
    height = max(1, -(-len(measures) // 3))
    made = Figure(figsize=(13, (0.55 + 0.3 * len(arms)) * height + 0.5), layout="constrained")
    axes = made.subplots(height, 3, squeeze=False).ravel()
    for axis, measure in zip(axes, measures, strict=False):
        for place, arm in enumerate(arms):
            (row,) = (row for row in rows if (row.measure, row.arm) == (measure, arm))
            mean, low, high = interval(row.differences)
            if low is not None and high is not None:
                axis.plot([low, high], [place, place], color=BLUE, linewidth=2)
            axis.plot(row.differences, [place] * len(row.differences), "|", color=GREY)
            axis.plot(mean, place, "o", color=BLUE)
        axis.axvline(0, color=GREY, linestyle="--", linewidth=1)
        axis.set(
            title=measure, yticks=range(len(arms)), yticklabels=arms, ylim=(len(arms) - 0.5, -0.5)
        )
        axis.locator_params(axis="x", nbins=5)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(measures) :]:
        axis.remove()
    made.suptitle("Difference to the first arm, 95% interval over seeds")
    save(made, path)
