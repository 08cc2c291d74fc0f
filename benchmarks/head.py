"""Does a reward head that is fitted by density weights judge better? On the pipeline's own pairs.

Usage
-----
dvc repro reward density
python benchmarks/head.py

The training pairs of the last ``dvc repro`` are cross-validated in the stage's five folds: a head
is fitted on four of them with all pairs alike, and once more by the weights of the density stage.
How often the margin is right is given over pairs, as lopsided as they come, and over labels, all
alike, with 95% intervals of the difference.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from isodense.download.examples import load_pairs
from isodense.evaluate.metrics import named_mean
from isodense.pipeline import params, stage
from isodense.prompts.conversations import id_of
from isodense.prompts.params import PromptsParams
from isodense.prompts.reader import load_prompts
from isodense.reward.features import load_features
from isodense.reward.linear_probe import fit_head
from isodense.reward.pairs import FOLDS, folds_of, pair_weights, sides, split_pairs
from isodense.reward.params import RewardParams
from isodense.sampling.weights import load_weights


def main() -> None:
    """Cross-validate both heads and print the table."""
    section = params.load("params.yaml", "reward", RewardParams)
    split = params.load("params.yaml", "prompts", PromptsParams)
    prompts = load_prompts("data/prompts")
    parts = split_pairs(load_pairs("data/examples"), prompts)
    pairs, every = parts["train"], parts["train"] + parts["heldout"]
    asked, answers = sides(every)  # the stage's own, so that its features are found
    policy, tools = Path("models/policy"), [pair.get("tools") for pair in every] * 2
    rows, _ = load_features(asked, answers, policy, section, "cpu", stage.cache(), tools)
    weights = load_weights("data/density")
    shares = {name: pair_weights(pairs, prompts, given)
              for name, given in (("uniform", None), ("density", weights))}  # fmt: skip
    folds = folds_of(pairs, prompts, split.near_duplicate)
    chosen, rejected = (side[: len(pairs)] for side in np.split(np.asarray(rows), 2))
    right = np.zeros((len(pairs), len(shares)))
    for fold in tqdm(range(FOLDS)):
        fitted, judged = folds != fold, folds == fold
        for arm, share in enumerate(shares.values()):
            weight = share[fitted] / share[fitted].mean()
            head = fit_head(chosen[fitted], rejected[fitted], section.l2, weight)
            margin = (chosen[judged] - rejected[judged]).astype(np.float64) @ head.weight
            right[judged, arm] = 100.0 * (margin > 0)
    by_label = defaultdict(list)
    label_of = {row["id"]: row.get("label") for row in prompts.rows}
    for row, pair in enumerate(pairs):
        by_label[label_of[id_of(pair)]].append(row)
    print("| | uniform | density | density − uniform | n |\n| --- | ---: | ---: | ---: | ---: |")
    for name, groups in (("pairs", [[row] for row in range(len(pairs))]),
                         ("labels", list(by_label.values()))):  # fmt: skip
        both = np.array([right[rows].mean(axis=0) for rows in groups])
        found = named_mean("by", both[:, 1] - both[:, 0])
        uniform, density = both.mean(axis=0)
        print(f"| over {name} | {uniform:.1f} | {density:.1f} | {found['by']:+.2f} "
              f"({found['by_low']:+.2f} to {found['by_high']:+.2f}) | {len(groups)} |")  # fmt: skip


if __name__ == "__main__":
    main()
