"""What came of it in words: how many copies, how even the weights, and what they would do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isodense.density.opinion import sentences

REACHED = 1e-6  # a target is reached this closely
VISIBLE = 0.005  # of shares in whole percents
READERS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json"}  # builders of `datasets`


def describe(facts: Mapping[str, Any]) -> str:
    """Return the opinion on a set of prompts and its weights, a paragraph a line.

    Parameters
    ----------
    facts : mapping
        :attr:`isodense.weighing.result.Weighed.facts`.
    """
    return "\n".join(
        [
            _counts(facts) + _neighbors(facts),
            _copies(facts),
            _weights(facts) + _target(facts),
            *sentences(facts["opinion"], standalone=True),
        ]
    )


def _counts(facts: Mapping[str, Any]) -> str:
    line = f"{_number(facts['rows'], 'row')}, {_number(facts['prompts'], 'different prompt')}"
    if facts["skipped"]:
        line += f"; {_number(facts['skipped'], 'row')} without a prompt left out"
    return line + "."


def _neighbors(facts: Mapping[str, Any]) -> str:
    """Return that there are fewer neighbours than were asked for; nothing where there are not."""
    asked, used = facts["neighbors"]["asked"], facts["neighbors"]["used"]
    if used == asked:
        return ""
    verb, others = "is" if used == 1 else "are", _number(used, "other") if used else "no others"
    return f" There {verb} {others} to compare each with, not {asked:,} (--k)."


def _copies(facts: Mapping[str, Any]) -> str:
    repeated, near = facts["repeated"], facts["prompts_in_duplicate_clusters"]
    line = "no row repeats an earlier prompt"
    if repeated:
        share, verb = repeated / facts["rows"], "repeats" if repeated == 1 else "repeat"
        line = f"{_number(repeated, 'row')} ({share:.1%}) {verb} an earlier prompt"
    if not near:
        return f"Copies: {line}, and no two prompts are near-duplicates."
    clusters = _number(facts["duplicate_clusters"], "cluster")
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


def _target(facts: Mapping[str, Any]) -> str:
    """Return whether the target was reached; nothing where that is to be seen, or there is none."""
    target = facts["target"]
    asked, reached = target["ess_share"], target["reached"]
    if reached is None:
        return ""
    share = f"{reached:.0%} of {_number(target['of'], 'prompt')}"
    share += ", near-duplicates taken as one" if target["of"] < facts["prompts"] else ""
    if abs(reached - asked) <= REACHED:
        seen = abs(facts["ess_share"] - asked) < VISIBLE
        return "" if seen else f" Before kinds and counts enter it is {share}, as --ess asks."
    missed = f" The target of {100 * asked:.6g}% (--ess) cannot be reached: it is {share}, "
    if reached < asked:
        return f"{missed}because paraphrases share their weights."
    if reached > 1 - REACHED:
        return f"{missed}because all are equally crowded."
    bound = f"density.alpha_max = {target['alpha_max']:g}"
    return (
        f"{missed}with the largest exponent, {bound}; -S density.alpha_max=… allows a larger one."
    )


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def training_lines(path: Path, draws: int, encoded: bool = False) -> str:
    """Return the lines of Python that train on draws from a file of weights.

    Parameters
    ----------
    path : Path
        What :meth:`isodense.weighing.result.Weighed.save` wrote.
    draws : int
        How many prompts to draw.
    encoded : bool
        Whether prompts are JSON text in the file.
    """
    reader = READERS[path.suffix.lower()]
    parse = 'data = data.map(lambda row: {"prompt": json.loads(row["prompt"])})\n'
    return (
        "# pip install 'isodense[train]'; model and reward are yours\n"
        f"import {'json, ' * encoded}datasets, isodense, trl\n\n"
        f'data = datasets.load_dataset("{reader}", data_files="{path.as_posix()}", split="train")\n'
        f"{parse * encoded}"
        f'plan = data.select(isodense.draw(data["weight"], size={draws}, seed=0))\n'
        "trl.GRPOTrainer(model, reward, train_dataset=plan, "
        "args=trl.GRPOConfig(shuffle_dataset=False, num_train_epochs=1)).train()\n"
    )
