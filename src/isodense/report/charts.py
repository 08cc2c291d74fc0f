"""The report's charts as data: what the page's script draws, small whatever the set's size."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from isodense.density.plots import BLUE, GREY, ORANGE, label_shares
from isodense.pipeline.errors import DataError
from isodense.report.prompts import one_line

NAME = 100  # characters of a label
BARS = 40  # of a histogram
PLACES = 400  # at which a curve is given
LINE = 2000  # points of a line at most, so that a long training does not make a large page
TRAINING = {  # series of dvclive that come first, and what they are
    "reward": "reward of the sampled completions",
    "reward_std": "spread of rewards in a group",
    "frac_reward_zero_std": "groups whose completions all got one reward",
    "completion_tokens": "tokens of a completion",
    "clipped_ratio": "completions cut at the limit",
    "entropy": "entropy of the policy, nats",
    "loss": "loss",
    "grad_norm": "norm of the gradient",
}


def chart(name: str, title: str, x: str, y: str, **parts: Any) -> dict[str, Any]:
    """Return a chart.

    Parameters
    ----------
    name : str
        Id of the chart on the page, without ``chart-``.
    title, x, y : str
        Caption and names of the axes.
    **parts
        ``bars``, ``lines``, ``points``: lists of series; ``marks``: places of vertical lines;
        ``ticks``: places of the ticks of x; ``log``: axes on a log scale; ``note``: a sentence for
        the caption.
    """
    empty: dict[str, Any] = {name: [] for name in ("bars", "lines", "points", "marks", "ticks")}
    empty["log"] = []
    return {"id": f"chart-{name}", "title": title, "x": x, "y": y, "note": ""} | empty | parts


def weight_charts(
    density: np.ndarray, relative: np.ndarray, labels: list[str]
) -> list[dict[str, Any]]:
    """Return histograms of density and weights, weight against rank, and shares of labels.

    Parameters
    ----------
    density : ndarray of shape (n,)
        Log density of the training prompts.
    relative : ndarray of shape (n,)
        Weights of the training prompts over the mean weight.
    labels : list of str
        Labels of the training prompts, empty where unknown; if all are known there is a chart of
        their shares.
    """
    ranks = np.unique(np.geomspace(1, len(relative), PLACES).astype(np.int64))
    falling = np.sort(relative)[::-1]
    line = _line("prompts by weight", BLUE, ranks, falling[ranks - 1])
    charts = [
        chart(
            "density",
            "Density of the training prompts",
            "log density",
            "prompts",
            bars=[_bars(density)],
            note="The further right, the more crowded its neighbourhood.",
        ),
        chart(
            "weights",
            "Sampling weights",
            "weight / mean weight",
            "prompts",
            bars=[_bars(relative)],
            marks=[1.0],
            note="The dashed line is the mean: what uniform sampling gives every prompt.",
        ),
        chart(
            "rank",
            "Weight against rank",
            "rank",
            "weight / mean weight",
            lines=[line],
            log=["x"],
        ),
    ]
    return charts + ([_label_shares(labels, relative)] if all(labels) else [])


def heldout_chart(distances: np.ndarray, radius: float) -> dict[str, Any]:
    """Return a histogram of the held-out prompts' distances to the nearest training prompt."""
    return chart(
        "heldout",
        "Distance of held-out prompts to the nearest training prompt",
        "distance",
        "held-out prompts",
        bars=[_bars(distances)],
        marks=[radius],
        note="Left of the dashed line: near-duplicates of a training prompt.",
    )


def decile_charts(path: Path) -> list[dict[str, Any]]:
    """Return held-out reward by density decile, and the share of groups without signal.

    Parameters
    ----------
    path : Path
        ``reward_by_decile.csv``: columns decile, policy, reward, low, high; frac_reward_zero_std
        where prompts have several completions.
    """
    rows = _table(path, ",")
    x = "density decile (1 = most isolated)"
    mine = {
        name: [row for row in rows if row["policy"] == name] for name in ("base", "trained")
    }  # fmt: skip
    shifts = {"base": (ORANGE, -0.08), "trained": (BLUE, 0.08)}
    points = [
        {
            "name": name,
            "color": color,
            "shift": shift,  # so that the intervals stand side by side
            "x": [int(row["decile"]) for row in mine[name]],
            **{
                key: _rounded(_column(mine[name], column))
                for key, column in (("y", "reward"), ("low", "low"), ("high", "high"))
            },
        }
        for name, (color, shift) in shifts.items()
    ]
    title = "Held-out reward by density decile, with 95% intervals"
    ticks = points[0]["x"]
    charts = [chart("deciles", title, x, "reward", points=points, ticks=ticks)]
    if rows and "frac_reward_zero_std" in rows[0]:
        lines = [
            _line(
                name,
                color,
                _column(mine[name], "decile"),
                _column(mine[name], "frac_reward_zero_std"),
            )
            for name, (color, _) in shifts.items()
        ]
        title = "Held-out prompts whose completions all got one reward"
        charts.append(chart("zero-signal", title, x, "share of prompts", lines=lines, ticks=ticks))
    return charts


def realised_charts(path: Path) -> list[dict[str, Any]]:
    """Return what each density decile and label was to be drawn, was drawn, and was learnt from.

    Parameters
    ----------
    path : Path
        ``realised.csv`` of training, see :mod:`isodense.train.realised`.
    """
    rows = _table(path, ",")
    if not any(row.get("kind") == "decile" for row in rows):
        message = "it has no row of a density decile"
        raise DataError(message, path, hint="run `dvc repro train`")
    names = {
        "decile": ("density decile", "density decile (1 = most isolated)"),
        "label": ("label", "label, largest nominal share first"),
    }
    return [
        _realised(kind, *said, mine)
        for kind, said in names.items()
        if (mine := [row for row in rows if row["kind"] == kind])
    ]


def realised_shares(path: Path) -> list[dict[str, Any]]:
    """Return the shares of each label, the largest nominal one first; None where not known.

    Parameters
    ----------
    path : Path
        ``realised.csv`` of training.
    """
    rows = [row for row in _table(path, ",") if row["kind"] == "label"]
    shares = [_column(rows, f"{name}_share", "train") for name in ("nominal", "draw", "realised")]
    found = [
        {
            "name": one_line(row["name"], NAME),
            "prompts": int(row["prompts"]),
            **{
                key: "–" if np.isnan(share) else f"{share:.1%}"
                for key, share in zip(("nominal", "drawn", "realised"), each, strict=True)
            },
            "order": -each[0],
        }
        for row, *each in zip(rows, *shares, strict=True)
    ]
    return sorted(found, key=lambda row: row["order"])


def _realised(kind: str, title: str, x: str, rows: list[dict[str, str]]) -> dict[str, Any]:
    if kind == "label":
        rows = sorted(rows, key=lambda row: -float(row["nominal_share"]))
    places = list(range(1, len(rows) + 1))
    drawn, silent = (sum(_column(rows, n, "train")) for n in ("draws", "zero_signal"))
    shares = (f"{name}_share" for name in ("nominal", "realised"))
    nominal, learnt = (np.array(_column(rows, name, "train")) for name in shares)
    note = f"{silent:.0f} of {drawn:.0f} groups had one reward and taught nothing."
    if np.isfinite(learnt).all():
        note += f" Learnt and nominal shares differ by {np.abs(learnt - nominal).sum() / 2:.0%} "
        note += "of the total (half the sum of the differences)."
    return chart(
        f"realised-{kind}",
        f"Share of the draws and of what was learnt, by {title}",
        x,
        "share",
        lines=[
            _line("nominal: by weight", GREY, places, nominal),
            _line("drawn", ORANGE, places, _column(rows, "draw_share", "train")),
            _line("learnt from: absolute advantage", BLUE, places, learnt),
        ],
        ticks=places if kind == "decile" else [],
        note=note,
    )


def training_charts(folder: Path) -> list[dict[str, Any]]:
    """Return a chart for every series that dvclive wrote under `folder`, the reward first."""
    paths = {path.stem: path for path in sorted(folder.rglob("*.tsv"))}
    order = [name for name in TRAINING if name in paths]
    order += [name for name in paths if name not in TRAINING]
    charts = []
    for name in order:
        rows = _table(paths[name], "\t")
        steps, values = _column(rows, "step", "train"), _column(rows, name, "train")
        lines = [_line("single steps", GREY, steps, values, 1)]
        window = max(1, len(values) // 8)
        if len(values) > window > 1:
            smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
            label = f"mean of {window} steps"
            lines.append(_line(label, BLUE, steps[window - 1 :], smooth))
        title = TRAINING.get(name, name.replace("_", " "))
        title = title[0].upper() + title[1:]
        charts.append(chart(f"training-{name}", title, "step", name, lines=lines))
    return charts


def _label_shares(labels: list[str], relative: np.ndarray) -> dict[str, Any]:
    uniform, weighted = label_shares(labels, relative)
    rank = np.arange(1, len(uniform) + 1)
    places = np.unique(np.linspace(0, len(uniform) - 1, PLACES).astype(np.int64))
    return chart(
        "labels",
        "Share of each known label in training",
        "label, most frequent first",
        "share of draws, %",
        lines=[
            _line("uniform sampling", ORANGE, rank[places], uniform[places]),
            _line("density weights", BLUE, rank[places], weighted[places]),
        ],
        log=["y"],
        note=f"With all {len(uniform)} labels alike each would have {100 / len(uniform):.2g}%.",
    )


def _bars(values: np.ndarray) -> dict[str, Any]:
    counts, edges = np.histogram(values.astype(np.float64), bins=BARS if len(values) else 1)
    return {"color": BLUE, "edges": _rounded(edges), "counts": counts.tolist()}


def _line(name: str, color: str, x: Any, y: Any, width: int = 2) -> dict[str, Any]:
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), LINE)).astype(np.int64))
    x, y = np.asarray(x, dtype=np.float64)[kept], np.asarray(y, dtype=np.float64)[kept]
    return {"name": name, "color": color, "x": _rounded(x), "y": _rounded(y), "width": width}


def _rounded(values: Any) -> list[float | None]:
    """Return six digits of each; None, which JSON can hold, for what is not finite."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _table(path: Path, delimiter: str) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter=delimiter))


def _column(rows: list[dict[str, str]], name: str, stage: str = "evaluate") -> list[float]:
    try:
        return [float(row[name] or "nan") for row in rows]
    except (KeyError, TypeError, ValueError):
        message = f"a column {name!r} of numbers is missing"
        raise DataError(message, "a table of plots", hint=f"run `dvc repro {stage}`") from None
