"""Collect prompts, and what belongs to them, from the sources in use into one table.

Example
-------
python stages/download.py --raw data/raw --out data/examples --metrics reports/metrics/download.json
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from isodense.download.collect import publish
from isodense.download.params import DownloadParams
from isodense.pipeline import params, stage
from isodense.pipeline.artifact import write_json
from isodense.pipeline.runtime import BaseParams
from isodense.pipeline.watched import link_untracked, warn_unwatched


def main(argv: list[str]) -> str:
    """Run the stage and return its summary line."""
    parser = stage.parser("download", __doc__)
    parser.add_argument("--raw", type=Path, required=True, help="folder of the user's files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the examples")
    parser.add_argument("--metrics", type=Path, required=True, help="metrics file")
    args = parser.parse_args(argv)
    base = params.load(args.params, "base", BaseParams)
    section = params.load(args.params, "download", DownloadParams)
    if "local" in section.sources:
        for name in ("files", "heldout"):
            link_untracked(getattr(section.local, name), f"download.local.{name}")
            warn_unwatched(getattr(section.local, name), args.raw, f"download.local.{name}")
    metrics = publish(section, lambda source: base.rng(f"download.{source}"), args.out)
    write_json(args.metrics, metrics)
    counts = metrics["download"]
    parts = ", ".join(f"{count:,} from {name}" for name, count in counts["sources"].items())
    line = f"{counts['examples']:,} examples ({parts}), {counts['pairs']:,} with two answers"
    line += f", {counts['repeated']:,} identical to earlier ones" if counts["repeated"] else ""
    left_out = {"bad": counts["bad_rows"], **counts["unusable"]}
    reasons = [f"{count:,} {why}" for why, count in left_out.items() if count]
    return line + (f"; rows left out: {', '.join(reasons)}" if reasons else "")


if __name__ == "__main__":
    stage.run("download", main)
