"""Checks of results against the params of the stages that use them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isodense.doctor.checks.project import Finding, Level, Project
from isodense.pipeline.artifact import made_from_others, read_checked, read_manifest
from isodense.pipeline.errors import ArtifactError, TrainingError
from isodense.pipeline.layout import ARTIFACTS, METRICS
from isodense.pipeline.notices import notices

SAMPLE = 500  # prompts whose tokens are counted
HINTS = {  # where what was left out is described
    "download": "read docs/stages/download.md on what is skipped, and the lines of the stage",
    "embeddings": "raise embeddings.max_tokens, or set embeddings.long: windows",
    "train": "see frac_reward_zero_std in docs/stages/train.md",
}
OFTEN = 0.05  # share of leaked held-out prompts above which the check warns


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


def check_artifacts(project: Project) -> Iterator[Finding]:
    """Whether every artifact holds what its manifest says, and was made from those that are here.

    Files are hashed, so that data that was edited or swapped is named.
    """
    manifests, bad = {}, 0
    for name, artifact in ARTIFACTS.items():
        folder = project.folder(name)
        if not _made(folder):
            continue
        try:
            manifests[folder.name] = read_checked(folder, artifact.stage)
        except ArtifactError as error:
            bad += 1
            yield Finding("artifacts", "problem", error.message, error.hint)
    for name, source in made_from_others(manifests):
        bad += 1
        text = f"{name} was made from another {source} than is here"
        yield Finding("artifacts", "warning", text, "dvc repro, or dvc checkout")
    if manifests and not bad:
        yield Finding("artifacts", "ok", f"all {len(manifests)} hold what their manifests say")


def check_left_out(project: Project) -> Iterator[Finding]:
    """Say what the stages have left out or cut, where they fell back, and what failed."""
    metrics: dict[str, Any] = {}
    for path in METRICS.values():
        metrics |= project.metrics(path)
    for notice in notices(metrics):
        level: Level = "warning" if notice.serious else "ok"
        yield Finding(f"left out, {notice.stage}", level, notice.text, HINTS.get(notice.stage, ""))


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
