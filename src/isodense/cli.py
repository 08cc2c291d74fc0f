"""The ``isodense`` command: look at weights, and check artifacts."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from isodense import __version__
from isodense.artifacts import MANIFEST, read_manifest, require_same_ids, verify_files
from isodense.density import effective_sample_size
from isodense.errors import ArtifactError, IsodenseError
from isodense.promptset import load_prompts
from isodense.weights import load_weights

EXAMPLES = """examples:
  isodense inspect                        the most and least weighted prompts of this checkout
  isodense inspect --top 50 --width 160
  isodense verify data/density data/embeddings
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        args.run(args)
    except IsodenseError as error:
        sys.stderr.write(f"isodense: error: {error}\n")
        return 1
    except BrokenPipeError:
        return 0
    return 0


def inspect(args: argparse.Namespace) -> None:
    """Print the effective sample size and the most and least weighted prompts."""
    weights = load_weights(args.density)
    train = load_prompts(args.prompts).split("train")
    require_same_ids(train.ids_sha256, weights.metadata, f"the weights in {args.density}")
    relative = np.asarray(weights.weights, dtype=np.float64) * len(train)
    order = np.argsort(-relative, kind="stable")
    ess = effective_sample_size(weights.weights)
    sys.stdout.write(
        f"{len(train)} training prompts, effective sample size {ess:.0f} ({ess / len(train):.0%}), "
        f"weights {relative.min():.2f} to {relative.max():.2f} times the mean\n"
    )
    for title, rows in (("most", order[: args.top]), ("least", order[::-1][: args.top])):
        sys.stdout.write(f"\n{title} weighted\n  weight  asked  prompt\n")
        for row in rows:
            text = "".join(c if c.isprintable() else " " for c in train.texts[row])
            short = text if len(text) <= args.width else text[: args.width - 1] + "…"
            sys.stdout.write(f"  {relative[row]:6.2f}  {train.rows[row]['count']:5d}  {short}\n")


def verify(args: argparse.Namespace) -> None:
    """Compare every file of the artifacts with their manifests."""
    for folder in args.artifacts:
        kind = _kind(folder)
        manifest = read_manifest(folder, kind)
        verify_files(folder, manifest)
        sys.stdout.write(f"{folder}: {kind}, {len(manifest['files'])} files as its manifest says\n")


def _kind(folder: Path) -> str:
    """Return which stage made the artifact, from its manifest."""
    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        message = f"{folder} is not an artifact: it has no readable {MANIFEST}"
        raise ArtifactError(message, "name a folder such as data/density") from None


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="isodense",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"isodense {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    look = commands.add_parser(
        "inspect",
        help=inspect.__doc__,
        description=inspect.__doc__,
        epilog="example: isodense inspect --top 50 --width 160",
    )
    look.add_argument("--density", type=Path, default=Path("data/density"), help="weights")
    look.add_argument("--prompts", type=Path, default=Path("data/prompts"), help="prompts")
    look.add_argument("--top", type=_positive, default=10, help="prompts to show at each end (10)")
    look.add_argument("--width", type=_positive, default=100, help="characters of a prompt (100)")
    look.set_defaults(run=inspect)
    check = commands.add_parser(
        "verify",
        help=verify.__doc__,
        description=verify.__doc__,
        epilog="example: isodense verify data/density data/embeddings",
    )
    check.add_argument("artifacts", type=Path, nargs="+", help="artifact folders")
    check.set_defaults(run=verify)
    return parser
