r"""Lay all prompts out in two dimensions, from the neighbour graph.

Example
-------
python stages/map.py --prompts data/prompts --neighbors data/neighbors --out data/map
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from isodense.map.layout import publish
from isodense.map.params import MapParams
from isodense.pipeline import params, stage
from isodense.pipeline.runtime import BaseParams
from isodense.prompts.reader import load_columns


def main(argv: list[str]) -> str:
    """Run the stage and return its summary line."""
    parser = stage.parser("map", __doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="prompts artifact to read")
    parser.add_argument("--neighbors", type=Path, required=True, help="neighbors artifact to read")
    parser.add_argument("--out", type=Path, required=True, help="map artifact to write")
    args = parser.parse_args(argv)
    base = params.load(args.params, "base", BaseParams)
    section = params.load(args.params, "map", MapParams)
    prompts = load_columns(args.prompts)
    publish(prompts, args.neighbors, section, base.seed_of("map"), args.out)
    return f"{len(prompts)} prompts placed"


if __name__ == "__main__":
    stage.run("map", main)
