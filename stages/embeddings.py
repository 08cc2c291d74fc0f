r"""Embed every prompt once, in shards.

Example
-------
python stages/embeddings.py --prompts data/prompts --encoder models/encoder \
    --out data/embeddings --metrics reports/metrics/embeddings.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from isodense import params, stage
from isodense.artifacts import content_sha256, read_manifest, write_json
from isodense.base import BaseParams
from isodense.embeddings import EmbeddingsParams, embed
from isodense.promptset import load_prompts


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
    prompts = load_prompts(args.prompts)
    from isodense.encoders import load_encoder  # here, so that a wrong param shows at once

    encoder = load_encoder(
        args.encoder,
        pooling=section.pooling,
        layer=section.layer,
        max_tokens=section.max_tokens,
        batch_tokens=section.batch_tokens,
        device=base.device,
    )
    prompts_sha256 = content_sha256(read_manifest(args.prompts, "prompts"))
    report = embed(prompts, encoder, args.encoder, section, prompts_sha256, stage.cache(), args.out)
    write_json(args.metrics, {"embeddings": report})
    return f"{report['prompts']} prompts x {report['dim']} in {report['shards']} shards"


if __name__ == "__main__":
    stage.run("embeddings", main)
