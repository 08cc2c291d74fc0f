"""The page people look at: one HTML file that needs no network.

It gathers what the stages have measured: where the prompts lie, what the weights do, which prompts
they favour, how training went, and whether it helped. What has not been computed is named as
absent. Charts are drawn by Bokeh, whose script is part of the page; a policy in the page
(``Content-Security-Policy``) lets nothing be fetched and no other script run, so that a prompt
stays text whatever is in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from isodense.density.artifact import stored
from isodense.density.balance import effective_sample_size, weight_statistics
from isodense.density.kinds import load_kinds, shares
from isodense.density.opinion import sentences
from isodense.map.reader import load_coordinates
from isodense.pipeline.artifact import made_from_others, replacing, require_same_ids
from isodense.pipeline.jsonl import read_jsonl
from isodense.pipeline.notices import notices
from isodense.report.charts import (
    decile_charts,
    heldout_chart,
    realised_charts,
    realised_shares,
    training_charts,
    weight_charts,
)
from isodense.report.evaluation import POLICIES, Card, evaluation_cards, kinds, measures
from isodense.report.images import write_images
from isodense.report.map import packed_map
from isodense.report.prompts import Prompts, clusters, extremes, load, nearest_train, shown
from isodense.report.provenance import artifact, flat, read, versions
from isodense.report.regions import Region, changes, regions_of
from isodense.sampling.weights import Weights, load_weights

EXAMPLES = 12  # held-out prompts whose completions are shown


@dataclass(frozen=True)
class Sources:
    """What the report is made from; None or empty where it is not there.

    Attributes
    ----------
    prompts, density : Path
        Artifacts.
    neighbors, map : Path or None
        Artifacts.
    metrics : list of Path
        Metrics files of the stages.
    training : Path or None
        Folder of the series that training wrote.
    deciles, completions : Path or None
        What evaluation wrote.
    realised : Path or None
        What training wrote of draws and signals.
    manifests : list of Path
        Manifests of all artifacts, for the provenance.
    standalone : bool
        Whether there is no project, so that nothing is said of training and held-out prompts.
    """

    prompts: Path
    density: Path
    neighbors: Path | None = None
    map: Path | None = None
    metrics: list[Path] = field(default_factory=list)
    training: Path | None = None
    deciles: Path | None = None
    completions: Path | None = None
    manifests: list[Path] = field(default_factory=list)
    realised: Path | None = None
    standalone: bool = False


def write_report(
    sources: Sources,
    out: Path,
    images: Path | None = None,
    checkout: dict[str, Any] | None = None,
) -> None:
    """Write the page and its pictures.

    Parameters
    ----------
    sources : Sources
        What to show.
    out : Path
        The HTML file.
    images : Path, optional
        Folder of PNG files to write.
    checkout : dict, optional
        What :func:`isodense.report.provenance.checkout` returns, to be added to the page.

    Raises
    ------
    ArtifactError
        If an artifact is damaged, or two of them are of other prompts.
    """
    weights = load_weights(sources.density)
    prompts = load(sources.prompts, weights)
    radius = stored(weights).scales.radius
    near = None
    if sources.neighbors is not None:
        near = nearest_train(prompts, sources.neighbors, radius)
    coordinates, names, block = None, None, ""
    regions: list[Region] = []
    if sources.map is not None:
        coordinates, manifest = load_coordinates(sources.map)
        require_same_ids(prompts.ids_sha256, manifest, f"the coordinates in {sources.map}")
        region = None
        if sources.neighbors is not None:
            regions, region = regions_of(prompts, sources.neighbors, coordinates)
        names, block = packed_map(prompts, coordinates, regions, region)
        names["counted"] = not sources.standalone  # else `row` is a file's, not the prompts'
    train = prompts.train
    charts = {
        "weights": weight_charts(
            weights.density, prompts.relative[train], [prompts.labels[row] for row in train]
        ),
        "heldout": [heldout_chart(near.distances, radius)]
        if near and prompts.heldout.any()
        else [],
        "deciles": [] if sources.deciles is None else decile_charts(sources.deciles),
        "realised": [] if sources.realised is None else realised_charts(sources.realised),
        "training": [] if sources.training is None else training_charts(sources.training),
    }
    by = weights.metadata["params"].get("balance_by")
    most, least = extremes(prompts, sources.prompts)
    metrics = read_metrics(sources.metrics)
    evaluation = metrics.get("eval")
    duplicates = weight_statistics(weights.weights, weights.clusters)
    blocks = {
        "map": names,
        "charts": [chart for several in charts.values() for chart in several],
    }
    page = _template().render(
        **_scripts(),
        standalone=sources.standalone,
        blocks=_inert(blocks),
        block=block,
        labelled=any(prompts.labels),
        verdict=_verdict(duplicates, metrics),
        notices=_notices(metrics, sources.manifests),
        cards=_cards(prompts, weights, metrics),
        charts=charts,
        realised=[] if sources.realised is None else realised_shares(sources.realised),
        opinion=sentences(weights.metadata.get("opinion", {}), sources.standalone),
        regions=regions,
        changes=changes(regions),
        balance_by=by,
        balance=shares(load_kinds(sources.prompts, by), weights.weights) if by else [],
        rows=len(prompts),
        clusters=clusters(prompts, weights.clusters),
        duplicates=duplicates,
        most=most,
        least=least,
        near=near,
        radius=radius,
        measures=[] if evaluation is None else measures(evaluation),
        kinds=[] if evaluation is None else kinds(evaluation),
        completions=_completions(sources.completions),
        metrics=list(flat(metrics)),
        artifacts=[artifact(path) for path in sources.manifests],
        versions=versions(),
        checkout=checkout,
    )
    with replacing(out) as staging:
        staging.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    if images is not None:
        write_images(images, prompts, coordinates, near, radius)


def read_metrics(paths: Iterable[Path]) -> dict[str, Any]:
    """Return the metrics of several stages as one mapping."""
    merged: dict[str, Any] = {}
    for path in paths:
        merged |= json.loads(path.read_text(encoding="utf-8"))
    return merged


def _template() -> Any:
    source = files("isodense.report").joinpath("report.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined).from_string(source)


def _scripts() -> dict[str, Any]:
    """Return the page's scripts, and the hashes by which its policy knows them."""
    bokeh = files("bokeh").joinpath("server/static/js")
    scripts = [
        bokeh.joinpath("bokeh.min.js").read_text(encoding="utf-8"),
        bokeh.joinpath("bokeh-api.min.js").read_text(encoding="utf-8"),
        files("isodense.report").joinpath("report.js").read_text(encoding="utf-8"),
    ]
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    hashes = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    return {"scripts": scripts, "hashes": " ".join(hashes)}


def _inert(value: Any) -> str:
    """Return JSON that holds no character with a meaning in HTML."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _verdict(duplicates: dict[str, Any], metrics: dict[str, Any]) -> list[str]:
    """Return what happened, in parts of sentences; nothing where nothing is known."""
    said, evaluation = [], metrics.get("eval")
    if not metrics.get("train", {}).get("changed", 1):
        said.append("Training had no signal: no group had two different rewards, so the policy is")
        said.append("as it was.")
    if evaluation is not None:
        gain = evaluation["gain"]
        if gain.get("reward_low") is None:
            said.append("The held-out reward is not known.")
        elif gain["reward_low"] > 0:
            said.append("Training raised the held-out reward.")
        elif gain["reward_high"] < 0:
            said.append("Training lowered the held-out reward.")
        else:
            said.append("Training did not clearly change the held-out reward.")
        tokens = [evaluation[policy].get("tokens") for policy in POLICIES]
        if None not in tokens:
            said.append(f"Completions went from {tokens[0]:.0f} to {tokens[1]:.0f} tokens.")
    if duplicates["duplicate_clusters"]:
        share, mass = duplicates["duplicates_mass_uniform"], duplicates["duplicates_mass"]
        said.append(f"Near-duplicates are {share:.1%} of the training prompts,")
        said.append(f"and get {mass:.1%} of the draws.")
    return said


def _notices(metrics: dict[str, Any], manifests: Iterable[Path]) -> list[dict[str, Any]]:
    """Return what was left out, cut, fell back or failed, and artifacts that do not belong here."""
    others = made_from_others({path.parent.name: read(path) for path in manifests})
    strangers = [
        {"stage": name, "text": f"made from another {source} than is here", "serious": True}
        for name, source in others
    ]
    return [*strangers, *(asdict(notice) for notice in notices(metrics))]


def _cards(prompts: Prompts, weights: Weights, metrics: dict[str, Any]) -> list[dict[str, str]]:
    """Return the headline numbers of what there is, the result first."""
    cards = [*evaluation_cards(metrics.get("eval"))]
    relative = prompts.relative[prompts.train]
    note = f"and {int(prompts.heldout.sum()):,} held out"
    if "examples" in metrics.get("prompts", {}):
        note += f"; all from {metrics['prompts']['examples']:,} examples"
    cards.append(("training prompts", f"{len(relative):,}", note))
    cards += _left_out(metrics.get("download", {}), metrics.get("prompts", {}))
    size = effective_sample_size(relative)
    note = (
        f"effective sample size: weights of {relative.min():.2f} to {relative.max():.2f} × mean "
        f"are as even as {size:,.0f} equal ones"
    )
    cards.append(("balance of weights", f"{size / len(relative):.0%}", note))
    if "labels" in metrics.get("density", {}):
        labels = metrics["density"]["labels"]
        change = f"{labels['entropy_uniform']:.2f} → {labels['entropy']:.2f}"
        note = "uniform → density weights; entropy of the draws' labels, 1: all alike"
        cards.append(("balance of labels", change, note))
    cards += _reward_cards(metrics.get("reward", {}))
    return [dict(zip(("name", "value", "note"), card, strict=True)) for card in cards]


def _left_out(download: dict[str, Any], prompts: dict[str, Any]) -> Iterator[Card]:
    """Yield what was left out of the data, by why, and where examples disagree."""
    reasons = {"malformed": download.get("bad_rows", 0), **download.get("unusable", {})}
    reasons["without text"] = prompts.get("no_text", 0)
    reasons["conflicting, by request"] = prompts.get("dropped_conflicting", 0)
    if total := sum(reasons.values()):
        note = ", ".join(f"{count:,} {why}" for why, count in reasons.items() if count)
        yield "left out of the data", f"{total:,}", note
    if conflicting := prompts.get("conflicting"):
        most = max(conflicting.values())
        columns = ", ".join(f"{name} ({count:,})" for name, count in conflicting.items())
        yield "prompts whose examples disagree", f"{most:,}", f"by column: {columns}"


def _reward_cards(found: dict[str, Any]) -> Iterator[Card]:
    """Yield how good the reward is: on held-out pairs, or on the untrained policy's completions."""
    if "heldout" in found:
        pairs, length = found["heldout"], found.get("length_only")
        note = f"of held-out pairs, 95% interval {pairs['low']:.0%} to {pairs['high']:.0%}"
        note += f"; length alone {length['accuracy']:.0%}" if length else ""
        if "accuracy" in (clean := found.get("clean", {})):
            note += f"; {clean['accuracy']:.0%} of the {clean['pairs']} pairs of prompts without "
            note += "near-duplicates in training"
        yield "reward model accuracy", f"{pairs['accuracy']:.0%}", note
    if "never_solved" in found.get("sampled", {}):
        sampled = found["sampled"]
        note = (
            f"of {sampled['prompts']} training prompts the untrained policy solves sometimes, and "
            f"learns from these; never {sampled['never_solved']:.0%}, always "
            f"{sampled['always_solved']:.0%}; groups of one reward "
            f"{sampled['frac_reward_zero_std']:.0%}"
        )
        yield "solved before training", f"{sampled['sometimes_solved']:.0%}", note


def _completions(path: Path | None) -> list[dict[str, Any]]:
    """Return the first completions of the first prompts."""
    found: list[dict[str, Any]] = []
    if path is None:
        return found
    for _, row in read_jsonl(path):
        pair = {policy: shown(row[policy][0]) for policy in POLICIES}
        scores = {
            name: "–" if row[name][0] is None else f"{row[name][0]:.2f}"
            for name in ("base_reward", "trained_reward")
        }
        found.append({"text": shown(row["text"]), **pair, **scores})
        if len(found) == EXAMPLES:
            break
    return found
