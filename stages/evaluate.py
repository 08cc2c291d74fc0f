r"""Compare the untrained with the trained policy on the held-out prompts.

Example
-------
python stages/evaluate.py --prompts data/prompts --density data/density --policy models/policy \
    --trained models/grpo --reward models/reward --encoder models/encoder \
    --metrics reports/metrics/evaluate.json --deciles reports/plots/reward_by_decile.csv \
    --completions reports/completions.jsonl
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from isodense.evaluate.evaluate import evaluate, load_heldout
from isodense.evaluate.metrics import write_tables
from isodense.evaluate.params import EvaluateParams
from isodense.pipeline import params, stage
from isodense.pipeline.artifact import write_json
from isodense.pipeline.runtime import BaseParams, resolve_device
from isodense.prompts.reader import load_prompts


def main(argv: list[str]) -> str:
    """Run the stage and return its summary line."""
    parser = stage.parser("evaluate", __doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="prompts artifact to read")
    parser.add_argument("--density", type=Path, required=True, help="density artifact to read")
    parser.add_argument("--policy", type=Path, required=True, help="untrained policy to read")
    parser.add_argument("--trained", type=Path, required=True, help="trained policy to read")
    parser.add_argument("--reward", type=Path, required=True, help="reward artifact to read")
    parser.add_argument("--encoder", type=Path, required=True, help="encoder folder to read")
    parser.add_argument("--metrics", type=Path, required=True, help="metrics file to write")
    parser.add_argument("--deciles", type=Path, required=True, help="CSV plot to write")
    parser.add_argument("--completions", type=Path, required=True, help="JSONL to write")
    args = parser.parse_args(argv)
    base = params.load(args.params, "base", BaseParams)
    section = params.load(args.params, "evaluate", EvaluateParams)
    prompts = load_prompts(args.prompts)
    heldout = load_heldout(prompts, args.density)
    result = evaluate(
        heldout,
        args.policy,
        args.trained,
        args.reward,
        args.encoder,
        section,
        base.seed_of("evaluate"),
        resolve_device(base.device),
        stage.cache(),
    )
    metrics = {"eval": result.metrics()}
    write_json(args.metrics, metrics)
    write_tables(result, args.deciles, args.completions)
    gain = metrics["eval"]["gain"]
    return (
        f"reward {gain['reward']:+.2f} ({gain['reward_low']:+.2f} to {gain['reward_high']:+.2f}) "
        f"on {len(result.heldout.prompts)} held-out prompts"
    )


if __name__ == "__main__":
    stage.run("evaluate", main)
