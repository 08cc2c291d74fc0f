"""Checks of whether a run fits on the disks and into memory.

Estimates, meant to be right within a factor of two. Disk space follows from the shapes of the
artifacts. Memory of training is that of weights, gradients and Adam's two moments in float32, of
logits, and of activations: 34 bytes per token, layer and hidden unit in 16 bits (Korthikanti et al.
2022, arXiv 2205.05198), twice that in float32.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isodense.doctor.checks.project import Finding, Project
from isodense.embeddings.reader import embedding_bytes
from isodense.models.inference.reader import parameter_count
from isodense.neighbors.graph import graph_bytes
from isodense.pipeline.cache import DAY, days_kept
from isodense.pipeline.layout import ARTIFACTS, METRICS
from isodense.pipeline.storage import existing, size
from isodense.train.checkpoints import checkpoint_bytes

BASE = 800_000_000  # bytes of Python with torch and TRL
COPIES = 3  # arrays of the shape of the logits: logits, probabilities, gradients
ACTIVATIONS = 34  # bytes per token, layer and hidden unit
MUCH = 20_000_000_000  # bytes of the cache above which the check warns
SPARE = 100_000_000  # bytes needed in the folder for temporary files


def check_disk(project: Project) -> Iterator[Finding]:
    """Whether the artifacts of a run, the copies in DVC's cache, and the checkpoints fit."""
    artifacts, checkpoints = _artifacts(project), _checkpoints(project)
    needs = {
        "the project": (project.root, artifacts),
        "isodense's cache": (project.cache, artifacts // 2 + checkpoints),
        "DVC's cache": (project.dvc_cache, artifacts),
        "temporary files": (Path(tempfile.gettempdir()), SPARE),
    }
    volumes: dict[int, list[str]] = {}
    for name, (folder, _) in needs.items():
        volumes.setdefault(existing(folder).stat().st_dev, []).append(name)
    for names in volumes.values():
        needed, folder = sum(needs[name][1] for name in names), existing(needs[names[0]][0])
        volume = os.statvfs(folder)
        free = volume.f_bavail * volume.f_frsize
        text = f"{size(free)} free for {', '.join(names)}; a whole run writes about {size(needed)}"
        hint = "free space; or move DVC's cache (dvc cache dir PATH) or isodense's (ISODENSE_CACHE)"
        if free < needed:
            yield Finding("disk", "problem", text, hint)
        elif free < 2 * needed:
            yield Finding("disk", "warning", text, hint)
        else:
            yield Finding("disk", "ok", text)


def check_memory(project: Project) -> Iterator[Finding]:
    """Whether the neighbour search, and training on a CPU, fit into memory."""
    total, free = _memory()
    rows, dim = _shape(project)
    needs = {"neighbors": BASE // 2 + rows * (2 * dim + 4 * _k(project)) * 4}
    if (needed := training_bytes(project, half=False)) and not _gpu(project):
        needs["train"] = needed
    for stage, needed in needs.items():
        text = f"{stage} takes about {size(needed)}, of {size(total)} with {size(free)} free"
        hint = {
            "train": "lower train.completions_per_pass or max_prompt_tokens, or set train.lora",
            "neighbors": "run this stage on a larger machine and `dvc pull neighbors` here",
        }[stage]
        if needed > total:
            yield Finding("memory", "problem", text, hint)
        elif needed > free:
            yield Finding("memory", "warning", text, f"close other programs; or {hint}")
        else:
            yield Finding("memory", "ok", text)


def check_cache(project: Project) -> Iterator[Finding]:
    """How large isodense's cache is, and how much of it has not been used for a week."""
    if not project.cache.is_dir():
        return
    files = [path for path in project.cache.rglob("*") if path.is_file()]
    total = sum(file.stat().st_size for file in files)
    limit = time.time() - days_kept() * DAY
    stale = sum(f.stat().st_size for f in files if _last_use(f, project.cache) < limit)
    text = f"{size(total)} in {project.cache}, {size(stale)} of it unused for {days_kept():g} days"
    if stale > MUCH // 10 or total > MUCH:
        hint = f"rm -rf {project.cache}: it saves work, and no result depends on it"
        yield Finding("cache", "warning", text, hint)
    else:
        yield Finding("cache", "ok", text)


def _last_use(file: Path, cache: Path) -> float:
    """Return when a run used a file: whoever uses ``<kind>/<key>`` sets the folder's time."""
    entry, found = cache.joinpath(*file.relative_to(cache).parts[:2]), file.stat()
    return max(found.st_mtime, found.st_atime, entry.stat().st_mtime)


def check_incomplete(project: Project) -> Iterator[Finding]:
    """Whether there are temporary folders of artifacts that a killed stage was writing."""
    found = [
        path for folder in ("data", "models") for path in (project.root / folder).glob("*.tmp")
    ]
    if found:
        names = " ".join(path.relative_to(project.root).as_posix() for path in sorted(found))
        text = f"{names}: left by a stage that was killed, or being written now"
        yield Finding("incomplete", "warning", text, f"if no stage is running: rm -rf {names}")


def training_bytes(project: Project, half: bool) -> int:
    """Return an estimate of the peak memory of training in bytes, 0 if there is no policy yet.

    Parameters
    ----------
    project : Project
        The checkout.
    half : bool
        Whether training computes in 16 bits, as on a GPU.
    """
    train, config = project.sections.get("train"), policy_config(project)
    weights = 4 * policy_parameters(project)
    if train is None or not config or not weights:
        return 0
    tokens = train.completions_per_pass * (train.max_prompt_tokens + train.max_completion_tokens)
    config = config.get("text_config", config)  # of a model that also sees
    blocks = config.get("num_hidden_layers", 0) * config.get("hidden_size", 0)
    if train.grpo.get("gradient_checkpointing"):
        blocks //= max(1, config.get("num_hidden_layers", 1))
    answers = train.completions_per_pass * (train.max_completion_tokens + 1)
    logits = COPIES * 4 * answers * config.get("vocab_size", 0)
    models = weights if train.lora is not None else 4 * weights
    if train.beta and train.lora is None:
        models += weights  # the reference policy of the KL penalty
    return int(BASE + models + logits + ACTIVATIONS * (1 if half else 2) * tokens * blocks)


def policy_config(project: Project) -> dict[str, Any]:
    """Return the config of the policy, empty if there is none yet."""
    return project.metrics(ARTIFACTS["policy"].path / "config.json")


def policy_parameters(project: Project) -> int:
    """Return the number of parameters of the policy, 0 if there is none yet.

    Raises
    ------
    ArtifactError
        If a weights file is damaged.
    """
    return parameter_count(project.folder("policy"))


def _artifacts(project: Project) -> int:
    """Return the bytes of embeddings, graph, models and trained policy."""
    rows, dim = _shape(project)
    embeddings = project.sections.get("embeddings")
    vectors = embedding_bytes(rows, dim, embeddings.dtype if embeddings else "float32")
    return vectors + graph_bytes(rows, _k(project)) + 2 * 4 * policy_parameters(project)


def _checkpoints(project: Project) -> int:
    """Return the bytes that training keeps in the cache."""
    train = project.sections.get("train")
    if train is None:
        return 0
    return checkpoint_bytes(policy_parameters(project), adapter=train.lora is not None)


def _shape(project: Project) -> tuple[int, int]:
    """Return the shape of the embeddings, by metrics or defaults: prompts and columns."""
    prompts = project.metrics(METRICS["prompts"]).get("prompts", {})
    embeddings = project.metrics(METRICS["embeddings"]).get("embeddings", {})
    return int(prompts.get("unique", 0)), int(embeddings.get("dim", 384))


def _k(project: Project) -> int:
    neighbors = project.sections.get("neighbors")
    return neighbors.k_max if neighbors else 50


def _gpu(project: Project) -> bool:
    import torch

    base = project.sections.get("base")
    return torch.cuda.is_available() and (base is None or base.device != "cpu")


def _memory() -> tuple[int, int]:
    """Return total and free memory of the machine or container, in bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = free = page * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        pass
    try:  # the limit of a container
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return total, free
    if limit.isdigit():
        total, free = min(total, int(limit)), min(free, max(0, int(limit) - used))
    return total, free
