"""Checks of results against the params of the stages that use them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from isodense.doctor.checks.project import Finding, Project
from isodense.pipeline.artifact import read_manifest
from isodense.pipeline.errors import TrainingError
from isodense.pipeline.layout import ARTIFACTS, METRICS

SAMPLE = 500  # prompts whose tokens are counted
OFTEN = 0.05  # share of truncated, skipped or leaked prompts above which the check warns


def check_preflight(project: Project) -> Iterator[Finding]:
    """Whether later stages can work with the prompts, as the preflight of ``dvc repro`` asks."""
    from isodense.preflight.checks import examine
    from isodense.preflight.inputs import read_inputs

    if project.faults or not _made(project.folder("prompts")):
        return
    examples, prompts, encoder, policy = (
        project.folder(name) for name in ("examples", "prompts", "encoder", "policy")
    )
    params = project.root / "params.yaml"
    inputs = read_inputs(params, examples, prompts, encoder, policy, SAMPLE)
    findings = list(examine(inputs))
    for one in findings:
        yield Finding("preflight", one.level, f"stage {one.stage}: {one.text}", one.hint)
    if not findings:
        text = f"{inputs.said()}: lengths, roles and columns are such as the stages take"
        yield Finding("preflight", "ok", text)


def check_lengths(project: Project) -> Iterator[Finding]:
    """How many prompts the encoder has truncated."""
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
    text += f"{check['length_only']:.1%}"
    clean = project.metrics(METRICS["reward"]).get("reward", {}).get("clean", {})
    if "accuracy" in clean:
        text += f"; in {clean['accuracy']:.1%} of {clean['pairs']} pairs without near-duplicates"
    yield Finding("reward", "ok", text)


def check_leakage(project: Project) -> Iterator[Finding]:
    """How many held-out prompts have near-duplicates in training."""
    found = project.metrics(METRICS["density"]).get("density", {}).get("heldout")
    if not found or not found["prompts"]:
        return
    leaked = found["prompts"] - found["clean"]
    text = f"{leaked:,} of {found['prompts']:,} held-out prompts have near-duplicates in training"
    if leaked > OFTEN * found["prompts"]:
        hint = "look at `isodense inspect --heldout`; lower prompts.near_duplicate, dvc repro"
        yield Finding("leakage", "warning", text, hint)
    else:
        yield Finding("leakage", "ok", text)


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
