"""Training the policy by GRPO, on prompts drawn by weight.

The prompts are drawn before the trainer is built: a plan of row numbers, as many as the run will
use, from :func:`isodense.sampling.draw`. TRL's trainer walks through the plan in order, repeats
each prompt ``num_generations`` times and keeps the group together, so that rewards are compared
among answers to one prompt. Nothing of the trainer is replaced, and embeddings are never opened.

A prompt longer than ``max_prompt_tokens`` is not cut, because a conversation without its start is
another conversation: its draws are passed over and the next of the stream taken, which leaves the
odds of the other prompts among themselves as the weights have them.

Any field of TRL's ``GRPOConfig`` can be set under ``train.grpo``, except those that this module
sets from other params or needs for the run to repeat.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from isodense.artifacts import (
    content_sha256,
    publishing,
    read_manifest,
    require_same_ids,
    write_manifest,
)
from isodense.conversations import Message
from isodense.errors import TrainingError
from isodense.params import as_dict, param
from isodense.promptset import PromptSet
from isodense.weights import Weights

if TYPE_CHECKING:
    from trl.trainer.grpo_config import GRPOConfig

Score = Callable[[Sequence[list[Message]], Sequence[str]], np.ndarray]

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
    "save_strategy": "the stage",
    "eval_strategy": "the stage",
    "do_eval": "the stage",
}
TRIES = 20  # draws per prompt wanted before the search for prompts that fit is given up


@dataclass(frozen=True)
class TrainParams:
    """Section ``train`` of ``params.yaml``.

    Attributes
    ----------
    sampling : {"density", "uniform"}
        Draw prompts by the weights of the density stage, or all alike.
    max_steps : int
        Optimiser steps.
    prompts_per_step : int
        Prompts of each step, over all processes.
    num_generations : int
        Completions per prompt (a group).
    completions_per_pass : int
        Completions that a device runs forward and backward at once: memory and speed only.
    max_prompt_tokens : int
        Longer prompts, in the chat format, are passed over.
    max_completion_tokens : int
        Completions are cut there.
    learning_rate : float
        Of AdamW.
    beta : float
        Weight of the divergence from the untrained policy; 0 saves computing it.
    temperature : float
        Of the completions drawn in training.
    grpo : dict
        Further fields of TRL's ``GRPOConfig`` by name.
    """

    sampling: Literal["density", "uniform"] = param()
    max_steps: int = param(minimum=1)
    prompts_per_step: int = param(minimum=1)
    num_generations: int = param(minimum=2)
    completions_per_pass: int = param(minimum=1)
    max_prompt_tokens: int = param(minimum=8)
    max_completion_tokens: int = param(minimum=1)
    learning_rate: float = param(minimum=0.0, maximum=1.0)
    beta: float = param(minimum=0.0, maximum=10.0)
    temperature: float = param(minimum=0.01, maximum=10.0)
    grpo: dict[str, Any] = param()

    def faults(self) -> list[str]:
        """Return what is wrong with the names under ``grpo``."""
        if not self.grpo:
            return []
        from dataclasses import fields

        from trl.trainer.grpo_config import GRPOConfig

        known = {field.name for field in fields(GRPOConfig)} - set(OWN_FIELDS)
        faults = []
        for name in self.grpo:
            if name in OWN_FIELDS:
                faults.append(f"grpo.{name} is set by {OWN_FIELDS[name]}")
            elif name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                faults.append(f"grpo.{name} is not a field of GRPOConfig{hint}")
        return faults


@dataclass(frozen=True)
class Plan:
    """The prompts of a run, in order.

    Attributes
    ----------
    rows : ndarray of shape (draws,), int64
        Row numbers of the training prompts.
    passed_over : int
        Draws of prompts that are too long.
    """

    rows: np.ndarray
    passed_over: int


def prompt_weights(prompts: PromptSet, weights: Weights, sampling: str) -> np.ndarray:
    """Return how often each training prompt is to be drawn, up to a factor.

    Parameters
    ----------
    prompts : PromptSet
        The training prompts.
    weights : Weights
        Of the density stage.
    sampling : {"density", "uniform"}

    Returns
    -------
    ndarray of shape (n_prompts,)

    Raises
    ------
    ArtifactError
        If the weights belong to other prompts, also where they are not used.
    TrainingError
        If there are no prompts.
    """
    if not len(prompts):
        raise TrainingError("no prompt is left to train on", "lower prompts.heldout, or add data")
    require_same_ids(prompts.ids_sha256, weights.metadata, "the weights")
    return weights.weights if sampling == "density" else np.ones(len(prompts))


def input_hashes(prompts: Path, density: Path, policy: Path, reward: Path) -> dict[str, str]:
    """Return the content hashes of the artifacts that training reads."""
    kinds = {
        "prompts": (prompts, "prompts"),
        "density": (density, "density"),
        "policy": (policy, "models"),
        "reward": (reward, "reward"),
    }
    return {name: content_sha256(read_manifest(*entry)) for name, entry in kinds.items()}


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
    weights: np.ndarray, size: int, seed: int, fits: Callable[[int], bool] = lambda row: True
) -> Plan:
    """Draw prompts with replacement, passing over those that do not fit.

    Parameters
    ----------
    weights : ndarray of shape (n,)
        See :func:`isodense.sampling.draw`.
    size : int
        Number of draws to keep.
    seed : int
        Names the stream of draws.
    fits : callable
        Whether the prompt of a row can be used; asked once per prompt drawn.

    Raises
    ------
    TrainingError
        If fewer than one draw in 20 fits.
    """
    from isodense.sampling import draw

    known: dict[int, bool] = {}
    rows: list[int] = []
    drawn = 0
    while len(rows) < size:
        if drawn >= TRIES * max(size, 100):
            message = f"{drawn - len(rows)} of {drawn} drawn prompts exceed train.max_prompt_tokens"
            raise TrainingError(message, "raise train.max_prompt_tokens")
        for row in draw(weights, size, seed, drawn).tolist():
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
        If the completions of a step cannot be shared out, or TRL refuses a setting.
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
        "save_strategy": "no",
    }
    try:
        return GRPOConfig(**settings)
    except (ValueError, TypeError) as error:
        raise TrainingError(f"TRL refuses the settings under train: {error}") from None


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
        Where the trainer keeps its scratch.
    inputs : dict
        Hashes of the manifests of what went in, for the manifest.
    out : Path
        The trained policy's artifact.
    live : Path
        The folder of dvclive's series.

    Raises
    ------
    TrainingError
        If the settings, the prompts or the rewards cannot be trained on.
    ModelError
        If the policy cannot be loaded.
    """
    from isodense.grpo import Record, make_trainer, quarters

    recipe = {"params": as_dict(params), "inputs": inputs, "seed": seed}
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:40]
    scratch = cache / "train" / key
    config = make_config(params, seed, device, scratch)
    plan = _plan(prompts, weights, policy, params, config, seed)
    facts = {
        "draws": len(plan.rows),
        "distinct_prompts": len(np.unique(plan.rows)),
        "passed_over_draws": plan.passed_over,
    }
    rows = [prompts.rows[row] for row in plan.rows]
    trainer = make_trainer(policy, reward(str(config.device)), config, rows)
    if trainer.is_world_process_zero():
        trainer.add_callback(Record(live, facts))
    trainer.train()
    trainer.save_model(str(scratch / "policy"))
    if trainer.is_world_process_zero():
        fields = {"params": as_dict(params), "plan": facts, "inputs": inputs}
        _publish(scratch / "policy", out, ids_sha256=prompts.ids_sha256, **fields)
        shutil.rmtree(scratch)
    return {**facts, **quarters(trainer.state.log_history)}


def _plan(
    prompts: PromptSet,
    weights: np.ndarray,
    policy: Path,
    params: TrainParams,
    config: GRPOConfig,
    seed: int,
) -> Plan:
    from isodense.policy import context_length, load_tokenizer, prompt_tokens

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

    return make_plan(weights, draws_needed(config), seed, fits)


def _publish(made: Path, out: Path, **fields: Any) -> None:
    """Copy the saved model without ``training_args.bin``, which holds paths."""
    with publishing(out) as folder:
        for path in sorted(made.iterdir()):
            if path.name != "training_args.bin":
                shutil.copyfile(path, folder / path.name)
        write_manifest(folder, "train", **fields)
