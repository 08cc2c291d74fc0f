"""``isodense report``: the report with git revision and ``dvc.lock``, to be sent to others."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from isodense.pipeline.artifact import MANIFEST
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.layout import (
    ARTIFACTS,
    COMPLETIONS,
    DECILES,
    METRICS,
    PAGE,
    REALISED,
    SERIES,
)

ABOUT = "Write the report of what this checkout holds, with its git revision and dvc.lock."


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
    from isodense.experiments.lockfile import outdated_outputs
    from isodense.report.page import Sources, write_report
    from isodense.report.provenance import checkout

    if args.output.resolve() == PAGE.resolve():
        message = f"{args.output} is an output of `dvc repro report`, which DVC guards"
        raise IsodenseError(message, "name another file with --output")
    outdated = outdated_outputs(Path("dvc.lock"))

    def there(path: Path) -> Path | None:
        return path if path.exists() and path.as_posix() not in outdated else None

    folders = {name: there(artifact.path) for name, artifact in ARTIFACTS.items()}
    manifests = [folder / MANIFEST for folder in folders.values() if folder]
    sources = Sources(
        prompts=ARTIFACTS["prompts"].path,
        density=ARTIFACTS["density"].path,
        neighbors=folders["neighbors"],
        map=folders["map"],
        metrics=[path for path in map(there, METRICS.values()) if path],
        training=there(SERIES),
        deciles=there(DECILES),
        completions=there(COMPLETIONS),
        manifests=[file for file in manifests if file.exists()],
        realised=there(REALISED),
    )
    write_report(sources, args.output, checkout=checkout(Path()))
    size = args.output.stat().st_size / 1e6
    sys.stdout.write(f"{args.output}: {size:.1f} MB, opens in any browser without a network\n")
