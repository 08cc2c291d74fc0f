"""Checks of results against the params of the stages that use them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from isodense.doctor.checks.project import Finding, Project
from isodense.pipeline.artifact import read_manifest
from isodense.pipeline.errors import TrainingError
from isodense.pipeline.layout import ARTIFACTS, METRICS

SAMPLE = 500  # prompts whose tokens are counted
OFTEN = 0.05  # share of truncated or skipped prompts above which the check warns


def check_preflight(project: Project) -> Iterator[Finding]:
    """Whether later stages can work with the prompts, as the preflight of ``dvc repro`` asks."""
    from isodense.preflight.checks import examine
    from isodense.preflight.inputs import read_inputs

    if project.faults or not _made(project.folder("prompts")):
        return
    examples, encoder, policy = map(project.folder, ("examples", "encoder", "policy"))
    prompts = project.folder("prompts")
    file = project.root / "params.yaml"
    inputs = read_inputs(file, examples, prompts, encoder, policy, sample=SAMPLE)
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
    """Whether the reward is more accurate on held-out pairs than the length of the answers."""
    from isodense.reward.scoring.check import require_better_than_length

    folder, train = project.folder("reward"), project.sections.get("train")
    if not _made(folder):
        return
    manifest = read_manifest(folder, "reward")
    if not isinstance(manifest.get("check"), dict):
        return  # a function that was not checked on pairs
    try:
        require_better_than_length(manifest, ARTIFACTS["reward"].path.as_posix())
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
