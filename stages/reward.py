r"""Fit the reward on the pairs of the training prompts and check it on the held-out ones.

Example
-------
python stages/reward.py --pairs data/pairs --prompts data/prompts --policy models/policy \
    --out models/reward --metrics reports/metrics/reward.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from isodense import params, stage
from isodense.artifacts import content_sha256, read_manifest, write_json
from isodense.base import BaseParams, resolve_device
from isodense.pairs import load_pairs
from isodense.promptset import load_prompts
from isodense.reward import RewardParams, fit


def main(argv: list[str]) -> str:
    """Run the stage and return its summary line."""
    parser = stage.parser("reward", __doc__)
    parser.add_argument("--pairs", type=Path, required=True, help="pairs artifact to read")
    parser.add_argument("--prompts", type=Path, required=True, help="prompts artifact to read")
    parser.add_argument("--policy", type=Path, required=True, help="policy folder to read")
    parser.add_argument("--out", type=Path, required=True, help="reward artifact to write")
    parser.add_argument("--metrics", type=Path, required=True, help="metrics file to write")
    args = parser.parse_args(argv)
    base = params.load(args.params, "base", BaseParams)
    section = params.load(args.params, "reward", RewardParams)
    pairs, prompts = load_pairs(args.pairs), load_prompts(args.prompts)
    device = resolve_device(base.device)
    inputs = {
        "pairs": content_sha256(read_manifest(args.pairs, "download")),
        "prompts": content_sha256(read_manifest(args.prompts, "prompts")),
    }
    report = fit(pairs, prompts, args.policy, section, device, inputs, args.out)
    write_json(args.metrics, {"reward": report})
    heldout, length = report["heldout"], report["length_only"]
    return (
        f"held-out accuracy {heldout['accuracy']:.3f} ({heldout['low']:.3f} to "
        f"{heldout['high']:.3f}) on {report['heldout_pairs']} pairs, by length "
        f"{length['accuracy']:.3f}"
    )


if __name__ == "__main__":
    stage.run("reward", main)
