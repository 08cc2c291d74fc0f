"""``isodense update``: take new prompts in, and say what they did to the weights."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isodense.cli.commands._arguments import add_json, not_negative, positive, print_json
from isodense.pipeline.layout import ARTIFACTS

if TYPE_CHECKING:
    from isodense.inspect.growth import Growth

ABOUT = "Take new prompts in, run `dvc repro density`, and say how the weights moved."
MOVED = 0.1  # change of weight over mean above which a prompt has moved
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def add(commands: Any) -> None:
    """Add the command."""
    grow = commands.add_parser(
        "update",
        help=ABOUT,
        description=f"{ABOUT} Files are added to download.local.files in params.yaml, which keeps "
        "its comments; without files, params.yaml is taken as you changed it. Weights are given "
        "over the mean weight. What DVC prints goes to standard error.",
        epilog="example: isodense update more.jsonl",
    )
    forms = "JSON, JSONL, parquet, CSV or Arrow, as the source local reads them"
    grow.add_argument("files", type=Path, nargs="*", help=forms)
    grow.add_argument("--since", metavar="REV", help="compare with this git revision")
    grow.add_argument("--top", type=not_negative, default=10, help="prompts to show of a kind (10)")
    grow.add_argument("--width", type=positive, help="columns of a prompt (what there is room for)")
    add_json(grow)
    grow.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Take the files in and print the summary."""
    from isodense.cli.append import update

    found = update(args.files, args.since)
    if args.json:
        print_json(measures(found))
        return
    sys.stdout.write(describe(found, ARTIFACTS["prompts"].path, args.top, args.width))


def measures(found: Growth) -> dict[str, Any]:
    """Return the summary as ``--json`` prints it, every new prompt among it by id."""
    import numpy as np

    ids = found.prompts.ids
    near = [
        {"id": ids[one.row], "other": ids[one.other], "distance": float(one.distance)}
        for one in found.near_duplicates
    ]
    values = np.quantile(found.ratios, QUANTILES) if len(found.ratios) else ()
    return {
        "before": found.before,
        "now": len(found.prompts),
        "appended": found.appended,
        "removed": found.removed,
        "new": [{"id": ids[row], "weight_over_mean": found.weights.get(row)} for row in found.new],
        "again": [{"id": ids[row], "before": was, "now": now} for row, was, now in found.again],
        "near_duplicates": near,
        "ratio_quantiles": {str(at): float(v) for at, v in zip(QUANTILES, values, strict=False)},
        "rank_correlation": found.agreement,
        "new_shards": None if found.shards is None else found.shards[0],
    }


def describe(found: Growth, prompts: Path, top: int, width: int | None = None) -> str:
    """Return the summary as text.

    Parameters
    ----------
    found : Growth
    prompts : Path
        The prompts as they are now.
    top : int
        Prompts to show of a kind.
    width : int, optional
        Columns of a prompt; by default what there is room for.
    """
    from isodense.inspect.growth import read_texts

    new = set(found.new)
    near = [one for one in found.near_duplicates if one.other not in new]
    rare = sorted(found.weights, key=lambda row: (-found.weights[row], row))[:top]
    again = sorted(found.again, key=lambda one: (one[1] - one[2], one[0]))[:top]
    rows = {*rare, *(row for one in near[:top] for row in (one.row, one.other))}
    texts = read_texts(prompts, rows | {one[0] for one in again})

    text = _counts(found) + _moves(found)
    among = len(found.near_duplicates) - len(near)
    others = f"; of other new ones: {among}" if among else ""
    text += f"\nnew near-duplicates of prompts that were there: {len(near)}{others}\n"
    pairs = []
    for one in near[:top]:
        split = "" if one.row in found.weights else "held out"
        pairs += [(f"{one.distance:.3f}", split, texts[one.row]), ("", "of", texts[one.other])]
    text += _table(("distance", "", "prompt"), pairs, width)
    if found.again:
        text += f"\nprompts that were there and have more occurrences now: {len(found.again)}\n"
    counts = [(str(before), str(now), texts[row]) for row, before, now in again]
    text += _table(("before", "now", "prompt"), counts, width)
    if rare:
        text += "\nmost weighted new prompts, rare or garbage: have a look\n"
    weights = [(f"{found.weights[row]:.2f}", texts[row]) for row in rare]
    return text + _table(("weight", "prompt"), weights, width)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> str:
    """Return rows that end in a prompt as text; nothing where there are none."""
    from isodense.pipeline.terminal import rendered, table

    if not rows:
        return ""
    return rendered(table(header, rows, left=("prompt",), text="prompt", width=width), indent=2)


def _counts(found: Growth) -> str:
    heldout = len(found.new) - len(found.weights)
    text = f"{found.before} prompts before, {len(found.prompts)} now: {len(found.new)} new"
    text += f", {heldout} of them held out\n" if found.new else "\n"
    if found.removed:
        text += f"prompts that are gone: {found.removed}\n"
    if found.shards:
        text += f"new shards of embeddings: {found.shards[0]} of {found.shards[1]}\n"
    if not found.appended:
        text += (
            "the prompts that were there are no longer the first rows in the same order: "
            "shards from the first difference on are others\n"
        )
    return text


def _moves(found: Growth) -> str:
    import numpy as np

    ratios = found.ratios
    if not len(ratios):
        return "\nno training prompt was there before\n"
    values = ", ".join(f"{value:.2f}" for value in np.quantile(ratios, QUANTILES))
    names = ", ".join(f"{quantile:.0%}" for quantile in QUANTILES)
    moved = (np.abs(ratios - 1) > MOVED).mean()
    halved = (ratios <= 1 / 2).mean()
    text = (
        f"\nweights of the {len(ratios)} training prompts that were there, now over before\n"
        f"  quantiles {names}: {values}\n"
        f"  moved by more than {MOVED:.0%}: {moved:.1%}; halved or less: {halved:.1%}\n"
    )
    if found.agreement is not None:
        text += f"  rank correlation: {found.agreement:.3f}\n"
    return text
