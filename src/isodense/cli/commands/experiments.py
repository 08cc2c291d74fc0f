"""``isodense experiments``: the experiments of this checkout, in the columns that matter."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from isodense.cli.commands._arguments import positive

HELP = "Tabulate the experiments: params, density, reward, diversity."
LEGEND = """
ESS, exponent: of the density. accuracy: of the reward on held-out pairs. reward, gain, distinct-2,
Vendi: of the trained policy on held-out prompts, gain over the base policy; ±: 95% interval.
"""


def add(commands: Any) -> None:
    """Declare the command."""
    show = commands.add_parser(
        "experiments",
        help=HELP,
        description=f"{HELP} Shown are k, ess and sampling, other params only where they differ, "
        "and only numbers of stages that ran with an experiment's own settings. "
        "`dvc exp show` shows everything.",
        epilog="example: isodense experiments --sort gain",
    )
    show.add_argument("--sort", metavar="COLUMN", help="largest first, as headed in the table")
    show.add_argument("--reverse", action="store_true", help="sort the other way round")
    show.add_argument(
        "-n", "--num", type=positive, default=1, help="of the last so many commits (1)"
    )
    show.add_argument("-A", "--all-commits", action="store_true", help="of all commits")
    form = show.add_mutually_exclusive_group()
    form.add_argument("--md", action="store_const", const="md", dest="form", help="as Markdown")
    form.add_argument("--csv", action="store_const", const="csv", dest="form", help="all digits")
    form.add_argument("--json", action="store_const", const="json", dest="form", help="all digits")
    show.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from isodense.experiments import table as experiments

    rows = experiments.experiments(args.num, args.all_commits)
    if args.sort:
        rows = experiments.ordered(rows, args.sort, args.reverse)
    if args.form in ("csv", "json"):
        text = experiments.as_csv(rows) if args.form == "csv" else experiments.as_json(rows)
        sys.stdout.write(text)
        return
    sys.stdout.write(experiments.table(rows, markdown=args.form == "md"))
    if args.form is None:
        sys.stdout.write(LEGEND + _notes(rows))


def _notes(rows: Any) -> str:
    """Return what to do about experiments that are unfinished, or that are not there."""
    from isodense.experiments.table import MEASURES

    waiting = [row for row in rows if row.state == "queued"]
    failed = [row for row in rows if row.state == "failed"]
    partial = [
        row
        for row in rows
        if row.name != row.baseline
        and not row.state
        and any(one.path not in row.metrics for one in MEASURES if not one.optional)
    ]
    lines = []
    if partial:
        lines.append(
            f"–: not run with these settings. To run the rest: `dvc exp apply {partial[-1].name}`, "
            "then `dvc exp run`."
        )
    if waiting:
        lines.append("queued: `dvc queue start` runs them, `dvc queue remove` takes them out.")
    if failed:
        lines.append(f"failed: `dvc queue logs {failed[0].name}` says why.")
    if all(row.name == row.baseline for row in rows):
        lines.append(
            "No experiments hang on this commit. `dvc exp run -S density.k=10 density` makes one; "
            "-A shows those of other commits."
        )
    return "".join(f"{line}\n" for line in lines)
