r"""Compare the untrained with the trained policy on the held-out prompts.

Example
-------
python stages/evaluate.py --prompts data/prompts --density data/density --policy models/policy \
    --trained models/grpo --reward models/reward --encoder models/encoder \
    --metrics reports/metrics/evaluate.json --deciles reports/plots/reward_by_decile.csv \
    --labels reports/plots/reward_by_label.csv --completions reports/completions.jsonl
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from isodense.evaluate.evaluate import evaluate
from isodense.evaluate.heldout import load_heldout, require_unseen
from isodense.evaluate.metrics import Comparison, write_tables
from isodense.evaluate.params import EvaluateParams
from isodense.pipeline import notices, params, stage
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
    parser.add_argument("--labels", type=Path, required=True, help="CSV of labels to write")
    parser.add_argument("--completions", type=Path, required=True, help="JSONL to write")
    args = parser.parse_args(argv)
    base = params.load(args.params, "base", BaseParams)
    section = params.load(args.params, "evaluate", EvaluateParams)
    prompts = load_prompts(args.prompts)
    heldout = load_heldout(prompts, args.density)
    require_unseen(prompts, args.trained)
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
    write_tables(result, args.deciles, args.labels, args.completions)
    return summary(result, metrics["eval"]) + notices.summary(metrics)


def summary(result: Comparison, metrics: dict[str, Any]) -> str:
    """Return in words what training did."""
    gain = metrics["gain"]
    line = f"reward {change(gain, 'reward')} on {metrics['prompts']} held-out prompts"
    if "reward_over_labels" in gain:
        line += f", {change(gain, 'reward_over_labels')} over {metrics['labels']} labels"
    shares = {"pass_at_1": "solved", "answer_probability": "probability of the answer"}
    for name, what in shares.items():
        for key, over in ((name, ""), (f"{name}_over_labels", "over labels ")):
            if key in gain:
                before, after = (metrics[policy][key] for policy in ("base", "trained"))
                line += f"; {what} {over}{before:.1%} before, {after:.1%} after"
                line += f" ({change(gain, key)})"
    clean = metrics["clean"]
    if clean["prompts"] < metrics["prompts"]:
        line += f"; {clean['prompts']} of them have no near-duplicate in training"
        line += f", reward {change(clean['gain'], 'reward')} on these" if clean["prompts"] else ""
    if not result.changed:
        line += "; training had no signal, so both policies are the same"
    return line


def change(gain: dict[str, Any], name: str) -> str:
    """Return a gain with its interval, where one is known."""
    mean, low, high = (gain[key] for key in (name, f"{name}_low", f"{name}_high"))
    if mean is None:
        return "unknown, for want of an opinion of any reward function,"
    return f"{mean:+.2f}" if low is None else f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


if __name__ == "__main__":
    stage.run("evaluate", main)
