"""Where the stages of ``dvc.yaml`` put what they make, by default: one table for all commands.

``dvc.yaml`` decides; stages are told by flags. Commands and checks, which run beside it, take their
defaults from here.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Artifact(NamedTuple):
    """A folder with a manifest.

    Attributes
    ----------
    stage : str
        The stage that makes it.
    path : Path
        The folder, from the project's.
    """

    stage: str
    path: Path


ARTIFACTS = {
    "examples": Artifact("download", Path("data/examples")),
    "encoder": Artifact("models", Path("models/encoder")),
    "policy": Artifact("models", Path("models/policy")),
    "prompts": Artifact("prompts", Path("data/prompts")),
    "embeddings": Artifact("embeddings", Path("data/embeddings")),
    "neighbors": Artifact("neighbors", Path("data/neighbors")),
    "map": Artifact("map", Path("data/map")),
    "density": Artifact("density", Path("data/density")),
    "reward": Artifact("reward", Path("models/reward")),
    "difficulty": Artifact("difficulty", Path("data/difficulty")),
    "trained": Artifact("train", Path("models/grpo")),
}
METRICS = {  # by stage
    "download": Path("reports/metrics/download.json"),
    "prompts": Path("reports/metrics/prompts.json"),
    "embeddings": Path("reports/metrics/embeddings.json"),
    "neighbors": Path("reports/metrics/neighbors.json"),
    "density": Path("reports/metrics/density.json"),
    "reward": Path("reports/metrics/reward.json"),
    "difficulty": Path("reports/metrics/difficulty.json"),
    "train": Path("reports/train/metrics.json"),
    "evaluate": Path("reports/metrics/evaluate.json"),
}
SERIES = Path("reports/train/plots/metrics")  # of training, step by step
REALISED = Path("reports/train/realised.csv")  # draws and signals by decile and label
DECILES = Path("reports/plots/reward_by_decile.csv")
COMPLETIONS = Path("reports/completions.jsonl")
PAGE = Path("reports/index.html")
