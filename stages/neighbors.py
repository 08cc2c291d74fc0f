r"""Find the nearest training prompts of every prompt.

Example
-------
python stages/neighbors.py --prompts data/prompts --embeddings data/embeddings \
    --out data/neighbors --metrics reports/metrics/neighbors.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from isodense.neighbors.build import publish
from isodense.neighbors.params import NeighborsParams
from isodense.pipeline import notices, params, stage
from isodense.pipeline.artifact import write_json
from isodense.pipeline.runtime import BaseParams
from isodense.prompts.reader import load_columns


def main(argv: list[str]) -> str:
    """Run the stage and return its summary line."""
    parser = stage.parser("neighbors", __doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="prompts artifact to read")
    parser.add_argument("--embeddings", type=Path, required=True, help="embeddings to read")
    parser.add_argument("--out", type=Path, required=True, help="neighbors artifact to write")
    parser.add_argument("--metrics", type=Path, required=True, help="metrics file to write")
    args = parser.parse_args(argv)
    base = params.load(args.params, "base", BaseParams)
    section = params.load(args.params, "neighbors", NeighborsParams)
    prompts = load_columns(args.prompts)
    report = publish(
        args.embeddings,
        prompts,
        section,
        base.device,
        base.seed_of("neighbors"),
        stage.cache(),
        args.out,
    )
    write_json(args.metrics, {"neighbors": report})
    line = f"{report['k_max']} neighbours of {report['rows']} prompts, {report['method']}"
    return line + notices.summary({"neighbors": report})


if __name__ == "__main__":
    stage.run("neighbors", main)
