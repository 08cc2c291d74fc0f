"""``isodense report``: the report with git revision and ``dvc.lock``, to be sent to others."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from isodense.pipeline.artifact import MANIFEST
from isodense.pipeline.errors import IsodenseError

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
        "pulled, or was made from other weights than these, is left out, and the page says so; "
        "prompts and density have to be there.",
        epilog="example: isodense report --output friday.html",
    )
    where = Path("isodense-report.html")
    page.add_argument("--output", type=Path, default=where, help=f"file to write ({where})")
    page.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the page."""
    from isodense.evaluate.lockfile import outdated_outputs
    from isodense.report.page import Sources, write_report
    from isodense.report.provenance import checkout

    if args.output.resolve() == PAGE.resolve():
        message = f"{args.output} is an output of `dvc repro report`"
        raise IsodenseError(message, "name another file with --output")
    outdated = outdated_outputs(Path("dvc.lock"))

    def there(path: str) -> Path | None:
        return Path(path) if Path(path).exists() and path not in outdated else None

    metrics = [*(f"reports/metrics/{name}.json" for name in METRICS), "reports/train/metrics.json"]
    manifests = [path / MANIFEST for path in map(there, ARTIFACTS) if path]
    sources = Sources(
        prompts=Path("data/prompts"),
        density=Path("data/density"),
        neighbors=there("data/neighbors"),
        map=there("data/map"),
        metrics=[path for path in map(there, metrics) if path],
        training=there("reports/train/plots/metrics"),
        deciles=there("reports/plots/reward_by_decile.csv"),
        completions=there("reports/completions.jsonl"),
        manifests=[file for file in manifests if file.exists()],
    )
    write_report(sources, args.output, checkout=checkout(Path()))
    size = args.output.stat().st_size / 1e6
    sys.stdout.write(f"{args.output}: {size:.1f} MB, opens in any browser without a network\n")
