"""The reward that GRPO optimises: of four kinds, all checked before anything is trained on them.

``head`` fits a linear probe on frozen features of the policy (:mod:`isodense.reward.linear_probe`),
``full`` trains all weights with TRL (:mod:`isodense.reward.trl`), ``model`` takes a finished reward
model and ``function`` code, the user's or TRL's (:mod:`isodense.reward.pretrained`). The pairs of
held-out prompts, which none was fitted on, give the accuracy of each, beside that of length alone
and chance (:mod:`isodense.reward.scoring.check`). Where there are none, the policy's completions
of a sample of training prompts show what the reward makes of them (:mod:`isodense.reward.sampled`).

What scores answers later (:mod:`isodense.reward.scoring`) imports none of these modules, and
training depends on it alone: changing how a reward is made does not rerun the training where the
reward stays the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.artifact import content_sha256, publishing, read_manifest, write_manifest
from isodense.pipeline.errors import TrainingError
from isodense.pipeline.params import as_dict
from isodense.prompts.conversations import id_of
from isodense.prompts.reader import PromptSet
from isodense.reward.base import Outcome, Task
from isodense.reward.pairs import (
    FITTED,
    folds_of,
    margins,
    pair_weights,
    require_any,
    require_both,
    sides,
    split_pairs,
)
from isodense.reward.params import RewardParams
from isodense.reward.scoring.check import accuracy, compare, over_labels, summary
from isodense.sampling.weights import Weights

log = logging.getLogger("isodense")


def fit(
    pairs: Sequence[dict[str, Any]],
    prompts: PromptSet,
    policy: Path,
    params: RewardParams,
    seed: int,
    device: str,
    cache: Path,
    inputs: dict[str, str],
    out: Path,
    weights: Weights | None = None,
    leaked: Collection[str] = (),
    near_duplicate: float | None = None,
) -> dict[str, Any]:
    """Make the reward, write ``models/reward`` and return what the metrics report.

    Parameters
    ----------
    pairs : sequence of dict
        Rows of ``data/examples`` that are pairs; none are needed by kinds model and function.
    prompts : PromptSet
        Says which prompts are held out.
    policy : Path
        The policy's artifact.
    params : RewardParams
        The stage's section.
    seed : int
        Seed of draws and of the weights of a new head, where the kind has them.
    device : str
        A torch device.
    cache : Path
        Root of the cache, outside all outputs.
    inputs : dict
        Content hashes of what `pairs`, `prompts` and `weights` were read from, for the manifest.
    out : Path
        The reward's artifact.
    weights : Weights, optional
        Weights of the density stage, if training pairs are to count by them.
    leaked : collection of str, optional
        Ids of held-out prompts with a near-duplicate in training: the metrics also have the
        accuracy without them. The artifact does not, and stays as it is when they change.
    near_duplicate : float, optional
        Similarity of near-duplicates, which are in one fold of the cross-validation.

    Raises
    ------
    TrainingError
        If the pairs do not suffice, or the fit, the training or a function fails.
    ModelError
        If the policy or the reward model cannot give the scores asked for.
    ArtifactError
        If the weights belong to other prompts.
    """
    require_any(params.kind, pairs)
    parts = split_pairs(pairs, prompts)
    by_pairs = params.kind in FITTED or bool(parts["train"] and parts["heldout"])
    if by_pairs:
        require_both(parts)
        _say_partial(parts["train"], prompts)
    train, heldout = (parts[name] if by_pairs else [] for name in ("train", "heldout"))
    shares = pair_weights(train, prompts, weights)
    folds = folds_of(train, prompts, near_duplicate)
    task = Task(train, heldout, shares, folds, prompts, policy, params, seed, device, cache)
    inputs = inputs | {"policy": content_sha256(read_manifest(policy, "models"))}
    with publishing(out) as staging:
        made = _maker(params.kind)(task, staging)
        report = _by_pairs(task, made, leaked) if by_pairs else _by_completions(task, made, staging)
        check = summary(report) if by_pairs else {"sampled": report["sampled"]}
        used = params.used() | ({} if by_pairs else {"check": as_dict(params.check)})
        write_manifest(
            staging,
            "reward",
            reward_kind=params.kind,
            params=used,
            inputs=inputs,
            check=check,
            **({"solved_above": params.solved_above} if params.kind == "function" else {}),
            **made.fields,
        )
    crossed = made.cross_validated
    if not by_pairs:
        return {"kind": params.kind, **report}
    return {
        "train_pairs": len(train),
        "heldout_pairs": len(heldout),
        "unknown_pairs": len(parts["unknown"]),
        "truncated_pairs": made.truncated,
        **({} if made.train is None else {"train": accuracy(made.train)}),
        **({} if crossed is None else {"cross_validation": accuracy(crossed)}),
        **report,
    }


def _by_pairs(task: Task, made: Outcome, leaked: Collection[str]) -> dict[str, Any]:
    """Return the accuracy on the held-out pairs, beside that of length alone, and on clean ones."""
    if not np.isfinite(made.heldout).all():
        message = f"the scores of {len(task.heldout)} held-out pairs are not all finite"
        hint = "choose another model; of kind full, lower reward.full.learning_rate"
        raise TrainingError(message, hint)
    lengths = _length_margins(task.policy, task.heldout + task.train)
    found = compare(made.heldout, *np.split(lengths, [len(task.heldout)]))
    if task.params.kind in FITTED:
        found["heldout"]["log_loss"] = round(float(np.logaddexp(0, -made.heldout).mean()), 9)
    if task.prompts.labels_are_kinds:
        by_id = {row["id"]: row.get("label") for row in task.prompts.rows}
        found["over_labels"] = over_labels(
            made.heldout, [by_id[id_of(pair)] for pair in task.heldout]
        )
    clean = made.heldout[[id_of(pair) not in leaked for pair in task.heldout]]
    found["clean"] = {"pairs": len(clean), **(accuracy(clean) if len(clean) else {})}
    return found


def _by_completions(task: Task, made: Outcome, out: Path) -> dict[str, Any]:
    from isodense.reward.sampled import check

    if made.reward is None:
        raise TypeError(f"kind {task.params.kind} gave no reward to check without pairs")
    return check(task, made.reward, out)


def _say_partial(train: Sequence[dict[str, Any]], prompts: PromptSet) -> None:
    """Say how many training prompts have pairs, unless all have."""
    having = len({id_of(pair) for pair in train})
    if having < (total := len(prompts.split("train"))):
        log.info("%d of %d training prompts have pairs", having, total)


def _maker(kind: str) -> Callable[[Task, Path], Outcome]:
    if kind == "head":
        from isodense.reward.linear_probe import make
    elif kind == "full":
        from isodense.reward.trl import make
    elif kind == "model":
        from isodense.reward.pretrained import make_model as make
    else:
        from isodense.reward.pretrained import make_function as make
    return make


def _length_margins(policy: Path, pairs: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return tokens of the chosen answer less those of the rejected one, by the policy's count."""
    from isodense.models.inference.policy import answer_tokens, load_tokenizer

    tokens = answer_tokens(load_tokenizer(policy), sides(pairs)[1])
    return margins(np.array([len(row) for row in tokens]))
