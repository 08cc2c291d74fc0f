"""``isodense weigh``: prompts in, weights out, without a project."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isodense.cli.commands._arguments import add_json, not_negative, positive, print_json, share
from isodense.pipeline.errors import IsodenseError

if TYPE_CHECKING:
    from isodense.weighing.result import Weighed

ABOUT = "Weigh prompts inversely to their local density; needs no project."


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "weigh",
        help=ABOUT,
        description=f"{ABOUT} Writes one row for each row of the data, in their order: prompt_id, "
        "row (its place, from 0), weight (sum 1; rows of the same prompt share its weight), "
        "density, cluster (of near-duplicates), x, y and the data's columns. Embeds in float64, so "
        "that every machine gets the same weights; -S embeddings.precision=float32 is faster. What "
        "was computed stays in ISODENSE_CACHE (~/.cache/isodense), so a run that was cut off goes "
        "on.",
        epilog="example: isodense weigh prompts.jsonl --output weights.parquet",
    )
    what = (
        "JSON, JSONL, parquet, CSV, TSV, text or Arrow, plain or compressed; a folder or pattern "
    )
    what += "of these; or a data set of the Hub, owner/name or owner/name@revision"
    parser.add_argument("data", help=what)
    made = "file to write; its name ends in .parquet, .csv or .jsonl"
    parser.add_argument("--output", type=Path, metavar="FILE", help=made)
    page = "HTML page to write: map, weights, near-duplicates (needs isodense[report])"
    parser.add_argument("--report", type=Path, metavar="FILE", help=page)
    found = "that holds the prompts (prompt, problem, question, messages, … are found)"
    parser.add_argument("--column", metavar="NAME", help=found)
    kinds = "that names kinds of prompts, for the opinion and the report (label)"
    parser.add_argument("--label", metavar="COLUMN", help=kinds)
    parser.add_argument("--split", default="train", help="of a data set of the Hub (train)")
    parser.add_argument("--config", metavar="NAME", help="configuration of a data set of the Hub")
    model = "model folder, or owner/name of the Hub (all-MiniLM-L6-v2, from PyPI)"
    parser.add_argument("--encoder", metavar="MODEL", help=model)
    target = "effective sample size to reach, as a share of the distinct prompts (0.8): lower is "
    parser.add_argument("--ess", type=share, metavar="SHARE", help=target + "more uneven")
    parser.add_argument("--k", type=positive, help="neighbours to look at (50)")
    parser.add_argument("--seed", type=not_negative, help="of the map (0)")
    parser.add_argument(
        "--on-bad-row",
        choices=("error", "skip"),
        default="error",
        help="rows without a prompt: stop at the first (error), or leave out and count (skip)",
    )
    parser.add_argument(
        "-S",
        "--set-param",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other param, as in params.yaml: -S embeddings.precision=float32",
    )
    kept = "folder that keeps the artifacts, as a project's data folder has them, and the encoder: "
    kept += "`isodense explain --data DIR` reads it"
    parser.add_argument("--work", type=Path, metavar="DIR", help=kept)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Weigh the prompts, write what is asked for, and say what the weights do."""
    from isodense.pipeline.storage import require_place
    from isodense.weighing.data import holds
    from isodense.weighing.result import require_suffix
    from isodense.weighing.weigh import weigh

    start = time.perf_counter()
    if args.output is not None:
        require_suffix(args.output)
    if args.report is not None and args.report.suffix.lower() not in (".html", ".htm"):
        message = f"{args.report} does not end in .html, which the report is"
        raise IsodenseError(message, "name a file that does")
    for made in filter(None, (args.output, args.report)):
        require_place(made)
        if holds(args.data, made):
            message = f"{made} is, or would be, among the data in {args.data}"
            raise IsodenseError(message, "name a file elsewhere")
    with _steps_on_stderr():
        found = weigh(
            args.data,
            args.column,
            split=args.split,
            config=args.config,
            label=args.label,
            encoder=args.encoder,
            k=args.k,
            ess=args.ess,
            seed=args.seed,
            on_bad_row=args.on_bad_row,
            params=dict(map(_setting, args.set_param)),
            report=args.report,
            work=args.work,
        )
    if args.output is not None:
        found.save(args.output)
    if args.json:
        print_json(found.facts)
        return
    sys.stdout.write(f"{found.opinion}\n")
    sys.stdout.write(_written(args, found, time.perf_counter() - start))


def _setting(text: str) -> tuple[str, Any]:
    import yaml

    from isodense.pipeline.params import value_of

    name, mark, value = text.partition("=")
    try:
        if mark:
            return name, value_of(value)
    except yaml.YAMLError:
        pass
    raise IsodenseError(f"-S {text} sets nothing", "write it as -S density.k=20")


@contextmanager
def _steps_on_stderr() -> Iterator[None]:
    """Show the steps on standard error meanwhile, and of the stages what is a warning."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("[weigh] %(message)s"))
    whole, steps = logging.getLogger("isodense"), logging.getLogger("isodense.weigh")
    whole.addHandler(handler)
    steps.setLevel(logging.INFO)
    try:
        yield
    finally:
        whole.removeHandler(handler)
        steps.setLevel(logging.NOTSET)


def _written(args: argparse.Namespace, found: Weighed, seconds: float) -> str:
    from isodense.weighing.result import is_plain
    from isodense.weighing.summary import training_lines

    made = [str(path) for path in (args.output, args.report) if path is not None]
    text = f"\n{' and '.join(made)} written in {seconds:.0f} s.\n" if made else ""
    if args.work is not None:
        text += f"\nLook into them: isodense inspect --data {args.work}\n"
    if args.output is None:
        return f"{text}\n--output weights.parquet writes the weights.\n"
    kind, csv = found.inputs.schema.field("prompt").type, args.output.suffix.lower() == ".csv"
    lines = training_lines(args.output, found.facts["prompts"], csv and not is_plain(kind))
    return f"{text}To train on draws by weight:\n\n{lines}"
