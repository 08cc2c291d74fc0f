"""What was learnt from, beside what was drawn: the realised shares of density deciles and labels.

Weights say how often a prompt is drawn. A group whose rewards are all equal has no advantage and
teaches nothing, so the share of the learning that a kind of prompts has is another than its share
of the draws. It is measured as the share of the run's absolute advantages, which scale the
gradient.

TRL does not publish advantages, so they are computed here from the rewards that it is given, by its
rules. Each step's are kept in the trainer's log, which is in every checkpoint: a resumed run has
those of its steps before.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from transformers import TrainerCallback

from isodense.pipeline.artifact import replacing
from isodense.prompts.reader import PromptSet

DECILES = 10
KEY = "groups"  # of a step in the trainer's log: row and mean absolute advantage of each group
SAME = 1e-8  # rewards that differ by less are one reward, as for TRL
EPSILON = 1e-4  # that TRL adds to standard deviations

Seen = tuple[list[str], np.ndarray]  # prompt ids and scores of one call of a function


class Signals(TrainerCallback):
    """Keeps, for each group of a step, the prompt's row and the mean absolute advantage.

    Parameters
    ----------
    ids : sequence of str
        Ids of the training prompts.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self._rows = {identifier: row for row, identifier in enumerate(ids)}
        self._seen: dict[int, list[Seen]] = {}

    def seen(self, function: int, ids: Sequence[str], scores: Sequence[float | None]) -> None:
        """Take what a reward function gave this process's completions."""
        values = np.array([np.nan if one is None else one for one in scores], dtype=np.float64)
        self._seen.setdefault(function, []).append((list(ids), values))

    def on_log(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        """Add the groups of the completions that were drawn since the last step to its entry."""
        if "reward" not in event["logs"]:
            return
        rows: list[int] = []
        signal: list[float] = []
        for ids, scores in _joined(gather_object([self._seen])):
            found = advantages(scores, args)
            rows += [self._rows[identifier] for identifier in ids[:: args.num_generations]]
            signal += [float(f"{value:.6g}") for value in np.abs(found).mean(axis=1)]
        state.log_history[-1][KEY] = {"rows": rows, "signal": signal}
        self._seen = {}


def _joined(processes: Sequence[Mapping[int, list[Seen]]]) -> list[tuple[list[str], np.ndarray]]:
    """Return ids and scores of shape (n, n_functions) of each call, over all processes."""
    first = processes[0].get(0, [])
    joined = []
    for call, _ in enumerate(first):
        ids = [one for process in processes for one in process[0][call][0]]
        functions = [
            np.concatenate([process[number][call][1] for process in processes])
            for number in sorted(processes[0])
        ]
        joined.append((ids, np.stack(functions, axis=1)))
    return joined


def advantages(scores: np.ndarray, args: Any) -> np.ndarray:
    """Return the advantages that TRL gives completions which are drawn together.

    Parameters
    ----------
    scores : ndarray of shape (n, n_functions), float64
        What each function gives; NaN for no opinion. Groups are adjacent.
    args : GRPOConfig
        Says how rewards are weighted, added and scaled.

    Returns
    -------
    ndarray of shape (n_groups, num_generations)
        0 where no function has an opinion, and in groups of one reward.
    """
    weights = np.array(args.reward_weights or [1.0] * scores.shape[1])
    known = ~np.isnan(scores).all(axis=1)
    if args.multi_objective_aggregation == "normalize_then_sum":
        grouped = scores.reshape(-1, args.num_generations, scores.shape[1])
        scores = (_centred(grouped) / (_std(grouped) + EPSILON)).reshape(scores.shape)
    total = np.where(known, np.nansum(scores * weights, axis=1), np.nan)
    rewards = total.reshape(-1, args.num_generations)
    centred = _centred(rewards)
    spread = np.ones_like(rewards)
    if args.multi_objective_aggregation == "normalize_then_sum" or args.scale_rewards == "batch":
        spread = np.full_like(rewards, _std(total)) + EPSILON
    elif args.scale_rewards == "group":
        spread = _std(rewards) + EPSILON
    equal = np.nan_to_num(np.abs(centred)).max(axis=1, keepdims=True) <= SAME
    return np.where(equal, 0.0, np.nan_to_num(centred / spread))


def _centred(values: np.ndarray) -> np.ndarray:
    return values - _mean(values)


def _mean(values: np.ndarray) -> np.ndarray:
    """Return means along the second axis, or of a vector; NaN where nothing is known."""
    axis = min(1, values.ndim - 1)
    count = np.maximum((~np.isnan(values)).sum(axis=axis, keepdims=True), 1)
    return np.nansum(values, axis=axis, keepdims=True) / count


def _std(values: np.ndarray) -> np.ndarray:
    """Return standard deviations of samples along the second axis, or of a vector."""
    axis = min(1, values.ndim - 1)
    count = np.maximum((~np.isnan(values)).sum(axis=axis, keepdims=True) - 1, 1)
    squares = np.nansum((values - _mean(values)) ** 2, axis=axis, keepdims=True)
    return np.sqrt(squares / count)


def realised(
    history: Sequence[Mapping[str, Any]],
    odds: np.ndarray,
    density: np.ndarray,
    prompts: PromptSet,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return what each density decile and label was drawn and learnt from, and the metrics.

    Parameters
    ----------
    history : sequence of mapping
        The trainer's log.
    odds : ndarray of shape (n_prompts,)
        How often each training prompt is to be drawn, up to a factor.
    density : ndarray of shape (n_prompts,)
        Log density of the training prompts.
    prompts : PromptSet
        The training prompts, whose labels count where they can name kinds.

    Returns
    -------
    rows : list of dict
        ``kind`` (``decile`` or ``label``), ``name``, ``prompts``, ``nominal_share`` (of the draws,
        by the odds), ``draws``, ``draw_share``, ``zero_signal`` (groups of one reward) and
        ``realised_share``, None where no group of the run had two rewards.
    metrics : dict
        ``zero_signal_share`` of all groups; half the sum of the absolute differences from the
        nominal shares, over deciles: of the realised ones, ``realised_total_variation``, and of
        those drawn, ``drawn_total_variation``, which is chance alone without redrawing; the same
        ``…_over_labels``.
    """
    found = [entry[KEY] for entry in history if KEY in entry]
    drawn = np.array([row for entry in found for row in entry["rows"]], dtype=np.int64)
    signal = np.array([value for entry in found for value in entry["signal"]])
    total = odds / odds.sum()
    rows: list[dict[str, Any]] = []
    metrics = {"zero_signal_share": float((signal == 0).mean())} if len(drawn) else {}
    for kind, names in kinds(density, prompts).items():
        table = [
            _share(kind, name, members, total, drawn, signal) for name, members in names.items()
        ]
        rows += table
        end = "" if kind == "decile" else "_over_labels"
        for name in ("realised", "draw"):
            shares = [row[f"{name}_share"] for row in table]
            if None not in shares:
                gaps = np.array(shares) - [row["nominal_share"] for row in table]
                said = "drawn" if name == "draw" else name
                metrics[f"{said}_total_variation{end}"] = float(np.abs(gaps).sum() / 2)
    return rows, metrics


def kinds(density: np.ndarray, prompts: PromptSet) -> dict[str, dict[str, np.ndarray]]:
    """Return the rows of each density decile, the most isolated first, and of each label.

    There are labels where they can name kinds of prompts.
    """
    order = np.argsort(density, kind="stable")
    deciles = [members for members in np.array_split(order, DECILES) if len(members)]
    found = {"decile": {str(number): members for number, members in enumerate(deciles, start=1)}}
    if prompts.labels_are_kinds:
        labels = np.array([row.get("label") or "" for row in prompts.rows])
        found["label"] = {name: np.flatnonzero(labels == name) for name in np.unique(labels)}
    return found


def _share(
    kind: str,
    name: str,
    members: np.ndarray,
    odds: np.ndarray,
    drawn: np.ndarray,
    signal: np.ndarray,
) -> dict[str, Any]:
    mine = np.isin(drawn, members)
    whole = float(signal.sum())
    return {
        "kind": kind,
        "name": str(name),
        "prompts": len(members),
        "nominal_share": round(float(odds[members].sum()), 6),
        "draws": int(mine.sum()),
        "draw_share": round(float(mine.mean()), 6) if len(drawn) else None,
        "zero_signal": int((signal[mine] == 0).sum()),
        "realised_share": round(float(signal[mine].sum()) / whole, 6) if whole else None,
    }


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the rows of :func:`realised` as CSV."""
    with replacing(path) as staging, staging.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
