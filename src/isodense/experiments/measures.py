"""What a comparison measures, and which measure decides it.

Several dozen intervals are looked at, so that some exclude 0 by chance. One measure decides, and is
named before there are runs to look at: by ``--measure``, or by a rule that looks at the params
alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isodense.experiments.plan import Run, effective
from isodense.pipeline.artifact import write_json
from isodense.pipeline.errors import IsodenseError

TRAINED = "eval.trained."
QUANTITIES = {
    "answer_probability": "probability of the answer",
    "pass_at_1": "pass@1",
    "reward": "reward",
}
MEANS = {
    "_over_labels": ", mean over labels",
    "": "",
    "_rarer_half": ", rarer half of the labels",
    "_rarest_quarter": ", rarest quarter",
    "_commonest_quarter": ", commonest quarter",
    "_worst_quarter": ", worst quarter",
    "_evened": ", prompts weighted by density",
}
MEASURES = {  # path of the metric: title
    "judge.over_labels": "reward by one judge, mean over labels",
    "judge.all": "reward by one judge",
    "judge.sparse": "… sparsest third of the prompts",
    "judge.crowded": "… most crowded third",
    **{
        f"{TRAINED}{name}{mean}": f"{title}{words}"
        for name, title in QUANTITIES.items()
        for mean, words in MEANS.items()
    },
    "eval.gain.reward": "gain in the arm's reward",
    "reward.heldout.accuracy": "accuracy of the reward",
    f"{TRAINED}distinct_2": "distinct-2",
    f"{TRAINED}self_bleu": "self-BLEU",
    f"{TRAINED}vendi": "Vendi score",
    f"{TRAINED}vendi_within": "Vendi score within prompts",
    f"{TRAINED}frac_reward_zero_std": "frac_reward_zero_std",
    f"{TRAINED}kl": "KL to the base, nats",
    f"{TRAINED}em_dash": "em-dash",
    f"{TRAINED}not_just_but": "not just … but",
    f"{TRAINED}tokens": "tokens",
    f"{TRAINED}clipped_ratio": "clipped_ratio",
    "train.distinct_prompts": "distinct prompts trained on",
    "train.distinct_labels": "distinct labels trained on",
    "train.steps_with_signal": "steps with signal in training",
    "train.zero_signal_share": "groups without signal in training",
    "train.realised_total_variation": "realised against nominal shares, total variation",
    "train.drawn_total_variation": "drawn against nominal shares",
    "train.realised_total_variation_over_labels": "realised against nominal, over labels",
    "train.drawn_total_variation_over_labels": "drawn against nominal, over labels",
}


def deciding(
    measure: str | None, params: dict[str, Any], settings: Sequence[str]
) -> tuple[str, ...]:
    """Return the measures that decide: the first of them that all runs have.

    By default it is the mean over labels, or over prompts where there are no labels: of the
    probability of the answer where ``evaluate.answer`` is set, of pass@1 where reward functions say
    what is solved, else of the judge's reward.

    Parameters
    ----------
    measure : str or None
        Path of a metric in `MEASURES`, where ``eval.trained.`` may be left out; None: the default.
    params : dict
        ``params.yaml``.
    settings : sequence of str
        What the comparison sets, as ``section.key=value``.

    Raises
    ------
    IsodenseError
        If there is no such measure.
    """
    if measure is not None:
        found = next((one for one in (measure, TRAINED + measure) if one in MEASURES), None)
        if found is None:
            names = ", ".join(one.removeprefix(TRAINED) for one in MEASURES)
            raise IsodenseError(f"no measure {measure!r}", f"name one of {names}")
        return (found,)

    def value(name: str) -> Any:
        return effective(params, name, settings)

    if value("evaluate.answer") is not None:
        quantity = f"{TRAINED}answer_probability"
    elif value("reward.kind") == "function" and value("reward.solved_above") is not None:
        quantity = f"{TRAINED}pass_at_1"
    else:
        return ("judge.over_labels", "judge.all")
    return (f"{quantity}_over_labels", quantity)


def note(measures: Sequence[str], runs: Sequence[Run], path: Path) -> None:
    """Write down which measure decides about which runs, before they run.

    Parameters
    ----------
    measures : sequence of str
        What :func:`deciding` returns.
    runs : sequence of Run
    path : Path
        The file.

    Raises
    ------
    IsodenseError
        If another measure was noted there for some of the runs, or the file is damaged.
    """
    names = [run.name for run in runs]
    decide = list(measures)
    if path.is_file():
        decided, known = _noted(path)
        if same := set(names).intersection(known):
            if decided[0] != measures[0]:
                first = decided[0].removeprefix(TRAINED)
                message = f"{path} says that {first} decides about {len(same)} of these runs"
                hint = f"keep to it (--measure {first}), or look at another in another --output"
                raise IsodenseError(message, hint)
            names, decide = list(dict.fromkeys([*known, *names])), decided
    write_json(path, {"measure": decide, "runs": names})


def _noted(path: Path) -> tuple[list[str], list[str]]:
    """Return the measures and the names of the runs that :func:`note` wrote."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        measures, runs = found["measure"], found["runs"]
        if measures and {*measures} <= MEASURES.keys() and all(isinstance(x, str) for x in runs):
            return [*measures], [*runs]
    except (ValueError, TypeError, KeyError):
        pass
    message = f"{path} does not say which measure decides about which runs"
    raise IsodenseError(message, "restore it, or name another --output")


def chosen(measures: Sequence[str], present: Sequence[str]) -> str:
    """Return the measure that decides: the first that all runs have.

    Raises
    ------
    IsodenseError
        If they have none of them.
    """
    for measure in measures:
        if measure in present:
            return measure
    known = ", ".join(one.removeprefix(TRAINED) for one in present)
    raise IsodenseError(f"the runs have no {measures[0]}", f"--measure one of {known}")
