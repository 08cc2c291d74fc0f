"""Checks of ``params.yaml`` and of the environment variables of launchers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from isodense.doctor.checks.project import Finding, Project
from isodense.pipeline.errors import IsodenseError, TrainingError
from isodense.pipeline.executor import executor


def check_params(project: Project) -> Iterator[Finding]:
    """Whether all sections of ``params.yaml`` are valid."""
    for fault in project.faults:
        yield Finding("params", "problem", fault, "correct params.yaml")
    if not project.faults:
        yield Finding("params", "ok", f"{len(project.sections)} sections of params.yaml are valid")


def check_batches(project: Project) -> Iterator[Finding]:
    """Whether the completions of a step divide by the processes, and TRL accepts the settings."""
    from isodense.train.settings import draws_needed, make_config

    train = project.sections.get("train")
    if train is None:
        return
    completions, count = train.prompts_per_step * train.num_generations, project.processes
    text = f"{train.prompts_per_step} prompts of {train.num_generations} completions a step"
    if completions % count:
        hint = "change train.prompts_per_step, train.num_generations, or the number of processes"
        yield Finding("batches", "problem", f"{text} do not divide over {count} processes", hint)
        return
    world = os.environ.pop("WORLD_SIZE", None)  # this check is a single process
    try:
        config = make_config(train, 0, "cpu", project.cache)
    except TrainingError as error:
        yield Finding("batches", "problem", error.message, error.hint or "change section train")
        return
    finally:
        if world is not None:
            os.environ["WORLD_SIZE"] = world
    yield Finding("batches", "ok", f"{text}, {draws_needed(config)} draws in all")


def check_launcher(project: Project) -> Iterator[Finding]:
    """Whether the variables that start several processes are set as the stages expect."""
    name, launcher = "launcher", project.launcher
    if launcher and not shutil.which(launcher[0]):
        text = f"ISODENSE_LAUNCH names {launcher[0]!r}, which is not on PATH"
        yield Finding(name, "problem", text, "correct it, or activate the environment it is in")
    try:
        executor()
    except IsodenseError as error:
        yield Finding(name, "problem", error.message, error.hint)
    tasks = os.environ.get("SLURM_NTASKS", "1")
    alone = os.environ.get("ISODENSE_EXECUTOR") != "ray"  # whose nodes are tasks, of one pipeline
    if tasks not in ("1", "") and "SLURM_JOB_ID" in os.environ and alone:
        text = f"SLURM starts {tasks} tasks (SLURM_NTASKS): each would run the pipeline"
        hint = "ask for --ntasks-per-node 1 and set ISODENSE_LAUNCH to start the processes"
        yield Finding(name, "warning", text, hint)
    if world := os.environ.get("WORLD_SIZE"):
        text = f"WORLD_SIZE is {world} here, so that each stage waits for {world} processes"
        hint = "unset WORLD_SIZE RANK LOCAL_RANK, and set ISODENSE_LAUNCH instead"
        if world != "1":
            yield Finding(name, "problem", text, hint)
