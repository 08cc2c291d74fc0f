"""``isodense report``: the report with git revision and ``dvc.lock``, to be sent to others."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from isodense.errors import IsodenseError

ABOUT = "Write the report of what this checkout holds, with its git revision and dvc.lock."
PAGE = Path("reports/index.html")  # the stage's, which DVC guards
METRICS = ("download", "prompts", "embeddings", "neighbors", "density", "reward", "evaluate")
ARTIFACTS = (
    "data/pairs",
    "models/encoder",
    "models/policy",
    "data/prompts",
    "data/embeddings",
    "data/neighbors",
    "data/map",
    "data/density",
    "models/reward",
    "models/grpo",
)


def add(commands: Any) -> None:
    """Add the command."""
    page = commands.add_parser(
        "report",
        help=ABOUT,
        description=f"{ABOUT} One HTML file that needs no network. What has not been computed or "
        "pulled is left out, and the page says so; prompts and density have to be there.",
        epilog="example: isodense report --output friday.html",
    )
    where = Path("isodense-report.html")
    page.add_argument("--output", type=Path, default=where, help=f"file to write ({where})")
    page.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the page."""
    from isodense.report import Sources, write_report
    from isodense.report_provenance import checkout

    if args.output.resolve() == PAGE.resolve():
        message = f"{args.output} is an output of `dvc repro report`"
        raise IsodenseError(message, "name another file with --output")
    metrics = [Path("reports/metrics") / f"{name}.json" for name in METRICS]
    manifests = [Path(folder) / "manifest.json" for folder in ARTIFACTS]
    sources = Sources(
        prompts=Path("data/prompts"),
        density=Path("data/density"),
        neighbors=_there(Path("data/neighbors")),
        map=_there(Path("data/map")),
        metrics=[path for path in [*metrics, Path("reports/train/metrics.json")] if path.exists()],
        training=_there(Path("reports/train/plots/metrics")),
        deciles=_there(Path("reports/plots/reward_by_decile.csv")),
        completions=_there(Path("reports/completions.jsonl")),
        manifests=[path for path in manifests if path.exists()],
    )
    write_report(sources, args.output, checkout=checkout(Path()))
    size = args.output.stat().st_size / 1e6
    sys.stdout.write(f"{args.output}: {size:.1f} MB, opens in any browser without a network\n")


def _there(path: Path) -> Path | None:
    return path if path.exists() else None
