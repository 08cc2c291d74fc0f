"""``isodense inspect``: how even the weights are, whom they favour, what near-duplicates get."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from isodense.cli.commands._arguments import add_json, positive, print_json
from isodense.pipeline.layout import ARTIFACTS

NAMES = ("prompts", "density", "neighbors")
ABOUT = "Print the effective sample size, the most and least weighted prompts, and near-duplicates."


def add(commands: Any) -> None:
    """Add the command."""
    look = commands.add_parser(
        "inspect",
        help=ABOUT,
        description=f"{ABOUT} Weights are given over the mean weight, so they are also the draws "
        "expected in an epoch; the shared weight of a duplicate cluster is the sum over all in it.",
        epilog="example: isodense inspect --top 50 --width 160",
    )
    where = "folder of the artifacts, or what `isodense weigh --work` kept (data)"
    look.add_argument("--data", type=Path, default=Path("data"), help=where)
    for name in NAMES:
        look.add_argument(f"--{name}", type=Path, help=f"({ARTIFACTS[name].path})")
    shown = "prompts at each end, duplicate clusters or pairs to show (10)"
    about = "show the held-out prompts that are closest to a training prompt instead"
    look.add_argument("--heldout", action="store_true", help=about)
    look.add_argument("--top", type=positive, default=10, help=shown)
    look.add_argument("--width", type=positive, help="columns of a prompt (what there is room for)")
    add_json(look)
    look.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the overview, or the closest pairs across the split."""
    from isodense.inspect import heldout, overview

    prompts, density, neighbors = (getattr(args, name) or args.data / name for name in NAMES)
    if args.heldout:
        found = heldout.closest(prompts, density, neighbors, args.top)
    else:
        found = overview.overview(prompts, density, args.top)
    if args.json:
        print_json(found)
    else:
        describe = heldout.describe if args.heldout else overview.describe
        sys.stdout.write(describe(found, args.width))
