"""``isodense export``: prompts and weights, or draws from them, for other code."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from isodense.cli.commands._arguments import add_json, not_negative, positive, print_json, share
from isodense.cli.trainer_formats import FORMATS, KNOWN
from isodense.pipeline.errors import IsodenseError
from isodense.sampling.schemes import SAMPLING


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "export",
        help=run.__doc__,
        description=f"{run.__doc__} prototype: a folder with embeddings.npy, "
        "density_weights.npy, prompts_list.json and embeddings_metadata.json; parquet and jsonl: "
        "one file with id, prompt, text, count, weight, density and the data's own columns; verl "
        "and openrlhf: one file in that trainer's columns, parquet and JSONL. "
        "docs/other-trainers.md says how to use them.",
        epilog="example: isodense export --format verl --draws 4096 --output plan.parquet",
    )
    parser.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    parser.add_argument("--output", type=Path, required=True, help="new folder or file")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the artifacts")
    parser.add_argument("--vectors", action="store_true", help="add the vectors to the file")
    parser.add_argument("--encoder", type=Path, help="model folder, for the prototype's metadata")
    plan = "write a plan: one row per draw, in the order of the draws"
    parser.add_argument("--draws", type=positive, metavar="N", help=plan)
    parser.add_argument("--seed", type=not_negative, help="of the draws (0)")
    odds = "what the odds of a draw follow (density)"
    parser.add_argument("--sampling", choices=SAMPLING, help=odds)
    floor = "least factor of the difficulty, as train.difficulty_floor (0)"
    parser.add_argument("--floor", type=share, metavar="SHARE", help=floor)
    parser.add_argument("--heldout", type=Path, metavar="FILE", help="write held-out prompts here")
    names = ", ".join(KNOWN)
    truth = f"of verl and openrlhf: where the ground truth is (the data's reward_model, or {names})"
    parser.add_argument("--ground-truth", metavar="COLUMN", help=truth)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the training prompts with their weights, or draws from them, for other code."""
    from isodense.cli.export import Draws, export

    how = {name: getattr(args, name) for name in ("seed", "sampling", "floor")}
    given = {name: value for name, value in how.items() if value is not None}
    if given and args.draws is None:
        raise IsodenseError(f"--{next(iter(given))} says how to draw", "add --draws N")
    draws = None if args.draws is None else Draws(args.draws, **given)
    report = export(
        args.data,
        args.format,
        args.output,
        args.vectors,
        args.encoder,
        draws,
        args.heldout,
        args.ground_truth,
    )
    if args.json:
        print_json(report)
        return
    kind = "draws" if draws else "prompts"
    sys.stdout.write(f"{args.output}: {report['rows']} {kind} as {report['format']}\n")
    if args.heldout:
        sys.stdout.write(f"{args.heldout}: {report['heldout']} held-out prompts\n")
    if "ground_truth" in report:
        sys.stdout.write(_truth(report))


def _truth(report: dict[str, Any]) -> str:
    """Return a line that says where the ground truth came from and what became of it."""
    if report["ground_truth"] is None:
        return "ground truth: none, no column is named as one; --ground-truth COLUMN names it\n"
    met = "".join(f", {count} {what}" for what, count in report["met"].items() if count)
    return f"ground truth: column {report['ground_truth']}{met}\n"
