"""The reward that GRPO optimises: of four kinds, all checked on pairs that none was fitted on.

``head`` fits a linear head on frozen features of the policy, ``full`` trains all weights with TRL,
``model`` takes a finished reward model and ``function`` the user's own code; each is a module of
:mod:`isodense.reward`. The pairs of held-out prompts give the accuracy of each, beside that of
length alone and chance (:mod:`isodense.reward.check`).

What scores answers later (:mod:`isodense.reward.load`) imports none of these modules, so that
changing how a reward is made does not rerun the training where the reward itself stays the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from isodense.pipeline.artifact import content_sha256, publishing, read_manifest, write_manifest
from isodense.pipeline.config_fields import wrong_names
from isodense.pipeline.errors import TrainingError
from isodense.pipeline.params import as_dict, param
from isodense.prompts.reader import PromptSet
from isodense.reward.check import accuracy, compare
from isodense.reward.truncation import margins, pair_weights, sides, split_pairs
from isodense.sampling.weights import Weights

FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
USED = {
    "head": ("kind", "sampling", "layer", "pooling", "max_tokens", "l2", "batch_tokens"),
    "full": ("kind", "sampling", "max_tokens", "batch_tokens", "full"),
    "model": ("kind", "max_tokens", "batch_tokens", "model"),
    "function": ("kind", "function"),
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


@dataclass(frozen=True)
class FullParams:
    """Of kind ``full``: TRL's ``RewardTrainer``, which starts from the policy's weights.

    Attributes
    ----------
    epochs : float
        Skips the training pairs, or as many draws.
    batch_size : int
        Pairs per optimiser step; ``trainer.gradient_accumulation_steps`` divides it.
    learning_rate : float
        Of AdamW.
    trainer : dict
        Further fields of TRL's ``RewardConfig`` by name.
    """

    epochs: float = param(minimum=0.001)
    batch_size: int = param(minimum=1)
    learning_rate: float = param(minimum=0.0, maximum=1.0)
    trainer: dict[str, Any] = param()

    def faults(self) -> list[str]:
        """Return what is wrong with the names under ``trainer``, and with how batches divide."""
        if not self.trainer:
            return []
        from trl.trainer.reward_config import RewardConfig

        faults = wrong_names("trainer", self.trainer, RewardConfig, OWN_FIELDS)
        parts = self.trainer.get("gradient_accumulation_steps", 1)
        if not isinstance(parts, int) or parts < 1 or self.batch_size % parts:
            faults.append(
                f"trainer.gradient_accumulation_steps {parts!r} does not divide batch_size "
                f"{self.batch_size}"
            )
        return faults


@dataclass(frozen=True)
class SourceParams:
    """Of kind ``model``: where the sequence classifier comes from.

    Attributes
    ----------
    source : {"hub", "folder"} or None
    name : str or None
        The repository id, or the path of the folder.
    version : str or None
        The repository's revision; null for a folder.
    """

    source: Literal["hub", "folder"] | None = param()
    name: str | None = param()
    version: str | None = param()

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


@dataclass(frozen=True)
class RewardParams:
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
        Padded tokens per batch; changes speed and memory, not the result.
    full : FullParams
    model : SourceParams
    function : str or None
        Of kind function: ``module:function``, called as TRL calls reward functions.
    """

    kind: Literal["head", "full", "model", "function"] = param()
    sampling: Literal["uniform", "density"] = param()
    layer: int = param(minimum=1)
    pooling: Literal["last", "mean", "both"] = param()
    max_tokens: int = param(minimum=16)
    l2: float = param(minimum=1e-6, maximum=100)
    batch_tokens: int = param(minimum=64)
    full: FullParams = param()
    model: SourceParams = param()
    function: str | None = param()

    def faults(self) -> list[str]:
        """Return what the kind needs and lacks."""
        if self.kind == "model":
            return self.model.missing()
        if self.kind == "function" and not FUNCTION.fullmatch(self.function or ""):
            return [f"kind 'function' needs function: module:function, not {self.function!r}"]
        return []

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


@dataclass(frozen=True)
class Task:
    """What each kind is given.

    Attributes
    ----------
    train, heldout : list of dict
        Pairs.
    weights : ndarray of shape (n_train,), float64
        How much each training pair counts; mean 1.
    prompts : PromptSet
        All prompts.
    policy : Path
        The policy's artifact.
    params : RewardParams
    seed : int
    device : str
        A torch device.
    cache : Path
        The scratch folder outside all outputs.
    """

    train: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    weights: np.ndarray
    prompts: PromptSet
    policy: Path
    params: RewardParams
    seed: int
    device: str
    cache: Path


@dataclass(frozen=True)
class Outcome:
    """What each kind gives back, beside the files it wrote.

    Attributes
    ----------
    heldout : ndarray of shape (n_heldout,), float64
        Score of the chosen answer less that of the rejected one.
    train : ndarray of shape (n_train,), float64, or None
        The same of the training pairs, of a kind that is fitted on them.
    truncated : int
        Pairs of which a conversation was cut.
    fields : dict
        What else the manifest records.
    """

    heldout: np.ndarray
    train: np.ndarray | None = None
    truncated: int = 0
    fields: dict[str, Any] = field(default_factory=dict)


def fit(
    pairs: Sequence[dict[str, Any]],
    prompts: PromptSet,
    policy: Path,
    params: RewardParams,
    seed: int,
    device: str,
    cache: Path,
    inputs: dict[str, str],
    out: Path,
    weights: Weights | None = None,
) -> dict[str, Any]:
    """Make the reward, write ``models/reward`` and return what the metrics report.

    Parameters
    ----------
    pairs : sequence of dict
        Rows of ``data/pairs``.
    prompts : PromptSet
        Says which prompts are held out.
    policy : Path
        The policy's artifact.
    params : RewardParams
        The stage's section.
    seed : int
        Of draws and of a new head's weights, where the kind has them.
    device : str
        A torch device.
    cache : Path
        The scratch folder outside all outputs.
    inputs : dict
        Content hashes of what `pairs`, `prompts` and `weights` were read from, for the manifest.
    out : Path
        The reward's artifact.
    weights : Weights, optional
        Of the density stage, if training pairs are to count by them.

    Raises
    ------
    TrainingError
        If the pairs do not suffice, or the fit, the training or the function fails.
    ModelError
        If the policy or the reward model cannot give the scores asked for.
    ArtifactError
        If the weights belong to other prompts.
    """
    parts = split_pairs(pairs, prompts)
    train, heldout = parts["train"], parts["heldout"]
    shares = pair_weights(train, prompts, weights)
    task = Task(train, heldout, shares, prompts, policy, params, seed, device, cache)
    inputs = inputs | {"policy": content_sha256(read_manifest(policy, "models"))}
    with publishing(out) as scratch:
        made = _maker(params.kind)(task, scratch)
        if not np.isfinite(made.heldout).all():
            message = f"the scores of {len(heldout)} held-out pairs are not all finite"
            hint = "choose another model; of kind full, lower reward.full.learning_rate"
            raise TrainingError(message, hint)
        lengths = _length_margins(policy, heldout + train)
        found = compare(made.heldout, *np.split(lengths, [len(heldout)]))
        check = {name: found[name]["accuracy"] for name in ("heldout", "length_only")}
        fields = {"params": params.used(), "inputs": inputs, "check": check, **made.fields}
        write_manifest(scratch, "reward", reward_kind=params.kind, **fields)
    if params.kind in ("head", "full"):
        found["heldout"]["log_loss"] = float(np.logaddexp(0, -made.heldout).mean())
    return {
        "train_pairs": len(train),
        "heldout_pairs": len(heldout),
        "unknown_pairs": len(parts["unknown"]),
        "truncated_pairs": made.truncated,
        **({} if made.train is None else {"train": accuracy(made.train)}),
        **found,
    }


def _maker(kind: str) -> Callable[[Task, Path], Outcome]:
    if kind == "head":
        from isodense.reward.linear_probe import make
    elif kind == "full":
        from isodense.reward.trl import make
    elif kind == "model":
        from isodense.reward.pretrained import make_model as make
    else:
        from isodense.reward.pretrained import make_function as make
    return make


def _length_margins(policy: Path, pairs: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return tokens of the chosen answer less those of the rejected one, by the policy's count."""
    from isodense.models.policy import answer_tokens, load_tokenizer

    tokens = answer_tokens(load_tokenizer(policy), sides(pairs)[1])
    return margins(np.array([len(row) for row in tokens]))
