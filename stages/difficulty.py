r"""Measure how often the untrained policy solves each training prompt, once and for all.

Off by default (difficulty.completions: 0): the artifact is then empty and no model is opened.
Workers share the prompts, as in the embeddings stage:

ISODENSE_EXECUTOR=ray RAY_ADDRESS=10.0.0.1:6379 dvc repro difficulty

Example
-------
python stages/difficulty.py --prompts data/prompts --policy models/policy \
    --reward models/reward --out data/difficulty --metrics reports/metrics/difficulty.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from isodense.difficulty.artifact import describe, publish, publish_empty
from isodense.difficulty.column import counts_from
from isodense.difficulty.measure import Measurement, measure
from isodense.difficulty.params import DifficultyParams
from isodense.pipeline import notices, params, stage
from isodense.pipeline.artifact import content_sha256, read_manifest, write_json
from isodense.pipeline.executor import device_of_workers
from isodense.pipeline.runtime import BaseParams
from isodense.prompts.reader import load_prompts


def main(argv: list[str]) -> str:
    """Run the stage and return its summary line."""
    parser = stage.parser("difficulty", __doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="prompts artifact to read")
    parser.add_argument("--policy", type=Path, required=True, help="policy folder to read")
    parser.add_argument("--reward", type=Path, required=True, help="reward artifact to read")
    parser.add_argument("--out", type=Path, required=True, help="difficulty artifact to write")
    parser.add_argument("--metrics", type=Path, required=True, help="metrics file to write")
    args = parser.parse_args(argv)
    base = params.load(args.params, "base", BaseParams)
    section = params.load(args.params, "difficulty", DifficultyParams)
    if not section.completions:
        publish_empty(args.out)
        write_json(args.metrics, {"difficulty": {"completions": 0}})
        return "off (difficulty.completions: 0)"
    prompts = load_prompts(args.prompts)
    inputs = {"prompts": content_sha256(read_manifest(args.prompts, "prompts"))}
    train, others = prompts.split("train"), {}
    if section.column is not None:
        solved, completions = counts_from(train, section.column, section.completions)
    else:
        seed, device = base.seed_of("difficulty"), device_of_workers(base.device)
        task = Measurement(args.policy, args.reward, section, seed, device)
        found = measure(prompts, task, stage.cache())
        solved, completions = found.pop("solved"), found.pop("completions")
        others = found
        for name, path, kind in (
            ("policy", args.policy, "models"),
            ("reward", args.reward, "reward"),
        ):
            inputs[name] = content_sha256(read_manifest(path, kind))
    publish(train, solved, completions, section, inputs, args.out)
    report = describe(solved, completions) | others
    write_json(args.metrics, {"difficulty": report})
    known = f"{report['prompts'] - report['unknown']} of {report['prompts']} prompts"
    rate = f", solved {report['pass_rate']:.1%} of the time" if "pass_rate" in report else ""
    return f"{known}{rate}{notices.summary({'difficulty': report})}"


if __name__ == "__main__":
    stage.run("difficulty", main)
