"""Training the policy by GRPO, on prompts drawn by weight.

The prompts are drawn before the trainer is built: a plan of row numbers, as many as the run will
use, from :func:`isodense.sampling.draw.draw`. TRL's trainer walks through the plan in order,
repeats each prompt ``num_generations`` times and keeps the group together, so that rewards are
compared among answers to one prompt. Nothing of the trainer is replaced, and embeddings are never
opened.

A prompt longer than ``max_prompt_tokens`` is not cut, because a conversation without its start is
another conversation: its draws are skipped and the next of the stream taken, which leaves the
odds of the other prompts among themselves as the weights have them.

A run that was cut off goes on from its last checkpoint, in the scratch, with the same draws and, on
the same machine, to the same weights. The scratch is keyed by everything that shapes the run.

Any field of TRL's ``GRPOConfig`` can be set under ``train.grpo``, except those that this module
sets from other params or needs for the run to repeat, and of peft's ``LoraConfig`` under
``train.lora``.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from isodense.pipeline.artifact import (
    content_sha256,
    publishing,
    read_manifest,
    write_manifest,
)
from isodense.pipeline.cache import folder_name, mark_used
from isodense.pipeline.config_fields import wrong_names
from isodense.pipeline.errors import TrainingError
from isodense.pipeline.params import as_dict, param
from isodense.prompts.conversations import Message
from isodense.prompts.reader import PromptSet
from isodense.reward.check import require_better_than_length
from isodense.sampling.schemes import Sampling
from isodense.train.checkpoints import Stop, claimed, newest

if TYPE_CHECKING:
    from trl.trainer.grpo_config import GRPOConfig

Score = Callable[[Sequence[list[Message]], Sequence[str]], np.ndarray]

log = logging.getLogger("isodense")

OWN_FIELDS = {
    "output_dir": "the stage",
    "seed": "base.seed",
    "data_seed": "base.seed",
    "use_cpu": "base.device",
    "max_steps": "train.max_steps",
    "num_train_epochs": "train.max_steps",
    "per_device_train_batch_size": "train.completions_per_pass",
    "gradient_accumulation_steps": "train.completions_per_pass",
    "generation_batch_size": "train.prompts_per_step and train.num_generations",
    "num_generations": "train.num_generations",
    "max_completion_length": "train.max_completion_tokens",
    "learning_rate": "train.learning_rate",
    "beta": "train.beta",
    "temperature": "train.temperature",
    "shuffle_dataset": "the stage (train.sampling draws the prompts)",
    "remove_unused_columns": "the stage",
    "logging_steps": "the stage",
    "logging_strategy": "the stage",
    "report_to": "the stage (dvclive records the run)",
    "disable_tqdm": "the stage",
    "push_to_hub": "the stage",
    "save_strategy": "train.save_steps",
    "save_steps": "train.save_steps",
    "save_total_limit": "the stage",
    "save_only_model": "the stage",
    "resume_from_checkpoint": "the stage (a run that was cut off goes on by itself)",
    "ignore_data_skip": "the stage",
    "sync_ref_model": "the stage (a reference that moves is in no checkpoint)",
    "eval_strategy": "the stage",
    "do_eval": "the stage",
}
OWN_LORA_FIELDS = {
    "task_type": "the stage",
    "base_model_name_or_path": "the stage",
    "inference_mode": "the stage",
}
HOLDING_PATHS = shutil.ignore_patterns("training_args.bin", "README.md")
LAUNCH = ("WORLD_SIZE", "OMP_NUM_THREADS", "ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION")
NOT_SHAPING = ("save_steps", "on_weak_reward")  # params that change nothing about the result
TRIES = 20  # draws per prompt wanted before the search for prompts that fit is given up


@dataclass(frozen=True)
class TrainParams:
    """Section ``train`` of ``params.yaml``.

    Attributes
    ----------
    sampling : {"density", "uniform", "count"}
        Draw prompts by the weights of the density stage, all alike, or as often as they were asked
        (which is what training on all pairs alike does).
    replacement : bool
        Whether a prompt can come again before every other has come once.
    uniform_share : float
        Share of the draws that is uniform instead.
    seed : int
        Of draws and completions, beside ``base.seed``: repeats a training run on the same data.
    max_steps : int
        Optimiser steps.
    prompts_per_step : int
        Prompts of each step, over all processes.
    num_generations : int
        Completions per prompt (a group).
    completions_per_pass : int
        Completions that a device runs forward and backward at once: memory and speed only.
    max_prompt_tokens : int
        Longer prompts, in the chat format, are skipped.
    max_completion_tokens : int
        Completions are cut there.
    learning_rate : float
        Of AdamW.
    beta : float
        Weight of the divergence from the untrained policy; 0 saves computing it.
    temperature : float
        Of the completions drawn in training.
    save_steps : int
        Steps between checkpoints.
    on_weak_reward : {"error", "warn"}
        What to do with a reward that prefers the right answer no more often than length does.
    lora : dict or None
        Fields of peft's ``LoraConfig`` by name; None trains all weights.
    grpo : dict
        Further fields of TRL's ``GRPOConfig`` by name.
    """

    sampling: Sampling = param()
    replacement: bool = param()
    uniform_share: float = param(minimum=0.0, maximum=1.0)
    seed: int = param(minimum=0, maximum=2**31 - 1)
    max_steps: int = param(minimum=1)
    prompts_per_step: int = param(minimum=1)
    num_generations: int = param(minimum=2)
    completions_per_pass: int = param(minimum=1)
    max_prompt_tokens: int = param(minimum=8)
    max_completion_tokens: int = param(minimum=1)
    learning_rate: float = param(minimum=0.0, maximum=1.0)
    beta: float = param(minimum=0.0, maximum=10.0)
    temperature: float = param(minimum=0.01, maximum=10.0)
    save_steps: int = param(minimum=1)
    on_weak_reward: Literal["error", "warn"] = param()
    lora: dict[str, Any] | None = param()
    grpo: dict[str, Any] = param()

    def faults(self) -> list[str]:
        """Return what is wrong with the names under ``grpo`` and ``lora``."""
        faults = []
        if self.grpo:
            from trl.trainer.grpo_config import GRPOConfig

            faults += wrong_names("grpo", self.grpo, GRPOConfig, OWN_FIELDS)
        if self.lora is not None:
            from peft import LoraConfig

            faults += wrong_names("lora", self.lora, LoraConfig, OWN_LORA_FIELDS)
        return faults


@dataclass(frozen=True)
class Plan:
    """The prompts of a run, in order.

    Attributes
    ----------
    rows : ndarray of shape (draws,), int64
        Row numbers of the training prompts.
    skipped : int
        Draws of prompts that are too long.
    """

    rows: np.ndarray
    skipped: int


def input_hashes(prompts: Path, density: Path, policy: Path, reward: Path) -> dict[str, str]:
    """Return the content hashes of the artifacts that training reads."""
    kinds = {
        "prompts": (prompts, "prompts"),
        "density": (density, "density"),
        "policy": (policy, "models"),
        "reward": (reward, "reward"),
    }
    return {name: content_sha256(read_manifest(*entry)) for name, entry in kinds.items()}


def check_reward(reward: Path, on_weak_reward: str) -> None:
    """Refuse a reward that is no better than length alone, or only warn of it.

    Parameters
    ----------
    reward : Path
        The reward's artifact.
    on_weak_reward : {"error", "warn"}

    Raises
    ------
    TrainingError
        If the reward is that weak and must not be.
    """
    try:
        require_better_than_length(read_manifest(reward, "reward"), reward)
    except TrainingError as error:
        if on_weak_reward == "error":
            raise
        log.warning("%s", error)


def live_folder(metrics: Path, plots: Path) -> Path:
    """Return the folder in which dvclive writes the two paths that DVC knows.

    Raises
    ------
    TrainingError
        If dvclive would not write them there.
    """
    if metrics != metrics.parent / "metrics.json" or plots != metrics.parent / "plots" / "metrics":
        message = f"--metrics {metrics} --plots {plots} are not where dvclive writes"
        raise TrainingError(message, "name them DIR/metrics.json and DIR/plots/metrics")
    return metrics.parent


def make_plan(
    weights: np.ndarray,
    size: int,
    seed: int,
    fits: Callable[[int], bool] = lambda row: True,
    replacement: bool = True,
    uniform: float = 0.0,
) -> Plan:
    """Draw prompts, skipping those that do not fit.

    Parameters
    ----------
    weights : ndarray of shape (n,)
        See :func:`isodense.sampling.draw.draw`.
    size : int
        Number of draws to keep.
    seed : int
        Names the stream of draws.
    fits : callable
        Whether the prompt of a row can be used; asked once per prompt drawn.
    replacement, uniform
        See :func:`isodense.sampling.draw.draw`.

    Raises
    ------
    TrainingError
        If fewer than one draw in 20 fits.
    """
    from isodense.sampling.draw import draw

    known: dict[int, bool] = {}
    rows: list[int] = []
    drawn = 0
    while len(rows) < size:
        if drawn >= TRIES * max(size, 100):
            message = f"{drawn - len(rows)} of {drawn} drawn prompts exceed train.max_prompt_tokens"
            raise TrainingError(message, "raise train.max_prompt_tokens")
        for row in draw(weights, size, seed, drawn, replacement, uniform).tolist():
            if len(rows) == size:
                break
            if row not in known:
                known[row] = fits(row)
            if known[row]:
                rows.append(row)
            drawn += 1
    return Plan(np.array(rows, dtype=np.int64), drawn - size)


def make_config(params: TrainParams, seed: int, device: str, scratch: Path) -> GRPOConfig:
    """Return TRL's settings of the run.

    Parameters
    ----------
    params : TrainParams
        The stage's section.
    seed : int
        Of initialisation and completions.
    device : {"cpu", "cuda"}
    scratch : Path
        The trainer's own folder.

    Raises
    ------
    TrainingError
        If the completions of a step cannot be shared out, several GPUs have no launcher, or TRL
        refuses a setting.
    """
    from trl.trainer.grpo_config import GRPOConfig

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    each, left = divmod(params.prompts_per_step * params.num_generations, processes)
    per_pass = min(params.completions_per_pass, each)
    if left or each % per_pass:
        message = (
            f"prompts_per_step {params.prompts_per_step} × num_generations "
            f"{params.num_generations} completions do not divide over {processes} processes into "
            f"passes of completions_per_pass {per_pass}"
        )
        raise TrainingError(message, "change one of them in section train")
    settings = {
        "activation_checkpointing": params.grpo.get("gradient_checkpointing", False),
        "bf16": device == "cuda",
        **params.grpo,
        "output_dir": str(scratch),
        "seed": seed,
        "use_cpu": device == "cpu",
        "max_steps": params.max_steps,
        "per_device_train_batch_size": per_pass,
        "gradient_accumulation_steps": each // per_pass,
        "num_generations": params.num_generations,
        "max_completion_length": params.max_completion_tokens,
        "learning_rate": params.learning_rate,
        "beta": params.beta,
        "temperature": params.temperature,
        "shuffle_dataset": False,
        "remove_unused_columns": False,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "steps",
    }
    try:
        config = GRPOConfig(**settings)
        every = resumable_every(config)
        config.save_steps = -(-params.save_steps // every) * every
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise TrainingError(f"TRL refuses the settings under train: {error}") from None
    if config.n_gpu > 1:
        message = f"one process sees {config.n_gpu} GPUs, which TRL does not train on"
        launch = "ISODENSE_LAUNCH='accelerate launch --config_file configs/ddp.yaml'"
        raise TrainingError(message, f"set {launch}, or CUDA_VISIBLE_DEVICES to one of them")
    return config


def resumable_every(config: GRPOConfig) -> int:
    """Return after how many steps completions are drawn anew: there a run resumes exactly."""
    settings: Any = config
    uses: int = settings.steps_per_generation * settings.num_iterations
    return uses // math.gcd(uses, settings.gradient_accumulation_steps)


def draws_needed(config: GRPOConfig) -> int:
    """Return how many prompts the run takes: whole generation batches, reused as TRL does."""
    settings: Any = config  # its fields are optional to the type checker until it is built
    per_generation: int = settings.generation_batch_size // settings.num_generations
    uses = settings.steps_per_generation * settings.num_iterations
    rounds = -(-settings.max_steps * settings.gradient_accumulation_steps // uses)
    return rounds * per_generation


def train(
    prompts: PromptSet,
    weights: np.ndarray,
    reward: Callable[[str], Score],
    policy: Path,
    params: TrainParams,
    seed: int,
    device: str,
    cache: Path,
    inputs: dict[str, str],
    out: Path,
    live: Path,
) -> dict[str, Any]:
    """Train the policy, write ``models/grpo`` and the run's series, and return the plan's facts.

    Parameters
    ----------
    prompts : PromptSet
        The training prompts.
    weights : ndarray of shape (n_prompts,)
        How often each is drawn, up to a factor.
    reward : callable
        Given a torch device, returns the function that scores answers: ``(prompts, completions)
        -> ndarray of shape (n,), float32``.
    policy : Path
        The untrained policy's artifact.
    params : TrainParams
        The stage's section.
    seed : int
        Of draws and completions.
    device : {"cpu", "cuda"}
    cache : Path
        Where the run keeps its checkpoints until it is done.
    inputs : dict
        Hashes of the manifests of what went in, for the manifest.
    out : Path
        The trained policy's artifact.
    live : Path
        The folder of dvclive's series.

    Raises
    ------
    TrainingError
        If the settings, the prompts or the rewards cannot be trained on, or another process
        trains with the same.
    ModelError
        If the policy cannot be loaded.
    KeyboardInterrupt
        If the run was asked to stop; the same call goes on from there.
    """
    from isodense.train.grpo import Checkpoints, Record, make_trainer, quarters, save_policy

    scratch = cache / "train" / _key(policy, params, inputs, seed, device)
    first = os.environ.get("RANK", "0") == "0"
    with claimed(scratch) if first else nullcontext():  # before the processes wait for each other
        config = make_config(params, seed, device, scratch)
        plan = _plan(prompts, weights, policy, params, config, seed)
        facts = plan_facts(plan, prompts)
        rows = [prompts.rows[row] for row in plan.rows]
        trainer = make_trainer(policy, reward(str(config.device)), config, rows, params.lora)
        if first:
            mark_used(scratch)
            trainer.add_callback(Record(live, facts))
        with Stop() as stop:
            trainer.add_callback(Checkpoints(stop, resumable_every(config)))
            trainer.train(resume_from_checkpoint=_resume_from(scratch))
        if trainer.state.global_step < config.max_steps:
            raise KeyboardInterrupt
        save_policy(trainer, policy, scratch / "policy")
        trainer.accelerator.wait_for_everyone()
        if first:
            fields = {"params": as_dict(params), "plan": facts, "inputs": inputs}
            _publish(scratch / "policy", out, ids_sha256=prompts.ids_sha256, **fields)
            shutil.rmtree(scratch)
    return {**facts, **quarters(trainer.state.log_history)}


def _key(policy: Path, params: TrainParams, inputs: dict[str, str], seed: int, device: str) -> str:
    """Return a name of what shapes the run, bytes included."""
    shaping = {name: value for name, value in as_dict(params).items() if name not in NOT_SHAPING}
    launched = {name: os.environ.get(name) for name in LAUNCH}
    return folder_name(
        policy, {**shaping, **launched, "inputs": inputs, "seed": seed, "device": device}, []
    )


def _resume_from(scratch: Path) -> str | None:
    checkpoint = newest(scratch)
    if checkpoint is None:
        return None
    log.info("going on from %s", checkpoint.name)
    return str(checkpoint)


def plan_facts(plan: Plan, prompts: PromptSet) -> dict[str, int]:
    """Return the numbers of a plan: draws, different prompts and, where known, labels."""
    distinct = np.unique(plan.rows)
    facts = {
        "draws": len(plan.rows),
        "distinct_prompts": len(distinct),
        "skipped_draws": plan.skipped,
    }
    if (labels := prompts.labels) is not None:
        facts["distinct_labels"] = len({labels[row] for row in distinct})
    return facts


def _plan(
    prompts: PromptSet,
    weights: np.ndarray,
    policy: Path,
    params: TrainParams,
    config: GRPOConfig,
    seed: int,
) -> Plan:
    from isodense.models.policy import context_length, load_tokenizer, prompt_tokens

    tokens, context = (
        params.max_prompt_tokens + params.max_completion_tokens,
        context_length(policy),
    )
    if context is not None and tokens > context:
        message = f"train.max_prompt_tokens + max_completion_tokens = {tokens} exceed the policy's"
        raise TrainingError(f"{message} context, {context}", f"let them sum to {context} at most")
    tokenizer = load_tokenizer(policy)

    def fits(row: int) -> bool:
        ids = prompt_tokens(tokenizer, [prompts.rows[row]["prompt"]])
        return len(ids[0]) <= params.max_prompt_tokens

    return make_plan(
        weights, draws_needed(config), seed, fits, params.replacement, params.uniform_share
    )


def _publish(made: Path, out: Path, **fields: Any) -> None:
    """Copy the saved model without what holds paths."""
    with publishing(out) as folder:
        shutil.copytree(made, folder, dirs_exist_ok=True, ignore=HOLDING_PATHS)
        write_manifest(folder, "train", **fields)
