"""The ``isodense`` command: weigh prompts, look at weights and runs, check and grow artifacts."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

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


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="isodense",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"isodense {__version__}")
    commands = top.add_subparsers(required=True, metavar="command")
    for name in COMMANDS:
        importlib.import_module(f"isodense.cli.commands.{name}").add(commands)
    return top
