"""Kinds ``model`` and ``function``: rewards that are taken as they are and only checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isodense.models.params import ModelParams
from isodense.models.publish import publish
from isodense.pipeline.errors import ModelError
from isodense.reward.base import Outcome, Task
from isodense.reward.pairs import cut_pairs, margins, sides


def make_model(task: Task, out: Path) -> Outcome:
    """Fetch the reward model and score the held-out pairs; see :func:`isodense.reward.fit.fit`."""
    from isodense.reward.scoring.classifier import MODEL

    source, name = task.params.model.source, str(task.params.model.name)
    if source == "folder" and not Path(name).expanduser().is_dir():
        raise ModelError(f"{name}: no such folder", "correct reward.model.name")
    model = ModelParams(
        source=source or "hub", name=name, version=task.params.model.version, sha256=None, path=None
    )
    publish("reward", model, out / MODEL, task.cache)
    scores, cut = score_pairs(task, out, task.heldout)
    return Outcome(margins(scores), truncated=cut)


def make_function(task: Task, out: Path) -> Outcome:
    """Score the held-out pairs with the function; see :func:`isodense.reward.fit.fit`."""
    from isodense.reward.scoring.function import FunctionReward

    reward = FunctionReward(str(task.params.function), task.prompts)
    scores = reward.score(*sides(task.heldout))
    fields = {"function": {"name": reward.name, "sha256": reward.sha256}}
    return Outcome(margins(scores), fields=fields)


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
