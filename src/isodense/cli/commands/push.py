"""``isodense push``: weights as a data set on the Hugging Face Hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from isodense.cli.commands._arguments import add_json, print_json


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "push",
        help=run.__doc__,
        description=f"{run.__doc__} The data set has weights.parquet (prompt id, row, weight, "
        "density, cluster, place on the map), the artifact that isodense.load_weights reads, and a "
        "card. Texts stay here unless --with-prompts is given: ids are hashes. A data set that is "
        "there gets another commit; its card is written anew.",
        epilog="example: isodense push hf://team/prompt-weights --private",
    )
    parser.add_argument("address", help="hf://owner/name, or hf://owner/name@branch")
    where = "folder of the artifacts, or what `isodense weigh --work` kept (data)"
    parser.add_argument("--data", type=Path, default=Path("data"), help=where)
    texts = "publish the prompts, too: conversations, texts and the data's own columns"
    parser.add_argument("--with-prompts", action="store_true", help=texts)
    private = "create a private data set; a public one is refused"
    parser.add_argument("--private", action="store_true", help=private)
    parser.add_argument("-m", "--message", help="of the commit")
    dry = "write the files into this new folder instead, to look at"
    parser.add_argument("--dry-run", type=Path, metavar="DIR", help=dry)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Publish the weights as a data set on the Hugging Face Hub."""
    from isodense.cli.push import push

    found = push(
        args.address,
        args.data,
        with_prompts=args.with_prompts,
        private=args.private,
        message=args.message,
        dry_run=args.dry_run,
    )
    if args.json:
        print_json(found)
        return
    where = args.dry_run or found["url"]
    same = "" if found.get("new", True) else "; nothing new, so no commit was made"
    size = f"{found['bytes'] / 1e3:,.0f} kB"
    sys.stdout.write(f"{where}: {found['rows']:,} prompts, {size}{same}\n")
    if args.dry_run is None:
        sys.stdout.write(f'w = isodense.load_weights("{args.address}", rev="{found["commit"]}")\n')
