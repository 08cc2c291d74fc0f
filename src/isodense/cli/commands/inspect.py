"""``isodense inspect``: how even the weights are, whom they favour, what near-duplicates get."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from isodense.cli.commands._arguments import positive
from isodense.pipeline.layout import ARTIFACTS

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
    for name in ("density", "prompts"):
        default = ARTIFACTS[name].path
        look.add_argument(f"--{name}", type=Path, default=default, help=f"({default})")
    shown = "prompts at each end, and duplicate clusters, to show (10)"
    look.add_argument("--top", type=positive, default=10, help=shown)
    look.add_argument("--width", type=positive, help="columns of a prompt (what there is room for)")
    look.add_argument("--json", action="store_true", help="print JSON")
    look.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the overview."""
    from isodense.inspect.overview import describe, overview

    found = overview(args.prompts, args.density, args.top)
    text = json.dumps(found, indent=2) + "\n" if args.json else describe(found, args.width)
    sys.stdout.write(text)
