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

DEFAULT = Path("isodense-report.html")
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
    where = DEFAULT
    page.add_argument("--output", type=Path, help=f"file to write ({where})")
    table = "write the map as a Parquet table instead, or besides: embedding-atlas FILE --x x --y y"
    page.add_argument("--atlas", type=Path, metavar="FILE", help=table)
    page.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the page, the table, or both."""
    if args.atlas is not None:
        _write_table(args.atlas)
        if args.output is None:
            return
    _write_page(args.output or DEFAULT)


def _write_table(out: Path) -> None:
    from isodense.report.atlas import write_atlas

    prompts, density, neighbors, where = (
        ARTIFACTS[name].path for name in ("prompts", "density", "neighbors", "map")
    )
    rows = write_atlas(prompts, density, neighbors, where, out)
    sys.stdout.write(f"{out}: {rows:,} prompts; embedding-atlas {out} --x x --y y shows them\n")


def _write_page(output: Path) -> None:
    from isodense.experiments.lockfile import outdated_outputs
    from isodense.report.page import Sources, write_report
    from isodense.report.provenance import checkout

    if output.resolve() == PAGE.resolve():
        message = f"{output} is an output of `dvc repro report`, which DVC guards"
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
    write_report(sources, output, checkout=checkout(Path()))
    size = output.stat().st_size / 1e6
    sys.stdout.write(f"{output}: {size:.1f} MB, opens in any browser without a network\n")
