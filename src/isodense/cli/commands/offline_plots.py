"""``isodense offline-plots``: ``dvc plots`` without a network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "offline-plots",
        help=run.__doc__,
        description=f"{run.__doc__} Writes .dvc/plots/offline.html and sets plots.html_template in "
        ".dvc/config.local, in this clone only. Needs pip install 'isodense[plots]'. "
        "`dvc config --local --unset plots.html_template` undoes it.",
        epilog="example: isodense offline-plots && dvc plots diff HEAD my-experiment",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Make the pages of `dvc plots show` and `dvc plots diff` work without a network."""
    from isodense.report.offline import install

    path = install(Path())
    sys.stdout.write(
        f"{path}: what `dvc plots show` and `dvc plots diff` write now loads nothing\n"
    )
