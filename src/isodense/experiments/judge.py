"""One judge for all arms: the reward of the first one scores the completions of each.

Rewards that were fitted differently cannot be compared with each other. A run whose reward is that
of the first arm has been judged already, by its own evaluation; completions of the others are
scored by the reward of the first arm with the same seed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isodense.evaluate.averages import label_means
from isodense.evaluate.intervals import mean_known
from isodense.experiments.arms import DRAWING
from isodense.experiments.plan import Run
from isodense.pipeline.layout import ARTIFACTS, COMPLETIONS
from isodense.sampling.remote import open_files

Rows = list[dict[str, Any]]


def collect(runs: Sequence[Run], shas: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Return the metrics of every run, with the judge's scores.

    Parameters
    ----------
    runs : sequence of Run
        Finished runs, of which the first of a seed has the reward that judges.
    shas : mapping of str to str
        Commits of experiments by name.

    Returns
    -------
    dict
        A list of metrics for each arm, in the order of seeds.
    """
    import dvc.api

    found: dict[str, list[dict[str, Any]]] = {run.arm: [] for run in runs}
    for run in runs:
        sha = shas[run.name]
        files, inside = open_files(".", sha)
        text = files.read_text(f"{inside}/{COMPLETIONS.as_posix()}", encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        metrics = dvc.api.metrics_show(rev=sha)
        first = next(one for one in runs if one.seed == run.seed)
        if (run.arm in DRAWING) == (first.arm in DRAWING):
            rewards = np.array([row["trained_reward"] for row in rows], dtype=np.float64)
            judge = by_density(rewards, rows)
            if (mean := metrics["eval"]["trained"].get("reward_over_labels")) is not None:
                judge["over_labels"] = mean
        else:
            judge = _scored(rows, shas[first.name])
        found[run.arm].append({**metrics, "judge": judge})
    return found


def _scored(rows: Rows, sha: str) -> dict[str, float]:
    """Return what the reward of the experiment `sha` says of the completions."""
    import dvc.api

    from isodense.pipeline.runtime import resolve_device
    from isodense.prompts.reader import load_prompts
    from isodense.reward.scoring.load import load_reward

    files, inside = open_files(".", sha)
    with tempfile.TemporaryDirectory() as folder:
        fetched = {name: Path(folder, name) for name in ("reward", "policy", "prompts")}
        for name, target in fetched.items():
            files.get(f"{inside}/{ARTIFACTS[name].path.as_posix()}", str(target), recursive=True)
        prompts = load_prompts(fetched["prompts"])
        device = resolve_device(dvc.api.params_show(rev=sha)["base"]["device"])
        reward = load_reward(fetched["reward"], fetched["policy"], device)
        by_id = {row["id"]: row for row in prompts.rows}
        asked = [by_id[row["id"]] for row in rows for _ in row["trained"]]
        scores = reward.score(asked, [text for row in rows for text in row["trained"]])
    rewards = np.asarray(scores, dtype=np.float64).reshape(len(rows), -1)
    labels = [by_id[row["id"]].get("label") for row in rows] if prompts.labels_are_kinds else []
    return by_density(rewards, rows) | _by_label(rewards, labels)


def by_density(rewards: np.ndarray, rows: Rows) -> dict[str, float]:
    """Return the mean reward of the trained policy's completions, by density.

    Parameters
    ----------
    rewards : ndarray of shape (n_prompts, num_generations), float64
        NaN where there is none.
    rows : list of dict
        Rows of ``reports/completions.jsonl``, one for each prompt.

    Returns
    -------
    dict
        ``all``, ``sparse`` and ``crowded``: means over all prompts, over the third with the lowest
        and the third with the highest density.
    """
    by_prompt = mean_known(rewards, axis=1)
    order = np.argsort([row["density"] for row in rows], kind="stable")
    third = max(1, len(rows) // 3)
    return {
        "all": float(mean_known(by_prompt)),
        "sparse": float(mean_known(by_prompt[order[:third]])),
        "crowded": float(mean_known(by_prompt[order[-third:]])),
    }


def _by_label(rewards: np.ndarray, labels: Sequence[str | None]) -> dict[str, float]:
    members = [
        np.array([row for row, one in enumerate(labels) if one == label])
        for label in sorted({label for label in labels if label})
    ]
    if len(members) < 2:
        return {}
    return {"over_labels": float(label_means(mean_known(rewards, axis=1), members).mean())}
