"""Kind ``full``: all weights of the policy, and one new output, trained on the pairs by TRL.

The pairs are drawn before the trainer is built, as many as the run will use, and TRL's
``RewardTrainer`` walks through them in order. They reach it tokenised by the function that also
tokenises answers to be scored, so that training and scoring mean the same conversation, and so that
a long one is cut instead of left out. The trained model is kept (:mod:`isodense.pipeline.cache`):
the same pairs, settings and policy are not trained on twice.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from isodense.models.inference.load import UNREADABLE, other_head, read_model, require_whole
from isodense.models.inference.policy import load_tokenizer
from isodense.models.inference.reader import require_undamaged
from isodense.pipeline.artifact import read_manifest
from isodense.pipeline.cache import Store, cache_key, sequences_sha256
from isodense.pipeline.errors import ModelError, TrainingError
from isodense.pipeline.params import as_dict
from isodense.pipeline.stage import progress
from isodense.reward.base import Outcome, Task
from isodense.reward.pairs import margins, sides
from isodense.reward.params import RewardParams
from isodense.reward.pretrained import score_pairs
from isodense.reward.scoring.classifier import MODEL, conversation_tokens, require_context
from isodense.sampling.draw import draw

CODE = ("models/inference", "reward", "sampling")  # packages that compute the model
LIBRARIES = ("torch", "transformers", "trl", "accelerate")
NEW = "score.weight"  # the output that a language model does not have


def make(task: Task, out: Path) -> Outcome:
    """Train, save and score the pairs; see :func:`isodense.reward.fit.fit`."""
    tokenizer = load_tokenizer(task.policy)
    ids, _ = conversation_tokens(tokenizer, *sides(task.train), task.params.max_tokens)
    plan = plan_pairs(task.weights, task.params, task.seed)
    store = Store(task.cache, "reward-full")
    key = cache_key(
        inputs={
            "policy": read_manifest(task.policy, "models"),
            "pairs": sequences_sha256(ids),
            "plan": sequences_sha256([plan.tolist()]),
        },
        params={"full": as_dict(task.params.full), "seed": task.seed},
        code=CODE,
        libraries=LIBRARIES,
        device=task.device,
    )
    entry = store.entry(key)
    if not entry.holds(MODEL):
        with entry.writing(MODEL) as path:
            _train(task, tokenizer, ids, plan, path)
    shutil.copytree(entry.path(MODEL), out / MODEL)
    store.clean()
    scores, cut = score_pairs(task, out, task.train + task.heldout)
    train, heldout = np.split(margins(scores), [len(task.train)])
    return Outcome(heldout, train, truncated=cut)


def _train(task: Task, tokenizer: Any, ids: list[list[int]], plan: np.ndarray, out: Path) -> None:
    """Train the model and save it as the folder `out`."""
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        config = make_config(task.params, task.seed, task.device, folder)
        model = start(task.policy, task.seed)
        require_context(model.config, task.params.max_tokens)
        make_trainer(model, tokenizer, ids, plan, config).train()
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


def plan_pairs(weights: np.ndarray, params: RewardParams, seed: int) -> np.ndarray:
    """Return the rows of the training pairs in the order in which they are trained on.

    Parameters
    ----------
    weights : ndarray of shape (n_pairs,), float64
        How much each pair counts.
    params : RewardParams
        With ``sampling: density``, pairs are drawn with replacement by weight; else each epoch
        takes every pair once, in an order of its own.
    seed : int

    Returns
    -------
    ndarray of shape (draws,), int64
        As many as the epochs ask for, one at least.
    """
    size = max(1, round(params.full.epochs * len(weights)))
    if params.sampling == "density":
        return draw(weights, size, seed)
    rng = np.random.default_rng(seed)
    epochs = -(-size // len(weights))
    return np.concatenate([rng.permutation(len(weights)) for _ in range(epochs)])[:size]


def make_config(params: RewardParams, seed: int, device: str, folder: str) -> RewardConfig:
    """Return TRL's settings of the run.

    Raises
    ------
    TrainingError
        If TRL refuses a setting, or one process sees several GPUs.
    """
    full = params.full
    settings = {
        "activation_checkpointing": full.trainer.get("gradient_checkpointing", False),
        "bf16": device == "cuda",
        "logging_strategy": "no",
        **full.trainer,
        "output_dir": folder,
        "seed": seed,
        "use_cpu": device == "cpu",
        "num_train_epochs": 1,
        "per_device_train_batch_size": full.batch_size
        // full.trainer.get("gradient_accumulation_steps", 1),
        "learning_rate": full.learning_rate,
        "max_length": None,
        "train_sampling_strategy": "sequential",
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    try:
        config = RewardConfig(**settings)
    except (ValueError, TypeError) as error:
        raise TrainingError(f"TRL refuses the settings under reward.full: {error}") from None
    if config.n_gpu > 1:
        message = f"one process sees {config.n_gpu} GPUs, which TRL does not train on"
        raise TrainingError(message, "set CUDA_VISIBLE_DEVICES to one of them")
    return config


def make_trainer(
    model: Any, tokenizer: Any, ids: list[list[int]], plan: np.ndarray, config: RewardConfig
) -> RewardTrainer:
    """Return a trainer that walks through the plan in order.

    Parameters
    ----------
    model, tokenizer
        What is trained.
    ids : list of list of int
        Tokens of the training pairs' conversations, in the order of
        :func:`isodense.reward.pairs.sides`.
    plan : ndarray of shape (draws,), int64
        Rows of pairs.
    config : RewardConfig
    """
    size = len(ids) // 2
    rows = [{"chosen_ids": ids[row], "rejected_ids": ids[size + row]} for row in range(size)]
    trainer = RewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows).select(plan),
        processing_class=tokenizer,
        callbacks=[Bar()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def start(policy: Path, seed: int) -> Any:
    """Return the policy as a sequence classifier in float32, its one output drawn at random.

    Raises
    ------
    ModelError
        If it is not a whole model, or its architecture has no sequence classifier.
    """
    require_undamaged(policy)
    set_seed(seed)
    try:
        model, missing = read_model(
            AutoModelForSequenceClassification,
            policy,
            other_head(policy),
            num_labels=1,
            dtype=torch.float32,
        )
    except UNREADABLE as error:
        message = f"{policy} cannot be loaded as a sequence classifier: {error}"
        raise ModelError(message, "use another reward.kind for this policy") from None
    require_whole(policy, [name for name in missing if name != NEW])
    return model


class Bar(TrainerCallback):
    """Shows the progress of the run on stderr."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar."""
        self._bar = tqdm(total=state.max_steps, unit="step", **progress())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move it by one step."""
        self._bar.update(state.global_step - self._bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close it."""
        self._bar.close()
