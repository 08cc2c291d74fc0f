"""Section ``train`` of ``params.yaml``."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from isodense.pipeline.config_fields import wrong_names
from isodense.pipeline.params import CrossFieldError, Params
from isodense.sampling.schemes import Sampling

Tracker = Literal["dvclive", "trackio", "wandb", "tensorboard", "mlflow"]

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
    "reward_weights": "reward.functions",
    "beta": "train.beta",
    "temperature": "train.temperature",
    "chat_template_kwargs": "models.policy.chat_template_kwargs (one setting for all stages)",
    "shuffle_dataset": "the stage (train.sampling draws the prompts)",
    "remove_unused_columns": "the stage",
    "logging_steps": "the stage",
    "logging_strategy": "the stage",
    "report_to": "train.report_to",
    "disable_tqdm": "the stage",
    "push_to_hub": "the stage",
    "save_strategy": "train.save_steps",
    "save_steps": "train.save_steps",
    "save_total_limit": "the stage",
    "save_only_model": "the stage",
    "resume_from_checkpoint": "the stage (a run that was cut off goes on by itself)",
    "ignore_data_skip": "the stage",
    "trust_remote_code": "the stage (code that comes with a model is never run)",
    "sync_ref_model": "the stage (a reference that moves is in no checkpoint)",
    "eval_strategy": "the stage",
    "do_eval": "the stage",
}
OWN_LORA_FIELDS = {
    "task_type": "the stage",
    "base_model_name_or_path": "the stage",
    "inference_mode": "the stage",
    "layer_replication": "the stage (the policy keeps its layers)",
    "megatron_config": "the stage (the policy is one of transformers)",
}


class TrainParams(Params):
    """Section ``train`` of ``params.yaml``.

    Attributes
    ----------
    sampling : Sampling
        Draw prompts by the weights of the density stage, all alike, as often as they were asked
        (which is what training on all pairs alike does), by the signal that the difficulty stage
        expects of them, or by the product of weight and signal. To compare with: ``label``, each
        label as often as any other, and ``inverted``, in inverse proportion to the weights.
    replacement : bool
        Whether a prompt can come again before every other has come once.
    uniform_share : float
        Share of the draws that is uniform instead.
    difficulty_floor : float
        Least factor of the difficulty; that of a prompt which is solved half of the time is 1.
    redraw : {"decile", "label"} or None
        Draw while training runs, so that the share of the learning that each density decile, or
        each label, gets follows the odds; None draws all prompts before, so that draws follow them.
    seed : int
        Seed of draws and completions, added to ``base.seed``: repeats a run on the same data.
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
        Learning rate of AdamW.
    beta : float
        Weight of the divergence from the untrained policy; 0 saves computing it.
    temperature : float
        Sampling temperature of the completions in training.
    save_steps : int
        Steps between checkpoints.
    on_weak_reward : {"error", "warn"}
        What to do with a reward that prefers the right answer no more often than length does.
    report_to : list of {"dvclive", "trackio", "wandb", "tensorboard", "mlflow"}
        What records the run: dvclive, which DVC's metrics and plots come from, and trackers that
        TRL reports to.
    lora : dict or None
        Fields of peft's ``LoraConfig`` by name; None trains all weights.
    grpo : dict
        Further fields of TRL's ``GRPOConfig`` by name.
    """

    sampling: Sampling
    replacement: bool
    uniform_share: float = Field(ge=0.0, le=1.0)
    difficulty_floor: float = Field(ge=0.0, le=1.0)
    redraw: Literal["decile", "label"] | None
    seed: int = Field(ge=0, le=2**31 - 1)
    max_steps: int = Field(ge=1)
    prompts_per_step: int = Field(ge=1)
    num_generations: int = Field(ge=2)
    completions_per_pass: int = Field(ge=1)
    max_prompt_tokens: int = Field(ge=8)
    max_completion_tokens: int = Field(ge=1)
    learning_rate: float = Field(ge=0.0, le=1.0)
    beta: float = Field(ge=0.0, le=10.0)
    temperature: float = Field(ge=0.01, le=10.0)
    save_steps: int = Field(ge=1)
    on_weak_reward: Literal["error", "warn"]
    report_to: list[Tracker]
    lora: dict[str, Any] | None
    grpo: dict[str, Any]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Refuse what excludes another, and names of no fields, or of those that the stage sets."""
        faults = []
        if self.report_to.count("dvclive") != 1 or len({*self.report_to}) < len(self.report_to):
            faults.append("report_to names dvclive, which DVC reads, and every other tracker once")
        if self.grpo:
            from trl.trainer.grpo_config import GRPOConfig

            faults += wrong_names("grpo", self.grpo, GRPOConfig, OWN_FIELDS)
            if "trust_remote_code" in (self.grpo.get("model_init_kwargs") or {}):
                name = "grpo.model_init_kwargs.trust_remote_code"
                faults.append(f"{name} is set by {OWN_FIELDS['trust_remote_code']}")
        if self.lora is not None:
            from peft import LoraConfig

            faults += wrong_names("lora", self.lora, LoraConfig, OWN_LORA_FIELDS)
        if self.redraw and not self.replacement:
            faults.append(f"redraw {self.redraw} needs replacement true, not false")
        if faults:
            raise CrossFieldError(faults)
        return self
