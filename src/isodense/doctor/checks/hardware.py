"""Checks of the GPU: whether it is available, supports the dtype, and has enough memory."""

from __future__ import annotations

from collections.abc import Iterator

from isodense.doctor.checks.project import Finding, Project
from isodense.doctor.checks.space import training_bytes
from isodense.pipeline.runtime import bfloat16_gain
from isodense.pipeline.storage import size

DDP = "ISODENSE_LAUNCH='accelerate launch --config_file configs/ddp.yaml'"


def check_device(project: Project) -> Iterator[Finding]:
    """Whether ``base.device`` is available, and how many GPUs a process sees."""
    import torch

    base = project.sections.get("base")
    if base is None:
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if base.device == "cuda" and not count:
        text = "base.device is cuda, but torch sees no GPU"
        hint = "set base.device: auto; or install torch for your CUDA driver (make TORCH=...)"
        yield Finding("device", "problem", text, hint)
    elif base.device == "cpu" and count:
        text = f"base.device is cpu, though there are {count} GPUs"
        yield Finding("device", "warning", text, "set base.device: auto")
    elif not count:
        yield Finding("device", "ok", "no GPU: stages compute on the CPU")
    elif count > 1 and not project.launcher:
        text = f"one process sees {count} GPUs, which TRL does not train on"
        yield Finding("device", "problem", text, f"set {DDP}, or CUDA_VISIBLE_DEVICES to one")
    elif project.processes > count:
        text = f"ISODENSE_LAUNCH starts {project.processes} processes for {count} GPUs"
        yield Finding("device", "problem", text, f"start {count}")
    else:
        yield Finding("device", "ok", f"{count} x {torch.cuda.get_device_name(0)}")


def check_dtype(project: Project) -> Iterator[Finding]:
    """Whether the device supports bfloat16, if params ask for it."""
    import torch

    base, train = project.sections.get("base"), project.sections.get("train")
    embeddings = project.sections.get("embeddings")
    gpu = torch.cuda.is_available() and base is not None and base.device != "cpu"
    able = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if gpu and not able and train is not None and train.grpo.get("bf16", True):
        text = "this GPU has no bfloat16, which training uses by default"
        yield Finding("dtype", "problem", text, "set train.grpo: {bf16: false, fp16: true}")
    if embeddings is not None:
        yield from _precision(embeddings.precision, gpu, able)
    if able:
        yield Finding("dtype", "ok", "the GPU computes in bfloat16")


def _precision(precision: str, gpu: bool, able: bool) -> Iterator[Finding]:
    """Whether ``embeddings.precision`` suits a GPU, which may compute in bfloat16, or the CPU."""
    gain = None if gpu else bfloat16_gain()
    if precision == "bfloat16" and not (able or gain):
        where = "this GPU" if gpu else "this CPU"
        text = f"embeddings.precision is bfloat16, on {where} slower than float32 and less exact"
        yield Finding("dtype", "warning", text, "set embeddings.precision: float32")
    elif precision != "bfloat16" and gain:
        text = f"in bfloat16 this CPU embeds about {gain} times as fast as in float32"
        yield Finding("dtype", "ok", f"{text} (embeddings.precision)")


def check_gpu_memory(project: Project) -> Iterator[Finding]:
    """Whether training fits into the memory of a GPU."""
    import torch

    base, train = project.sections.get("base"), project.sections.get("train")
    if base is None or train is None or base.device == "cpu" or not torch.cuda.is_available():
        return
    needed = training_bytes(project, half=True)
    if not needed:
        return
    total = torch.cuda.get_device_properties(0).total_memory
    kind = "all weights" if train.lora is None else "LoRA"
    text = f"training ({kind}) takes about {size(needed)} of {size(total)}"
    hint = "lower train.completions_per_pass, set train.grpo.gradient_checkpointing: true"
    hint += ", set train.lora" if train.lora is None else ""
    hint += ", or share the policy out: configs/fsdp.yaml"
    if needed > total:
        yield Finding("GPU memory", "problem", text, hint)
    elif needed > 0.8 * total:
        yield Finding("GPU memory", "warning", text, hint)
    else:
        yield Finding("GPU memory", "ok", text)
