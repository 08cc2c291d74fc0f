r"""Write the report: one page for people, and its pictures.

Example
-------
python stages/report.py --prompts data/prompts --density data/density \
    --neighbors data/neighbors --map data/map --inputs reports/metrics/density.json … \
    --training reports/train/plots/metrics --deciles reports/plots/reward_by_decile.csv \
    --completions reports/completions.jsonl --manifests models/encoder/manifest.json … \
    --out reports/index.html --images reports/images
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from isodense.pipeline import stage
from isodense.report.page import Sources, write_report


def main(argv: list[str]) -> str:
    """Run the stage and return its summary line."""
    parser = stage.parser("report", __doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="prompts artifact to read")
    parser.add_argument("--density", type=Path, required=True, help="density artifact to read")
    parser.add_argument("--neighbors", type=Path, help="neighbors artifact to read")
    parser.add_argument("--map", type=Path, help="map artifact to read")
    parser.add_argument("--inputs", type=Path, nargs="+", default=[], help="metrics to show")
    parser.add_argument("--training", type=Path, help="training's series to show")
    parser.add_argument("--realised", type=Path, help="draws and signals of training, CSV")
    parser.add_argument("--deciles", type=Path, help="held-out reward to show, CSV")
    parser.add_argument("--completions", type=Path, help="completions to show, JSONL")
    parser.add_argument("--manifests", type=Path, nargs="+", default=[], help="artifacts to name")
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures to write")
    args = parser.parse_args(argv)
    sources = Sources(
        args.prompts,
        args.density,
        args.neighbors,
        args.map,
        args.inputs,
        args.training,
        args.deciles,
        args.completions,
        args.manifests,
        args.realised,
    )
    write_report(sources, args.out, args.images)
    return f"{args.out}, {args.out.stat().st_size / 1e6:.1f} MB"


if __name__ == "__main__":
    stage.run("report", main)
