"""Checks of results against the params of the stages that use them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from isodense.doctor.checks.project import Finding, Project
from isodense.doctor.checks.space import policy_config
from isodense.pipeline.artifact import read_manifest
from isodense.pipeline.errors import TrainingError
from isodense.pipeline.layout import ARTIFACTS, METRICS

SAMPLE = 500  # prompts whose tokens are counted
OFTEN = 0.05  # share of truncated or skipped prompts above which the check warns


def check_context(project: Project) -> Iterator[Finding]:
    """Whether the longest prompt and completion of training fit into the policy's context."""
    train = project.sections.get("train")
    context = policy_config(project).get("max_position_embeddings")
    if train is None or not isinstance(context, int):
        return
    tokens = train.max_prompt_tokens + train.max_completion_tokens
    text = f"train.max_prompt_tokens + max_completion_tokens = {tokens}, the policy reads {context}"
    if tokens > context:
        yield Finding("context", "problem", text, f"let them sum to {context} at most")
    else:
        yield Finding("context", "ok", text)


def check_lengths(project: Project) -> Iterator[Finding]:
    """How many prompts are too long for training, and how many the encoder has truncated."""
    train, prompts = project.sections.get("train"), project.folder("prompts")
    policy = project.folder("policy")
    if train is not None and _made(prompts) and _made(policy):
        long, counted = _too_long(prompts, policy, train.max_prompt_tokens)
        text = f"{long} of {counted} training prompts exceed train.max_prompt_tokens = "
        text += f"{train.max_prompt_tokens} and are skipped"
        if long == counted:
            yield Finding("lengths", "problem", text, "raise train.max_prompt_tokens")
        elif long > OFTEN * counted:
            yield Finding("lengths", "warning", text, "raise train.max_prompt_tokens")
        else:
            yield Finding("lengths", "ok", text)
    found = project.metrics(METRICS["embeddings"]).get("embeddings", {})
    cut, embeddings = found.get("truncated_share", 0.0), project.sections.get("embeddings")
    if cut > OFTEN and embeddings is not None:
        text = f"the encoder cut {cut:.0%} of the prompts at {embeddings.max_tokens} tokens"
        hint = "raise embeddings.max_tokens, as far as the encoder reads"
        yield Finding("lengths", "warning", text, hint)


def check_reward(project: Project) -> Iterator[Finding]:
    """Whether the reward is more than length on held-out pairs, or gives completions a signal."""
    from isodense.reward.scoring.check import no_signal, require_not_weak, said

    folder, train = project.folder("reward"), project.sections.get("train")
    if not _made(folder):
        return
    manifest = read_manifest(folder, "reward")
    if not isinstance(manifest.get("check"), dict):
        return
    if "sampled" in manifest["check"]:
        silent = no_signal(manifest)
        hint = "read models/reward/sampled.jsonl; try easier prompts, or partial credit"
        yield (
            Finding("reward", "warning", silent, hint)
            if silent
            else Finding("reward", "ok", said(manifest["check"]["sampled"]))
        )
        return
    try:
        require_not_weak(manifest, ARTIFACTS["reward"].path.as_posix())
    except TrainingError as error:
        warned = train is not None and train.on_weak_reward == "warn"
        yield Finding("reward", "warning" if warned else "problem", error.message, error.hint)
        return
    check = manifest["check"]
    text = f"right in {check['heldout']:.1%} of the held-out pairs, length alone in "
    yield Finding("reward", "ok", f"{text}{check['length_only']:.1%}")


def check_recall(project: Project) -> Iterator[Finding]:
    """Whether the recall of the neighbours is at least ``neighbors.recall_floor``."""
    folder, wanted = project.folder("neighbors"), project.sections.get("neighbors")
    found = project.metrics(METRICS["neighbors"]).get("neighbors", {})
    if _made(folder):
        found = read_manifest(folder, "neighbors")
    if wanted is None or "recall" not in found:
        return
    text = f"{found['recall']:.1%} of the true neighbours found ({found['method']})"
    if found["recall"] < wanted.recall_floor:
        text += f", below neighbors.recall_floor = {wanted.recall_floor}"
        hint = "set neighbors.method: exact, or raise neighbors.recall_sample; dvc repro"
        yield Finding("neighbours", "problem", text, hint)
    else:
        yield Finding("neighbours", "ok", text)


def _made(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def _too_long(prompts: Path, policy: Path, most: int) -> tuple[int, int]:
    """Return the number of prompts over `most` tokens in a sample of training prompts, and all."""
    from isodense.inspect.lookup import HELDOUT, heldout_rows, lines
    from isodense.models.inference.policy import load_tokenizer, prompt_tokens

    train = int((~heldout_rows(prompts)).sum())
    chosen = set(np.linspace(0, train - 1, min(SAMPLE, train)).round().astype(int).tolist())
    place = iter(range(train))
    rows = [
        line.row["prompt"]
        for line in lines(prompts, lambda _, raw: HELDOUT not in raw and next(place) in chosen)
    ]
    ids = prompt_tokens(load_tokenizer(policy), rows)
    return sum(len(row) > most for row in ids), len(rows)
