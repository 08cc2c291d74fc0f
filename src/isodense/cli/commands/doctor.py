"""``isodense doctor``: what about this checkout or machine is going to spoil a run."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from isodense.cli.commands._arguments import add_json, print_json

ABOUT = "Check the checkout, the machine and the remotes, and say how to mend what is wrong."


def add(commands: Any) -> None:
    """Add the command."""
    look = commands.add_parser(
        "doctor",
        help=ABOUT,
        description=f"{ABOUT} Changes nothing. Ends with status 1 where there is a problem: "
        "something that would make a stage fail, or lose or spoil what it computes.",
        epilog="example: isodense doctor --json",
    )
    add_json(look)
    look.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the findings as they come."""
    from isodense.doctor.run import describe, examine, find_project, summary

    project, findings = find_project(Path()), []
    for finding in examine(project):
        findings.append(finding)
        if not args.json:
            sys.stdout.write(describe(finding))
            sys.stdout.flush()
    if args.json:
        found = [dataclasses.asdict(finding) for finding in findings]
        print_json(found)
    else:
        sys.stdout.write(summary(findings))
    if any(finding.level == "problem" for finding in findings):
        sys.exit(1)
