"""Kinds ``model`` and ``function``: rewards that are taken as they are and only checked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isodense.models.params import ModelParams
from isodense.models.publish import publish
from isodense.pipeline.errors import ModelError
from isodense.reward.base import Outcome, Task
from isodense.reward.pairs import cut_pairs, margins, sides
from isodense.reward.scoring.functions import (
    FunctionReward,
    columns_of,
    find_functions,
    require_columns,
)

log = logging.getLogger("isodense")


def make_model(task: Task, out: Path) -> Outcome:
    """Fetch the reward model and score the held-out pairs; see :func:`isodense.reward.fit.fit`."""
    from isodense.reward.scoring.classifier import MODEL, Classifier

    source, name = task.params.model.source, str(task.params.model.name)
    if source == "folder" and not Path(name).expanduser().is_dir():
        raise ModelError(f"{name}: no such folder", "correct reward.model.name")
    model = ModelParams(
        source=source or "hub", name=name, version=task.params.model.version, sha256=None, path=None
    )
    publish("reward", model, out / MODEL, task.cache)
    if not task.heldout:
        params = task.params
        path = out / MODEL
        reward = Classifier(path, params.max_tokens, params.batch_tokens, task.device)
        return Outcome(np.empty(0), reward=reward)
    scores, cut = score_pairs(task, out, task.heldout)
    return Outcome(margins(scores), truncated=cut)


def make_function(task: Task, out: Path) -> Outcome:
    """Find the functions and score the held-out pairs; see :func:`isodense.reward.fit.fit`.

    A pair of which no function has an opinion on one side is a tie.
    """
    functions = find_functions(task.params.functions)
    columns = columns_of(task.prompts.rows)
    require_columns(functions, columns)
    reward = FunctionReward(functions, columns, task.policy)
    fields = {
        "functions": [
            {name: getattr(one, name) for name in ("name", "label", "weight", "args", "sha256")}
            for one in functions
        ],
        "columns": columns,
    }
    if not task.heldout:
        return Outcome(np.empty(0), fields=fields, reward=reward)
    answers = sides(task.heldout)[1]
    found = margins(reward.score(task.heldout * 2, answers))
    if unknown := int(np.isnan(found).sum()):
        log.warning("%d of %d held-out pairs are ties for want of an opinion", unknown, len(found))
    return Outcome(np.nan_to_num(found, nan=0.0), fields=fields, reward=reward)


def score_pairs(task: Task, out: Path, pairs: Sequence[dict[str, Any]]) -> tuple[np.ndarray, int]:
    """Score pairs with the sequence classifier in `out`.

    Returns
    -------
    scores : ndarray of shape (2 * n_pairs,), float32
        In the order of :func:`isodense.reward.fit.sides`.
    cut : int
        Pairs of which a conversation was cut.
    """
    from tqdm import tqdm

    from isodense.pipeline.stage import progress
    from isodense.reward.scoring.classifier import MODEL, Classifier

    params = task.params
    classifier = Classifier(out / MODEL, params.max_tokens, params.batch_tokens, task.device)
    ids, cut = classifier.tokenize(*sides(pairs))
    with tqdm(total=len(ids), unit="answer", **progress()) as bar:
        scores = classifier.of_tokens(ids, bar.update)
    return scores, cut_pairs(np.array(cut))
