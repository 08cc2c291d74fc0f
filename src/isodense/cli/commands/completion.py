"""``isodense completion``: what makes a shell complete commands, options and files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "completion",
        help=run.__doc__,
        description=f"{run.__doc__} For bash, into a file that it reads by itself: isodense "
        "completion bash > ~/.local/share/bash-completion/completions/isodense. For zsh, into a "
        "folder of $fpath: isodense completion zsh > ~/.zfunc/_isodense.",
        epilog='example: eval "$(isodense completion bash)"',
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the script that lets a shell complete commands, options and files."""
    import shtab

    from isodense.cli.main import parser

    top = parser()
    for action in _arguments(top):
        if action.type is Path or action.dest == "data":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    sys.stdout.write(shtab.complete(top, shell=args.shell) + "\n")


def _arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _arguments(command)
