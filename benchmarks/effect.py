"""Does sampling by density help? The experiment of docs/experiments.md, as DVC experiments.

Usage
-----
python benchmarks/effect.py                        # the headline: an hour on two CPUs
python benchmarks/effect.py --quick                # density against the wrong sign: ten minutes
python benchmarks/effect.py --seeds 4 --arms uniform density-0.9 semdedup --out /tmp/other-arms
python benchmarks/effect.py --policy lopsided
python benchmarks/effect.py --steps 24

Each seed has a data set and a policy of its own (sources ``skills``), and trains it once for each
arm: GRPO through TRL, 8 prompts of 8 completions a step, all weights. The measure that decides is
named here, before the runs: the probability of the right answer, mean over the 40 skills, on 1,600
held-out requests of which each skill has 40. Seeds begin at 200: hyper-parameters were chosen on
others. Finished runs are not run again; results go to ``benchmarks/effect/``, as JSON, table and
figure.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from isodense.density.plots import BLUE, GREY, save
from isodense.experiments.compare import compare
from isodense.experiments.differences import describe

ARMS = ["uniform", "density", "oracle", "inverted"]
MEASURE = "answer_probability_over_labels"
PANELS = {
    "over_labels": "mean over the skills",
    "rarer_half": "rarer half of the skills",
    "commonest_quarter": "commonest quarter",
}
SETTINGS = (
    "base.seed=20{seed}",
    "download.sources=[skills]",
    "models.policy.source=skills",
    "models.policy.version='20{seed}'",
    "models.policy.sha256=null",
    "models.policy.path=null",
    "prompts.heldout=0.0",  # the source says what is held out
    "reward.kind=function",
    "reward.functions=['isodense.reward.answers:exact_match']",
    "reward.check.max_completion_tokens=10",
    "train.prompts_per_step=8",
    "train.num_generations=8",
    "train.completions_per_pass=64",
    "train.max_prompt_tokens=96",
    "train.max_completion_tokens=10",
    "train.learning_rate=3.0e-4",
    "train.save_steps=120",
    "train.lora=null",
    "evaluate.max_prompts=null",
    "evaluate.answer=answer",
    "evaluate.num_generations=2",
    "evaluate.max_completion_tokens=10",
)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = "those of isodense compare; the first is the baseline"
    parser.add_argument("--arms", nargs="+", default=ARMS, help=f"{known} ({' '.join(ARMS)})")
    parser.add_argument(
        "--seeds", type=int, default=8, help="data, policies and draws of each arm (8)"
    )
    parser.add_argument("--steps", type=int, default=240, help="of each training (240)")
    parser.add_argument(
        "--policy",
        choices=("even", "lopsided"),
        default="even",
        help="supervised on all skills alike (even), or then on the lopsided set too",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="trainings at once (one per CPU)"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the results (benchmarks/effect/POLICY-STEPS)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="density against the wrong sign, without a uniform arm, 2 seeds",
    )
    args = parser.parse_args()
    arms, seeds, steps = args.arms, args.seeds, args.steps
    if args.quick:
        arms, seeds = ["inverted", "density"], 2
    settings = [*SETTINGS, f"models.policy.name={args.policy}", f"train.max_steps={steps}"]
    if any("difficulty" in arm for arm in arms):
        settings += ["difficulty.completions=8", "difficulty.max_completion_tokens=10"]
    name = "quick" if args.quick else f"{args.policy}-{steps}"
    out = args.out or Path("benchmarks/effect") / name
    rows = compare(arms, seeds, settings, out, args.jobs, MEASURE)
    sys.stdout.write(describe(rows))
    draw(json.loads((out / "results.json").read_text()), out / "effect.png")


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the differences to the first arm, in points: all skills, the rarer half, the commonest.

    Parameters
    ----------
    results : dict
        ``results.json``.
    path : Path
        The PNG.
    """
    arms = results["arms"][1:]
    made = Figure(figsize=(11, 1 + 0.55 * len(arms)), layout="constrained")
    axes = made.subplots(1, len(PANELS), sharex=True, sharey=True)
    for axis, (part, title) in zip(axes, PANELS.items(), strict=True):
        for place, arm in enumerate(arms):
            (row,) = (
                row
                for row in results["rows"]
                if row["arm"] == arm and row["measure"] == f"eval.trained.answer_probability_{part}"
            )
            low, mean, high = (
                100 * row[name] for name in ("difference_low", "difference", "difference_high")
            )
            axis.plot([low, high], [place, place], color=BLUE, linewidth=3)
            axis.plot(mean, place, "o", color=BLUE)
        axis.axvline(0, color=GREY, linestyle="--", linewidth=1)
        axis.set(title=title, yticks=range(len(arms)), yticklabels=arms)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    base, seeds = results["arms"][0], results["seeds"]
    made.supxlabel(f"points of accuracy over {base} sampling, 95% interval over {seeds} seeds")
    save(made, path)


if __name__ == "__main__":
    main()
