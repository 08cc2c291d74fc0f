"""Writing ``data/difficulty``, and what its metrics say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from isodense.difficulty.params import DifficultyParams
from isodense.pipeline.artifact import ids_sha256, publishing, write_manifest
from isodense.pipeline.params import as_dict
from isodense.prompts.reader import PromptSet
from isodense.sampling.difficulty import COMPLETIONS, IDS, SOLVED, signal


def publish_empty(out: Path) -> None:
    """Write the artifact of the stage that is off: a manifest, the same whatever the data."""
    with publishing(out) as staging:
        write_manifest(staging, "difficulty", rows=0, params={}, inputs={})


def publish(
    train: PromptSet,
    solved: np.ndarray,
    completions: np.ndarray,
    params: DifficultyParams,
    inputs: Mapping[str, str],
    out: Path,
) -> None:
    """Write the counts of the training prompts.

    Parameters
    ----------
    train : PromptSet
        The training prompts.
    solved, completions : ndarray of shape (n_prompts,), int32
    params : DifficultyParams
        The stage's section.
    inputs : mapping of str to str
        Content hashes of what the counts come from.
    out : Path
        The artifact's folder.
    """
    arrays = {
        SOLVED: solved.astype(np.int32),
        COMPLETIONS: completions.astype(np.int32),
        IDS: np.array(train.ids, dtype="S32"),
    }
    with publishing(out) as staging:
        for name, array in arrays.items():
            np.save(staging / name, array, allow_pickle=False)
        write_manifest(
            staging,
            "difficulty",
            rows=len(train),
            ids_sha256=ids_sha256(train.ids),
            params=_used(params),
            inputs=dict(inputs),
        )


def _used(params: DifficultyParams) -> dict[str, Any]:
    """Return the params that shape the counts."""
    used = as_dict(params)
    if params.column is not None:
        return {name: used[name] for name in ("completions", "column")}
    del used["batch_tokens"]
    return used


def describe(solved: np.ndarray, completions: np.ndarray) -> dict[str, Any]:
    """Return the metrics of counts.

    Shares are of the prompts of which something is known; the others are ``unknown``.

    Examples
    --------
    >>> found = describe(np.array([0, 4, 8, 0]), np.array([8, 8, 8, 0]))
    >>> found["pass_rate"], found["unknown"], found["signal"]
    (0.5, 1, 0.573333)
    >>> found["never_solved"] == found["sometimes_solved"] == found["always_solved"] == 1 / 3
    True
    """
    known = completions > 0
    solved, made = solved[known], completions[known]
    found: dict[str, Any] = {
        "prompts": len(completions),
        "completions": int(made.sum()),
        "unknown": int((~known).sum()),
    }
    if not len(made):
        return found
    never, always = solved == 0, solved == made
    return found | {
        "pass_rate": float((solved / made).mean()),
        "never_solved": float(never.mean()),
        "sometimes_solved": float((~never & ~always).mean()),
        "always_solved": float(always.mean()),
        "signal": round(float(signal(solved, made, 0.0).mean()), 6),
    }
