r"""Embed every prompt once, in shards.

Each GPU of the machine gets a process; on CPUs, ISODENSE_WORKERS sets their number. A Ray cluster
shares the work when told so:

ISODENSE_EXECUTOR=ray RAY_ADDRESS=10.0.0.1:6379 dvc repro embeddings

Example
-------
python stages/embeddings.py --prompts data/prompts --encoder models/encoder \
    --out data/embeddings --metrics reports/metrics/embeddings.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from isodense.embeddings.build import embed
from isodense.embeddings.params import EmbeddingsParams
from isodense.pipeline import notices, params, stage
from isodense.pipeline.artifact import write_json
from isodense.pipeline.runtime import BaseParams


def main(argv: list[str]) -> str:
    """Run the stage and return its summary line."""
    parser = stage.parser("embeddings", __doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="prompts artifact to read")
    parser.add_argument("--encoder", type=Path, required=True, help="encoder folder to read")
    parser.add_argument("--out", type=Path, required=True, help="embeddings artifact to write")
    parser.add_argument("--metrics", type=Path, required=True, help="metrics file to write")
    args = parser.parse_args(argv)
    base = params.load(args.params, "base", BaseParams)
    section = params.load(args.params, "embeddings", EmbeddingsParams)
    report = embed(args.prompts, args.encoder, section, base.device, stage.cache(), args.out)
    write_json(args.metrics, {"embeddings": report})
    shards = f"{report['prompts']} prompts x {report['dim']} in {report['shards']} shards"
    return shards + notices.summary({"embeddings": report})


if __name__ == "__main__":
    stage.run("embeddings", main)
