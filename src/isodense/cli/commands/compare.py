"""``isodense compare``: ways to sample, several seeds each, as DVC experiments."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from isodense.cli.commands._arguments import add_json, positive, print_json
from isodense.experiments.arms import ARMS

OUTPUT = Path("reports/compare")
DEFAULT = ["uniform", "density"]


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "compare",
        help=run.__doc__,
        description=f"{run.__doc__} Arms: uniform (every distinct prompt alike), density (by the "
        "weights), count (by occurrences), oracle (each label alike), inverted (one over the "
        "weights, the wrong way round), density-0.9 and density-0.7 (gentler and stronger "
        "weights), semdedup (near-duplicates left out, then uniform), clusters (each cluster of "
        "embeddings alike), density+redraw (train.redraw: decile), difficulty and "
        "density+difficulty, density-reward (the weights in the reward only), density-both. All "
        "have the same steps and completions. Runs that exist already are not run again, so a "
        "comparison can be cut off, or get more seeds.",
        epilog="example: isodense compare --arms uniform density inverted --seeds 8 --jobs 2 "
        "-S base.seed={seed} -S train.max_steps=240",
    )
    parser.add_argument(
        "--arms",
        choices=ARMS,
        nargs="+",
        default=DEFAULT,
        metavar="ARM",
        help=f"first: the base ({' '.join(DEFAULT)})",
    )
    parser.add_argument("--seeds", type=positive, default=3, help="of draws and completions (3)")
    parser.add_argument(
        "-S",
        "--set-param",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for all arms; {seed} in it is the run's seed, 0, 1, …",
    )
    parser.add_argument("--jobs", type=positive, default=1, help="experiments at once (1)")
    parser.add_argument(
        "--measure",
        metavar="NAME",
        help="the metric that decides, noted before the runs, as pass_at_1_over_labels (by default "
        "the mean over labels, where there are any: of answer_probability with evaluate.answer, of "
        "pass@1 with reward functions, else of the judge's reward)",
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"folder to write ({OUTPUT})")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run ways to sample as DVC experiments, several seeds each, and tabulate what came out."""
    from isodense.experiments.compare import compare
    from isodense.experiments.differences import describe

    chosen = (args.arms, args.seeds, args.set_param)
    rows = compare(*chosen, args.output, args.jobs, args.measure)
    if args.json:
        print_json([row.as_dict() for row in rows])
        return
    sys.stdout.write(f"{describe(rows)}\nalso in {args.output}, with a figure\n")
