"""The ``isodense`` command: weigh prompts, look at weights and runs, check and grow artifacts."""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from isodense import __version__
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.extras import explained
from isodense.pipeline.storage import storing

COMMANDS = (
    "weigh",
    "inspect",
    "explain",
    "report",
    "doctor",
    "update",
    "experiments",
    "offline_plots",
    "compare",
    "verify",
    "merge",
    "export",
    "push",
    "completion",
)
EXAMPLES = """examples:
  isodense weigh prompts.jsonl --output weights.parquet    no project needed
  isodense doctor                         is this checkout fit to run?
  isodense inspect                        the most and least weighted prompts of this checkout
  isodense explain "how do I boil an egg" neighbours, density and weight of this or a new prompt
  isodense update more.jsonl              add prompts, and see how the weights moved
  isodense experiments                    what was tried, and what came of it
  isodense report --output report.html    the report with its git revision, to send to others
  isodense compare --arms uniform density --seeds 3 -S train.max_steps=200
  isodense verify data/density data/embeddings
  isodense merge part1/data part2/data --output merged
  isodense push hf://team/prompt-weights  weights as a data set of the Hugging Face Hub
  isodense export --format verl --draws 4096 --output plan.parquet --heldout heldout.parquet
"""


class Parser(argparse.ArgumentParser):
    """A parser that guesses what was meant by a command or an option that there is not."""

    commands: Iterable[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all arguments: what is left over is an error here, where the options are known."""
        words = sys.argv[1:] if args is None else list(args)
        command = next((word for word in words if not word.startswith("-")), None)
        if self.commands and command is not None and (guess := _guess(command, self.commands)):
            self.error(f"there is no command {command}{guess}")
        found, left = super().parse_known_args(words, namespace)
        if left:
            name = left[0].partition("=")[0]
            guess = _guess(name, self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(left)}{guess}")
        return found, left


def _guess(word: str, known: Iterable[str]) -> str:
    """Return which known word may have been meant; nothing where it is one, or none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near and near[0] != word else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with storing(Path.cwd()), explained():
            args.run(args)
    except IsodenseError as error:
        sys.stderr.write(f"isodense: error: {error}\n")
        return 1
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("isodense: interrupted; run it again to go on\n")
        return 130
    except OSError as error:
        sys.stderr.write(f"isodense: error: {error}\n")
        return 1
    return 0


def parser() -> Parser:
    """Return the parser of all commands."""
    top = Parser(
        prog="isodense",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"isodense {__version__}")
    commands = top.add_subparsers(required=True, metavar="command")
    for name in COMMANDS:
        importlib.import_module(f"isodense.cli.commands.{name}").add(commands)
    top.commands = commands.choices
    return top
