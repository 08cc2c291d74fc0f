"""The ``isodense`` command: look at weights; check, merge and export artifacts; compare runs."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isodense import __version__
from isodense.artifacts import MANIFEST, read_manifest, require_same_ids, verify_files
from isodense.errors import ArtifactError, IsodenseError
from isodense.evenness import effective_sample_size
from isodense.promptset import load_prompts
from isodense.weights import load_weights

EXAMPLES = """examples:
  isodense inspect                        the most and least weighted prompts of this checkout
  isodense inspect --top 50 --width 160
  isodense verify data/density data/embeddings
  isodense verify data/embeddings --recompute 64
  isodense merge part1/data part2/data --output merged
  isodense export --format prototype --output exported
  isodense export --format verl --draws 4096 --output plan.parquet --heldout heldout.parquet
  isodense compare --arms uniform density --seeds 3 -S train.max_steps=200
"""


REPULL = "run `dvc repro embeddings`, or `dvc pull models` for the model it was made with"


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
    except KeyboardInterrupt:
        sys.stderr.write("isodense: interrupted\n")
        return 130
    except OSError as error:
        sys.stderr.write(f"isodense: error: {error}\n")
        return 1
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
        if args.recompute and kind == "embeddings":
            from isodense.recompute import recompute

            verdict = recompute(folder, args.prompts, args.encoder, args.recompute)
            count = min(args.recompute, manifest["rows"])
            sys.stdout.write(f"{folder}: {count} prompts embedded again: {verdict}\n")
            if verdict.startswith("different"):
                raise ArtifactError(f"{folder} was not made by the model in {args.encoder}", REPULL)


def merge(args: argparse.Namespace) -> None:
    """Join embeddings that were computed apart, without computing a row again."""
    from isodense.merge import merge as merged

    report = merged(args.parts, args.output)
    sys.stdout.write(
        f"{args.output}: {report['rows']} rows in {report['shards']} shards, "
        f"{report['collapsed']} repeated prompts collapsed\n"
    )


def export(args: argparse.Namespace) -> None:
    """Write the training prompts with their weights, or draws from them, for other code."""
    from isodense.export import Draws
    from isodense.export import export as exported

    how = {name: getattr(args, name) for name in ("seed", "sampling")}
    given = {name: value for name, value in how.items() if value is not None}
    if given and args.draws is None:
        raise IsodenseError(f"--{next(iter(given))} says how to draw", "add --draws N")
    draws = None if args.draws is None else Draws(args.draws, **given)
    report = exported(
        args.data, args.format, args.output, args.vectors, args.encoder, draws, args.heldout
    )
    kind = "draws" if draws else "prompts"
    sys.stdout.write(f"{args.output}: {report['rows']} {kind} as {report['format']}\n")
    if args.heldout:
        sys.stdout.write(f"{args.heldout}: {report['heldout']} held-out prompts\n")


def compare(args: argparse.Namespace) -> None:
    """Run ways to sample as DVC experiments, several seeds each, and tabulate what came out."""
    from isodense.compare import compare as compared
    from isodense.compare import markdown

    rows = compared(args.arms, args.seeds, args.set_param, args.output)
    sys.stdout.write(f"{markdown(rows)}\nalso in {args.output}, with a figure\n")


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


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
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
    again = "embed this many prompts of an embeddings artifact again and compare"
    check.add_argument("--recompute", type=_positive, metavar="N", help=again)
    check.add_argument("--prompts", type=Path, default=Path("data/prompts"), help="their prompts")
    check.add_argument("--encoder", type=Path, default=Path("models/encoder"), help="their encoder")
    check.set_defaults(run=verify)
    _add_merge(commands)
    _add_export(commands)
    _add_compare(commands)
    return parser


def _add_merge(commands: Any) -> None:
    join = commands.add_parser(
        "merge",
        help=merge.__doc__,
        description=f"{merge.__doc__} Parts are data folders, which hold prompts/ and embeddings/, "
        "or embeddings folders. Of a prompt in several parts the first is kept.",
        epilog="example: isodense merge part1/data part2/data --output merged",
    )
    join.add_argument("parts", type=Path, nargs="+", help="two or more folders")
    join.add_argument("--output", type=Path, required=True, help="new folder")
    join.set_defaults(run=merge)


def _add_export(commands: Any) -> None:
    give = commands.add_parser(
        "export",
        help=export.__doc__,
        description=f"{export.__doc__} prototype: a folder with embeddings.npy, "
        "density_weights.npy, prompts_list.json and embeddings_metadata.json; parquet and jsonl: "
        "one file with id, prompt, text, count, weight and density; verl and openrlhf: one file in "
        "that trainer's columns, parquet and JSONL. docs/other-trainers.md says how to use them.",
        epilog="example: isodense export --format verl --draws 4096 --output plan.parquet",
    )
    formats = ("prototype", "parquet", "jsonl", "verl", "openrlhf")
    give.add_argument("--format", choices=formats, required=True, help="what to write")
    give.add_argument("--output", type=Path, required=True, help="new folder or file")
    give.add_argument("--data", type=Path, default=Path("data"), help="folder of the artifacts")
    give.add_argument("--vectors", action="store_true", help="add the vectors to the file")
    give.add_argument("--encoder", type=Path, help="model folder, for the prototype's metadata")
    plan = "write a plan: one row per draw, in the order of the draws"
    give.add_argument("--draws", type=_positive, metavar="N", help=plan)
    give.add_argument("--seed", type=_not_negative, help="of the draws (0)")
    ways = ("density", "uniform", "count")
    give.add_argument("--sampling", choices=ways, help="what the odds of a draw follow (density)")
    give.add_argument("--heldout", type=Path, metavar="FILE", help="write held-out prompts here")
    give.set_defaults(run=export)


def _add_compare(commands: Any) -> None:
    arms = ("uniform", "density", "count", "density-reward", "density-both")
    much = commands.add_parser(
        "compare",
        help=compare.__doc__,
        description=f"{compare.__doc__} Arms: uniform (every distinct prompt alike), density (by "
        "the weights), count (as often as asked, so copies count), density-reward (the weights in "
        "the reward only), density-both. All have the same steps and completions. Runs that exist "
        "already are not run again, so a comparison can be cut off, or get more seeds.",
        epilog="example: isodense compare --arms uniform density --seeds 5 -S train.max_steps=200",
    )
    much.add_argument("--arms", choices=arms, nargs="+", default=arms, help="the first is the base")
    much.add_argument("--seeds", type=_positive, default=3, help="of draws and completions (3)")
    much.add_argument(
        "-S", "--set-param", action="append", default=[], metavar="KEY=VALUE", help="for all arms"
    )
    where = Path("reports/compare")
    much.add_argument("--output", type=Path, default=where, help=f"folder to write ({where})")
    much.set_defaults(run=compare)
