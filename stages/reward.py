r"""Make the reward and check it: on pairs of held-out prompts, or on the policy's completions.

Example
-------
python stages/reward.py --examples data/examples --prompts data/prompts --density data/density \
    --policy models/policy --raw models/raw --rewards rewards --out models/reward \
    --metrics reports/metrics/reward.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from isodense.download.examples import load_pairs
from isodense.pipeline import notices, params, stage
from isodense.pipeline.artifact import content_sha256, read_manifest, write_json
from isodense.pipeline.runtime import BaseParams, resolve_device
from isodense.pipeline.watched import require_tracked, warn_unwatched
from isodense.prompts.reader import load_prompts
from isodense.reward.fit import fit
from isodense.reward.pairs import require_any
from isodense.reward.params import RewardParams
from isodense.reward.scoring.check import is_weak, said, summary
from isodense.reward.scoring.functions import columns_of, find_functions, require_columns
from isodense.reward.scoring.source import project_files
from isodense.sampling.weights import load_leaked, load_weights


def main(argv: list[str]) -> str:
    """Run the stage and return its summary line."""
    parser = stage.parser("reward", __doc__)
    parser.add_argument("--examples", type=Path, required=True, help="examples artifact to read")
    parser.add_argument("--prompts", type=Path, required=True, help="prompts artifact to read")
    parser.add_argument("--density", type=Path, required=True, help="density artifact to read")
    parser.add_argument("--policy", type=Path, required=True, help="policy folder to read")
    parser.add_argument("--raw", type=Path, required=True, help="folder of the user's models")
    parser.add_argument("--rewards", type=Path, required=True, help="folder of reward functions")
    parser.add_argument("--out", type=Path, required=True, help="reward artifact to write")
    parser.add_argument("--metrics", type=Path, required=True, help="metrics file to write")
    args = parser.parse_args(argv)
    base = params.load(args.params, "base", BaseParams)
    section = params.load(args.params, "reward", RewardParams)
    if section.kind == "function":
        modules = [one.name.partition(":")[0] for one in section.functions]
        files = {path for name in modules for path in project_files(name, Path.cwd())}
        warn_unwatched(sorted(files), args.rewards, "reward.functions")
    if section.kind == "model" and section.model.source == "folder":
        require_tracked([str(section.model.name)], "reward.model.name")
        warn_unwatched([str(section.model.name)], args.raw, "reward.model.name")
    pairs = load_pairs(args.examples)
    require_any(section.kind, pairs)
    prompts = load_prompts(args.prompts)
    if section.kind == "function":
        require_columns(find_functions(section.functions), columns_of(prompts.rows))
    inputs = {
        "pairs": content_sha256(read_manifest(args.examples, "download")),
        "prompts": content_sha256(read_manifest(args.prompts, "prompts")),
    }
    weights = load_weights(args.density) if section.reads_weights else None
    if weights is not None:  # a reward that does not use them stays the same when they change
        inputs["density"] = content_sha256(weights.metadata)
    report = fit(
        pairs,
        prompts,
        args.policy,
        section,
        base.seed_of("reward"),
        resolve_device(base.device),
        stage.cache(),
        inputs,
        args.out,
        weights,
        load_leaked(args.density, prompts),
        read_manifest(args.prompts, "prompts")["params"].get("near_duplicate"),
    )
    write_json(args.metrics, {"reward": report})
    if "sampled" in report:
        rest = {name: x for name, x in report["sampled"].items() if name != "frac_reward_zero_std"}
        others = {**report, "sampled": rest}  # beside the share of groups that `said` has
        return said(report["sampled"]) + notices.summary({"reward": others})
    heldout, length = report["heldout"], report["length_only"]
    if is_weak(summary(report)):
        stage.log.warning(
            "not shown to be better than length alone: train.on_weak_reward says what follows"
        )
    line = (
        f"held-out accuracy {heldout['accuracy']:.3f} ({heldout['low']:.3f} to "
        f"{heldout['high']:.3f}) on {report['heldout_pairs']} pairs, by length "
        f"{length['accuracy']:.3f}{notices.summary({'reward': report})}"
    )
    if (clean := report["clean"])["pairs"] < report["heldout_pairs"]:
        line += f"; {clean['pairs']} of them have no near-duplicate in training"
        line += f", {clean['accuracy']:.3f} on these" if clean["pairs"] else ""
    return line


if __name__ == "__main__":
    stage.run("reward", main)
