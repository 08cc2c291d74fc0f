r"""Collapse the examples to unique prompts and split off a held-out set.

Example
-------
python stages/prompts.py --examples data/examples --out data/prompts \
    --metrics reports/metrics/prompts.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from isodense.download.examples import iter_examples
from isodense.pipeline import params, stage
from isodense.pipeline.artifact import content_sha256, read_manifest, write_json
from isodense.prompts.deduplicate import publish
from isodense.prompts.params import PromptsParams


def main(argv: list[str]) -> str:
    """Run the stage and return its summary line."""
    parser = stage.parser("prompts", __doc__)
    parser.add_argument("--examples", type=Path, required=True, help="examples artifact to read")
    parser.add_argument("--out", type=Path, required=True, help="prompts artifact to write")
    parser.add_argument("--metrics", type=Path, required=True, help="metrics file to write")
    args = parser.parse_args(argv)
    section = params.load(args.params, "prompts", PromptsParams)
    examples_sha256 = content_sha256(read_manifest(args.examples, "download"))
    report = publish(lambda: iter_examples(args.examples), section, examples_sha256, args.out)
    write_json(args.metrics, {"prompts": report})
    unique, heldout = report["unique"], report["heldout"]
    line = f"{unique:,} unique prompts of {report['examples']:,} examples, {heldout:,} held out"
    leaked = report.get("heldout_leaked")
    line += f" ({leaked:,} with a near-duplicate in training)" if leaked else ""
    dropped, empty = report["dropped_conflicting"], report["no_text"]
    line += f", {dropped:,} left out as conflicting" if dropped else ""
    return line + (f", {empty:,} examples without text" if empty else "")


if __name__ == "__main__":
    stage.run("prompts", main)
