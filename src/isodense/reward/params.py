"""Section ``reward`` of ``params.yaml``."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from isodense.pipeline.config_fields import wrong_names
from isodense.pipeline.params import CrossFieldError, Params, as_dict

FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
USED = {
    "head": ("kind", "sampling", "layer", "pooling", "max_tokens", "l2", "batch_tokens"),
    "full": ("kind", "sampling", "max_tokens", "batch_tokens", "full"),
    "model": ("kind", "max_tokens", "batch_tokens", "model"),
    "function": ("kind", "functions"),
}
OWN_FIELDS = {
    "output_dir": "the stage",
    "seed": "base.seed",
    "data_seed": "base.seed",
    "use_cpu": "base.device",
    "num_train_epochs": "reward.full.epochs",
    "max_steps": "reward.full.epochs",
    "per_device_train_batch_size": "reward.full.batch_size",
    "learning_rate": "reward.full.learning_rate",
    "max_length": "reward.max_tokens",
    "train_sampling_strategy": "the stage (reward.sampling draws the pairs)",
    "model_init_kwargs": "the stage",
    "trust_remote_code": "the stage",
    "chat_template_path": "the stage (the policy's own chat template is used)",
    "eos_token": "the stage",
    "pad_token": "the stage",
    "remove_unused_columns": "the stage",
    "report_to": "the stage",
    "disable_tqdm": "the stage",
    "push_to_hub": "the stage",
    "save_strategy": "the stage",
    "resume_from_checkpoint": "the stage",
    "eval_strategy": "the stage",
    "do_eval": "the stage",
}


class FullParams(Params):
    """Of kind ``full``: TRL's ``RewardTrainer``, which starts from the policy's weights.

    Attributes
    ----------
    epochs : float
        Passes over the training pairs; with ``sampling: density``, epochs times pairs draws.
    batch_size : int
        Pairs per optimiser step; ``trainer.gradient_accumulation_steps`` divides it.
    learning_rate : float
        Learning rate of AdamW.
    trainer : dict
        Further fields of TRL's ``RewardConfig`` by name.
    """

    epochs: float = Field(ge=0.001)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(ge=0.0, le=1.0)
    trainer: dict[str, Any]

    @model_validator(mode="after")
    def _trainer_is_possible(self) -> Self:
        """Refuse names under ``trainer`` that are no fields, and batches that do not divide."""
        if not self.trainer:
            return self
        from trl.trainer.reward_config import RewardConfig

        faults = wrong_names("trainer", self.trainer, RewardConfig, OWN_FIELDS)
        parts = self.trainer.get("gradient_accumulation_steps", 1)
        if not isinstance(parts, int) or parts < 1 or self.batch_size % parts:
            faults.append(
                f"trainer.gradient_accumulation_steps {parts!r} does not divide batch_size "
                f"{self.batch_size}"
            )
        if faults:
            raise CrossFieldError(faults)
        return self


class SourceParams(Params):
    """Of kind ``model``: where the sequence classifier comes from.

    Attributes
    ----------
    source : {"hub", "folder"} or None
    name : str or None
        The repository id, or the path of the folder.
    version : str or None
        The repository's revision; null for a folder.
    """

    source: Literal["hub", "folder"] | None
    name: str | None
    version: str | None

    def missing(self) -> list[str]:
        """Return what a source needs and lacks, or has and does not mean anything for it."""
        if self.source is None:
            return ["kind 'model' needs model.source: hub or folder"]
        faults = [] if self.name else [f"model.source {self.source!r} needs model.name"]
        if self.source == "hub" and not self.version:
            faults.append("model.source 'hub' needs model.version, a revision")
        if self.source == "folder" and self.version is not None:
            faults.append("model.version has no meaning for a folder; set it to null")
        return faults


class FunctionParams(Params):
    """Of kind ``function``: one function; a bare string stands for its name.

    Attributes
    ----------
    name : str
        ``module:function``: the module as seen from the project's root, or an installed one.
    weight : float
        Its share of the total reward.
    args : dict
        Further arguments by keyword; those of a factory make the function.
    """

    name: str
    weight: float = 1.0
    args: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _may_be_a_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if not FUNCTION.fullmatch(self.name):
            raise CrossFieldError([f"{self.name!r} is not module:function"])
        if not math.isfinite(self.weight):
            raise CrossFieldError([f"weight {self.weight} of {self.name} is not finite"])
        return self


class CheckParams(Params):
    """The check of a reward where there are no pairs: the frozen policy answers a few prompts.

    Attributes
    ----------
    prompts : int
        Training prompts, chosen by the hash that is their id.
    num_generations : int
        Completions of each, as many as in training.
    max_completion_tokens : int
        Completions are cut there.
    temperature : float
        Of the draws.
    """

    prompts: int = Field(ge=2)
    num_generations: int = Field(ge=2)
    max_completion_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0.01, le=10.0)


class RewardParams(Params):
    """Section ``reward`` of ``params.yaml``.

    Attributes
    ----------
    kind : {"head", "full", "model", "function"}
        What scores an answer; see :mod:`isodense.reward.fit`.
    sampling : {"uniform", "density"}
        Of kinds head and full: each training pair counts alike, or by the weight of its prompt,
        which the prompt's training pairs share.
    layer : int
        Of kind head: the feature is the hidden state after this many blocks of the policy.
    pooling : {"last", "mean", "both"}
        Of kind head: at the end-of-turn token, averaged over the answer, or both.
    max_tokens : int
        A longer conversation loses the start of its prompt.
    l2 : float
        Of kind head: loss + l2/2 · |w|², features standardised, loss a mean over pairs.
    batch_tokens : int
        Tokens per batch; changes speed and memory, not the result.
    full : FullParams
    model : SourceParams
    functions : list of FunctionParams
        Of kind function: called as TRL calls reward functions; the reward is their weighted sum.
    solved_above : float
        A completion counts as solved if its reward is above.
    check : CheckParams
    """

    kind: Literal["head", "full", "model", "function"]
    sampling: Literal["uniform", "density"]
    layer: int = Field(ge=1)
    pooling: Literal["last", "mean", "both"]
    max_tokens: int = Field(ge=16)
    l2: float = Field(ge=1e-6, le=100)
    batch_tokens: int = Field(ge=64)
    full: FullParams
    model: SourceParams
    functions: list[FunctionParams]
    solved_above: float | None
    check: CheckParams

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        faults = self.model.missing() if self.kind == "model" else []
        if self.kind == "function" and not self.functions:
            faults.append("kind 'function' needs functions: [module:function, …]")
        if faults:
            raise CrossFieldError(faults)
        return self

    @property
    def reads_weights(self) -> bool:
        """Whether the weights of the density stage enter the result."""
        return self.sampling == "density" and "sampling" in USED[self.kind]

    def used(self) -> dict[str, Any]:
        """Return what the manifest records: the params that the kind reads, no folder's path."""
        used = {name: value for name, value in as_dict(self).items() if name in USED[self.kind]}
        if "model" in used and self.model.source == "folder":
            used["model"]["name"] = Path(str(self.model.name)).name
        return used
