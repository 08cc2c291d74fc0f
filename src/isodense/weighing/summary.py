"""What came of it in words: how many copies, how even the weights, and what they would do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isodense.density.opinion import sentences

READERS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json"}  # builders of `datasets`


def describe(facts: Mapping[str, Any]) -> str:
    """Return the opinion on a set of prompts and its weights, a paragraph a line.

    Parameters
    ----------
    facts : mapping
        :attr:`isodense.weighing.result.Weighed.facts`.
    """
    return "\n".join(
        [_counts(facts), _copies(facts), _weights(facts), *sentences(facts["opinion"])]
    )


def _counts(facts: Mapping[str, Any]) -> str:
    line = f"{facts['rows']:,} rows, {facts['prompts']:,} different prompts"
    if facts["skipped"]:
        line += f"; {facts['skipped']:,} rows without a prompt left out"
    return line + "."


def _copies(facts: Mapping[str, Any]) -> str:
    repeated, near = facts["repeated"], facts["prompts_in_duplicate_clusters"]
    line = "no row repeats an earlier prompt"
    if repeated:
        line = f"{repeated:,} rows ({repeated / facts['rows']:.1%}) repeat an earlier prompt"
    if not near:
        return f"Copies: {line}, and no two prompts are near-duplicates."
    count = facts["duplicate_clusters"]
    clusters = "1 cluster" if count == 1 else f"{count:,} clusters"
    return (
        f"Copies: {line}; {near:,} prompts are near-duplicates, in {clusters}: "
        f"{facts['duplicates_mass_uniform']:.1%} of the prompts, and "
        f"{facts['duplicates_mass']:.1%} of the draws by weight."
    )


def _weights(facts: Mapping[str, Any]) -> str:
    return (
        f"Weights: {facts['min_over_mean']:.2f} to {facts['max_over_mean']:.2f} times the mean, as "
        f"even as {facts['ess']:,.0f} equal ones of {facts['prompts']:,} (effective sample size, "
        f"{facts['ess_share']:.0%})."
    )


def training_lines(path: Path, draws: int) -> str:
    """Return three lines of Python that train on draws from a file of weights.

    Parameters
    ----------
    path : Path
        What :meth:`isodense.weighing.result.Weighed.save` wrote.
    draws : int
        How many prompts to draw.
    """
    reader = READERS[path.suffix.lower()]
    return (
        "import datasets, isodense, trl\n\n"
        f'data = datasets.load_dataset("{reader}", data_files="{path.as_posix()}", split="train")\n'
        f'plan = data.select(isodense.draw(data["weight"], size={draws}, seed=0))\n'
        "trl.GRPOTrainer(model, reward, args=trl.GRPOConfig(shuffle_dataset=False), "
        "train_dataset=plan).train()\n"
    )
