"""The page people look at: ``reports/index.html``, one file, no network.

It gathers what the stages have measured: what the weights do, which prompts they favour, how
training went, and whether it helped. Prompts are untrusted text; the template escapes them.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from isodense.artifacts import require_same_ids
from isodense.plots import BLUE, GREY, ORANGE, save
from isodense.promptset import PromptSet
from isodense.weights import Weights

SHOWN = 20  # most and least weighted prompts
EXAMPLES = 12

MEASURES = (  # of both policies: metric, name on the page, format, what it says
    ("reward", "reward", ".2f", "what training raises; mean over the prompts"),
    ("zero_signal", "groups without signal", ".0%", "prompts whose completions all got one reward"),
    ("kl", "KL to the base policy", ".2f", "nats per completion, estimated"),
    ("kl_per_token", "KL per token", ".3f", "nats"),
    ("vendi", "Vendi score", ".1f", "effective number of different answers, one per prompt"),
    ("vendi_within", "Vendi score within prompts", ".2f", "the same among answers to one prompt"),
    ("self_bleu", "self-BLEU", ".1f", "overlap of answers to different prompts; 100: all alike"),
    ("distinct_1", "distinct words", ".0%", "different words among all words"),
    ("distinct_2", "distinct pairs of words", ".0%", "different neighbours among all neighbours"),
    ("repetition", "repetition", ".0%", "runs of four words that the completion had before"),
    ("em_dash", "em-dash", ".1%", "completions that hold one"),
    ("not_just_but", "“not just … but”", ".1%", "completions that hold it, or only, or merely"),
    ("tokens", "tokens", ".1f", "mean length of a completion"),
    ("truncated", "truncated", ".0%", "completions cut at the limit"),
)


def write_report(
    out: Path,
    weights: Weights,
    train: PromptSet,
    metrics: dict[str, Any],
    figures: dict[str, bytes],
    completions: list[dict[str, Any]],
) -> None:
    """Write the page.

    Parameters
    ----------
    out : Path
        The HTML file.
    weights : Weights
        Of the training prompts.
    train : PromptSet
        The training prompts, in the same order.
    metrics : dict
        Metrics of all stages, nested.
    figures : dict of str to bytes
        PNG files by caption, in the order of the page.
    completions : list of dict
        Rows of ``completions.jsonl``.
    """
    require_same_ids(train.ids_sha256, weights.metadata, "the weights")
    source = files("isodense").joinpath("report.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(source)
    order = np.argsort(-weights.weights, kind="stable")
    page = template.render(
        cards=_cards(metrics),
        measures=_measures(metrics["eval"]),
        figures=[
            {"caption": caption, "data": base64.b64encode(png).decode()}
            for caption, png in figures.items()
        ],
        most=_table(weights, train, order[:SHOWN]),
        least=_table(weights, train, order[::-1][:SHOWN]),
        completions=completions[:EXAMPLES],
        metrics=list(_flat(metrics)),
        inputs=weights.metadata["inputs"] | {"ids_sha256": weights.metadata["ids_sha256"]},
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8", newline="\n")


def read_metrics(paths: Iterable[Path]) -> dict[str, Any]:
    """Return the metrics of several stages as one mapping."""
    merged: dict[str, Any] = {}
    for path in paths:
        merged |= json.loads(path.read_text(encoding="utf-8"))
    return merged


def training_figure(folder: Path) -> bytes:
    """Return a PNG of the reward over training steps.

    Parameters
    ----------
    folder : Path
        What dvclive wrote: ``plots/metrics/**/reward.tsv``.
    """
    from matplotlib.figure import Figure

    (path,) = folder.rglob("reward.tsv")
    with path.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    steps = [int(row["step"]) for row in rows]
    reward = np.array([float(row["reward"]) for row in rows])
    window = max(1, len(reward) // 8)
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.plot(steps, reward, color=GREY, linewidth=1, label="each step")
    if len(reward) > window:
        smooth = np.convolve(reward, np.ones(window) / window, mode="valid")
        label = f"mean of {window} steps"
        axis.plot(steps[window - 1 :], smooth, color=BLUE, linewidth=2, label=label)
    axis.set(title="Reward of the sampled completions", xlabel="step", ylabel="reward")
    axis.legend(frameon=False)
    return _png(figure)


def decile_figure(path: Path) -> bytes:
    """Return a PNG of reward and zero signal by density decile, base against trained.

    Parameters
    ----------
    path : Path
        ``reward_by_decile.csv``: columns decile, policy, reward, low, high; zero_signal where
        prompts have several completions.
    """
    from matplotlib.figure import Figure

    with path.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    grouped = "zero_signal" in rows[0]
    figure = Figure(figsize=(9 if grouped else 6, 3.4), layout="constrained")
    axes = figure.subplots(1, 2 if grouped else 1, squeeze=False)[0]
    for shift, color, policy in ((-0.08, ORANGE, "base"), (0.08, BLUE, "trained")):
        mine = [row for row in rows if row["policy"] == policy]
        column = {
            name: np.array([float(row[name]) for row in mine])
            for name in rows[0]
            if name != "policy"
        }
        place, middle = column["decile"] + shift, column["reward"]
        error = (middle - column["low"], column["high"] - middle)
        axes[0].errorbar(place, middle, error, fmt="o", color=color, label=policy)
        if grouped:
            axes[1].bar(column["decile"] + 2 * shift, 100 * column["zero_signal"], 0.3, color=color)
    axes[0].set(title="Held-out reward", ylabel="reward, 95% interval")
    if grouped:
        title = "Prompts whose completions all got one reward"
        axes[1].set(title=title, ylabel="share, %", ylim=(0, 100))
    for axis in axes:
        axis.set_xlabel("density decile (1 = most isolated)")
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return _png(figure)


def _cards(metrics: dict[str, Any]) -> list[dict[str, str]]:
    """Return the headline numbers."""
    density, reward, found = metrics["density"], metrics["reward"], metrics["eval"]
    heldout, length, gain = reward["heldout"], reward["length_only"], found["gain"]
    cards = [
        (
            "training prompts",
            f"{density['prompts']:,}",
            f"of {metrics['prompts']['pairs']:,} pairs",
        ),
        (
            "effective sample size",
            f"{density['ess_share']:.0%}",
            f"largest weight {density['max_over_mean']:.1f} x mean",
        ),
        (
            "reward accuracy, held out",
            f"{heldout['accuracy']:.0%}",
            f"{heldout['low']:.0%} to {heldout['high']:.0%}; length alone {length['accuracy']:.0%}",
        ),
        (
            "held-out reward",
            f"{found['base']['reward']:.2f} → {found['trained']['reward']:.2f}",
            f"gain {gain['reward']:+.2f}, 95% interval {gain['reward_low']:+.2f} to "
            f"{gain['reward_high']:+.2f}",
        ),
    ]
    if "labels" in density:
        labels = density["labels"]
        note = f"of known labels, in draws; uniform {labels['entropy_uniform']:.3f}"
        cards.insert(2, ("evenness", f"{labels['entropy']:.3f}", note))
    return [dict(zip(("name", "value", "note"), card, strict=True)) for card in cards]


def _measures(found: dict[str, Any]) -> list[dict[str, str]]:
    """Return the rows of base against trained; what was not measured is a dash."""
    return [
        {
            "name": name,
            "note": note,
            **{
                policy: format(found[policy][key], form) if key in found[policy] else "–"
                for policy in ("base", "trained")
            },
        }
        for key, name, form, note in MEASURES
        if key in found["trained"]
    ]


def _png(figure: Any) -> bytes:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    save(figure, stream)
    return stream.getvalue()


def _table(weights: Weights, train: PromptSet, rows: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "weight": f"{weights.weights[row] * len(train):.2f}",
            "count": train.rows[row]["count"],
            "label": train.rows[row].get("label", ""),
            "text": train.rows[row]["text"],
        }
        for row in rows
    ]


def _flat(metrics: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
