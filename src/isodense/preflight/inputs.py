"""What the checks look at: the params of later stages, and a sample of the prompts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isodense.density.params import DensityParams
from isodense.difficulty.params import DifficultyParams
from isodense.evaluate.params import EvaluateParams
from isodense.pipeline import params
from isodense.pipeline.artifact import MANIFEST, read_manifest
from isodense.pipeline.tables import read_batches, read_rows, schema_of
from isodense.prompts.reader import OWN
from isodense.reward.params import RewardParams
from isodense.train.params import TrainParams

SAMPLE = 100_000  # prompts whose tokens are counted, evenly spread over all

Kind = tuple[tuple[str, ...], bool]  # the roles of a prompt, in order of appearance, and any tools


@dataclass(frozen=True)
class Inputs:
    """What the checks look at.

    Attributes
    ----------
    density, reward, difficulty, train, evaluate
        Sections of the params.
    prompts : Path
        The prompts artifact.
    policy, encoder : Path
        Model folders, which may be missing where only some artifacts were pulled.
    columns : list of str
        Names of the columns that the data came with.
    pairs : bool
        Whether the examples hold preference pairs.
    count, heldout : int
        Number of prompts, and of those that are held out.
    rows : list of dict
        Rows of ``data/prompts`` with ``prompt``, ``split`` and ``tools``: a sample of `SAMPLE`.
    labels : list of str or None
        Label of each training prompt, None where unknown.
    nulls : dict of str to int
        Number of prompts without a value, by column.
    kinds : dict
        A prompt of every set of roles, with and without tools, over all prompts.
    """

    density: DensityParams
    reward: RewardParams
    difficulty: DifficultyParams
    train: TrainParams
    evaluate: EvaluateParams
    prompts: Path
    policy: Path
    encoder: Path
    columns: list[str]
    pairs: bool
    count: int
    heldout: int
    rows: list[dict[str, Any]]
    labels: list[str | None] = field(default_factory=list)
    nulls: dict[str, int] = field(default_factory=dict)
    kinds: dict[Kind, dict[str, Any]] = field(default_factory=dict)

    @property
    def has_models(self) -> bool:
        """Whether both models are there."""
        return all((folder / MANIFEST).is_file() for folder in (self.policy, self.encoder))

    def said(self) -> str:
        """Return how many prompts were looked at."""
        sample = f"a sample of {len(self.rows)} of " if len(self.rows) < self.count else ""
        return f"{sample}{self.count} prompts"


def read_inputs(
    params_file: Path,
    examples: Path,
    prompts: Path,
    encoder: Path,
    policy: Path,
    sample: int | None = None,
) -> Inputs:
    """Read params and prompts; each stage's section is validated.

    Parameters
    ----------
    params_file : Path
        The params file.
    examples, prompts : Path
        Artifacts; without the examples it is not known whether there are pairs, and none are
        missed.
    encoder, policy : Path
        Model folders.
    sample : int, optional
        Prompts to count the tokens of; `SAMPLE` by default.

    Raises
    ------
    ParamsError
        If a section is not valid.
    ArtifactError
        If there are no prompts.
    """
    density = params.load(params_file, "density", DensityParams)
    reward = params.load(params_file, "reward", RewardParams)
    difficulty = params.load(params_file, "difficulty", DifficultyParams)
    train = params.load(params_file, "train", TrainParams)
    evaluate = params.load(params_file, "evaluate", EvaluateParams)
    count = read_manifest(prompts, "prompts")["rows"]
    size = min(sample or SAMPLE, count)
    wanted = set(np.linspace(0, count - 1, size).round().astype(int).tolist())
    rows: list[dict[str, Any]] = []
    kinds: dict[Kind, dict[str, Any]] = {}
    labels: list[str | None] = []
    for place, row in enumerate(read_rows(prompts, ["prompt", "split", "tools", "label"])):
        if row["split"] == "train":
            labels.append(row.get("label"))
        roles = tuple(dict.fromkeys(message["role"] for message in row["prompt"]))
        kinds.setdefault((roles, bool(row.get("tools"))), row)
        if place in wanted:
            rows.append(row)
    columns = [name for name in schema_of(prompts).names if name not in OWN]
    nulls = Counter[str]()
    for batch in read_batches(prompts, columns):
        nulls.update({name: batch.column(name).null_count for name in batch.schema.names})
    has_examples = (examples / "manifest.json").is_file()
    return Inputs(
        density=density,
        reward=reward,
        difficulty=difficulty,
        train=train,
        evaluate=evaluate,
        prompts=prompts,
        policy=policy,
        encoder=encoder,
        columns=columns,
        pairs=not has_examples or {"chosen", "rejected"} <= set(schema_of(examples).names),
        count=count,
        heldout=count - len(labels),
        rows=rows,
        labels=labels,
        nulls=nulls,
        kinds=kinds,
    )
