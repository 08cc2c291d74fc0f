"""``isodense merge``: join embeddings that were computed apart."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from isodense.cli.commands._arguments import add_json, print_json


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "merge",
        help=run.__doc__,
        description=f"{run.__doc__} Parts are data folders, which hold prompts/ and embeddings/, "
        "or embeddings folders. Of a prompt in several parts the first is kept.",
        epilog="example: isodense merge part1/data part2/data --output merged",
    )
    parser.add_argument("parts", type=Path, nargs="+", help="two or more folders")
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Join embeddings that were computed apart, without computing a row again."""
    from isodense.cli.merge import merge

    report = merge(args.parts, args.output)
    if args.json:
        print_json(report)
        return
    sys.stdout.write(
        f"{args.output}: {report['rows']} rows in {report['shards']} shards, "
        f"{report['collapsed']} repeated prompts collapsed\n"
    )
