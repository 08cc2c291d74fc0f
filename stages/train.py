r"""Train the policy by GRPO on prompts drawn by weight.

Example
-------
python stages/train.py --prompts data/prompts --density data/density \
    --difficulty data/difficulty --policy models/policy --reward models/reward --out models/grpo \
    --metrics reports/train/metrics.json --plots reports/train/plots/metrics \
    --realised reports/train/realised.csv
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from isodense.pipeline import notices, params, stage
from isodense.pipeline.runtime import BaseParams, resolve_device
from isodense.prompts.reader import load_prompts
from isodense.sampling.difficulty import load_difficulty
from isodense.sampling.schemes import BY_DIFFICULTY, prompt_weights
from isodense.sampling.weights import load_weights
from isodense.train.params import TrainParams
from isodense.train.train import check_reward, live_folder, read_manifests, train


def main(argv: list[str]) -> str:
    """Run the stage and return its summary line."""
    parser = stage.parser("train", __doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="prompts artifact to read")
    parser.add_argument("--density", type=Path, required=True, help="density artifact to read")
    parser.add_argument("--difficulty", type=Path, required=True, help="difficulty to read")
    parser.add_argument("--policy", type=Path, required=True, help="policy folder to read")
    parser.add_argument("--reward", type=Path, required=True, help="reward artifact to read")
    parser.add_argument("--out", type=Path, required=True, help="trained policy to write")
    parser.add_argument("--metrics", type=Path, required=True, help="dvclive's metrics.json")
    parser.add_argument("--plots", type=Path, required=True, help="dvclive's plots/metrics")
    learnt = "CSV of what was learnt from, to write"
    parser.add_argument("--realised", type=Path, required=True, help=learnt)
    args = parser.parse_args(argv)
    stage.relaunch(argv)
    base = params.load(args.params, "base", BaseParams)
    section = params.load(args.params, "train", TrainParams)
    live = live_folder(args.metrics, args.plots)
    prompts = load_prompts(args.prompts).split("train")
    difficulty = load_difficulty(args.difficulty) if section.sampling in BY_DIFFICULTY else None
    floor = section.difficulty_floor
    density = load_weights(args.density)
    weights = prompt_weights(prompts, density, section.sampling, difficulty, floor)
    inputs = read_manifests(args.prompts, args.density, args.policy, args.reward)
    if difficulty is not None:  # a run that does not draw by it stays as it is when it changes
        inputs["difficulty"] = difficulty.metadata
    check_reward(args.reward, section.on_weak_reward)
    from isodense.reward.scoring.load import (
        load_reward,  # here, so that a wrong param shows at once
    )

    report = train(
        prompts,
        weights,
        density.density,
        lambda device: load_reward(args.reward, args.policy, device),
        args.policy,
        section,
        seed=base.seed_of(f"train:{section.seed}"),
        device=resolve_device(base.device),
        cache=stage.cache(),
        inputs=inputs,
        out=args.out,
        live=live,
        table=args.realised,
    )
    first, last = report["reward_first_quarter"], report["reward_last_quarter"]
    others = notices.summary({"train": report, "step": section.max_steps})
    return (
        f"{report['draws']} draws of {report['distinct_prompts']} prompts, reward {first:.2f} in "
        f"the first quarter of the steps, {last:.2f} in the last{others}"
    )


if __name__ == "__main__":
    stage.run("train", main)
