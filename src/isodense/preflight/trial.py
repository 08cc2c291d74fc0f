"""Trials of the policy: what each later stage computes with it, in small and with the real params.

Features of two answers as `reward` takes them, completions of two tokens and their likelihood as
`evaluate` does, and one step of TRL's trainer as `train` does. An architecture, a setting or a
package that one of them fails with is said before anything long has been computed. What went well
is remembered in the cache, by everything that it depends on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.artifact import read_manifest, write_json
from isodense.pipeline.cache import Store, cache_key
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.params import as_dict
from isodense.preflight.checks import FITTED, Finding
from isodense.preflight.inputs import Inputs

TOKENS = 2  # of each completion
GROUP = 2  # completions of each prompt
PROMPTS = 2
FILE = "done.json"
CODE = ("embeddings", "evaluate", "models/inference", "preflight", "reward", "train")
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate")
ELSEWHERE = ("use_vllm", "deepspeed", "fsdp", "fsdp_config")  # of GRPOConfig: not in one process
HINTS = {
    "reward": "choose another policy, or another reward.kind",
    "train": "see train.lora (exclude_modules: [out_proj] of Mamba) and train.grpo, or choose "
    "another policy",
    "evaluate": "choose another policy",
}

Trial = Callable[[Inputs, list[dict[str, Any]], str], None]


def try_policy(inputs: Inputs, device: str, cache: Path, launched: bool) -> Iterator[Finding]:
    """Yield the stages that fail with the policy, with their errors.

    Parameters
    ----------
    inputs : Inputs
        With a policy that is there.
    device : {"cpu", "cuda"}
    cache : Path
        The cache's root.
    launched : bool
        Whether a launcher starts the training, which then is not tried in this one process.
    """
    store = Store(cache, "preflight")
    rows = shortest(inputs.rows)
    entry = store.entry(_key(inputs, rows, device, launched))
    if not entry.holds(FILE):
        elsewhere = launched or any(inputs.train.grpo.get(name) for name in ELSEWHERE)
        trials: dict[str, Trial] = {} if elsewhere else {"train": try_step}
        if inputs.reward.kind in FITTED:
            trials["reward"] = try_head if inputs.reward.kind == "head" else try_classifier
        trials["evaluate"] = try_completions
        found = [
            one
            for name, trial in trials.items()
            for one in _tried(name, trial, inputs, rows, device)
        ]
        yield from found
        if not found:
            with entry.writing(FILE) as path:
                write_json(path, sorted(trials))
    store.clean()


def _key(inputs: Inputs, rows: list[dict[str, Any]], device: str, launched: bool) -> str:
    models = {"policy": inputs.policy, "encoder": inputs.encoder}
    sections = {name: as_dict(getattr(inputs, name)) for name in ("reward", "train", "evaluate")}
    return cache_key(
        inputs={name: read_manifest(folder, "models") for name, folder in models.items()}
        | {"prompts": [[row["prompt"], row.get("tools")] for row in rows]},
        params={**sections, "launched": launched},
        code=CODE,
        libraries=LIBRARIES,
        device=device,
    )


def shortest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the shortest prompts, with an id each."""

    def length(row: dict[str, Any]) -> int:
        return sum(len(message.get("content") or "") for message in row["prompt"])

    chosen = sorted(rows, key=length)[:PROMPTS]
    return [{**row, "id": str(number)} for number, row in enumerate(chosen)]


def _tried(
    stage: str, trial: Trial, inputs: Inputs, rows: list[dict[str, Any]], device: str
) -> Iterator[Finding]:
    from isodense.models.inference.backbone import FAILURES

    try:
        trial(inputs, rows, device)
    except IsodenseError as error:
        yield Finding("problem", stage, error.message, error.hint or HINTS[stage])
    except (*FAILURES, ImportError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        text = f"{inputs.policy} fails in a trial of the stage with {said}"
        yield Finding("problem", stage, text, HINTS[stage])


def try_head(inputs: Inputs, rows: list[dict[str, Any]], device: str) -> None:
    """Compute features as a reward of kind ``head`` does."""
    from isodense.reward.scoring.hidden_states import Features

    reward = inputs.reward
    features = Features(
        inputs.policy, reward.layer, reward.pooling, reward.max_tokens, reward.batch_tokens, device
    )
    features([row["prompt"] for row in rows], ["yes"] * len(rows), tools=_tools(rows))


def try_classifier(inputs: Inputs, rows: list[dict[str, Any]], device: str) -> None:
    """Start a reward of kind ``full`` and score a conversation with it."""
    import torch

    from isodense.models.inference.policy import load_tokenizer, prompt_tokens
    from isodense.reward.scoring.classifier import pad_token, require_context
    from isodense.reward.trl import start

    model = start(inputs.policy, 0).eval().to(device)
    pad_token(model, inputs.policy)
    require_context(model.config, inputs.reward.max_tokens)
    (ids,) = prompt_tokens(load_tokenizer(inputs.policy), [rows[0]["prompt"]])
    with torch.inference_mode():
        model(input_ids=torch.tensor([ids], device=device))


def try_completions(inputs: Inputs, rows: list[dict[str, Any]], device: str) -> None:
    """Complete prompts, measure how likely that was, and embed the completions."""
    from isodense.evaluate.evaluate import open_encoder
    from isodense.models.inference.generation import complete, log_probs
    from isodense.models.inference.policy import load_policy, load_tokenizer

    model, tokenizer = load_policy(inputs.policy, device), load_tokenizer(inputs.policy)
    prompts, tools, settings = [row["prompt"] for row in rows], _tools(rows), inputs.evaluate
    budget, temperature = settings.batch_tokens, settings.temperature
    made = complete(
        model, tokenizer, prompts, GROUP, TOKENS, temperature, budget, 0,
        tools=tools,
    )  # fmt: skip
    if temperature > 0:
        log_probs(model, tokenizer, prompts, made, temperature, budget, tools=tools)
    open_encoder(inputs.encoder, device).encode(["yes"])


def try_step(inputs: Inputs, rows: list[dict[str, Any]], device: str) -> None:
    """Train for one step on short completions; without Adam's moments, which take memory only."""
    from isodense.train.grpo import make_trainer, merged_policy
    from isodense.train.settings import draws_needed, make_config

    make_config(inputs.train, 0, device, Path(tempfile.gettempdir()))  # of the real sizes
    changes = {
        "max_steps": 1,
        "prompts_per_step": 1,
        "num_generations": GROUP,
        "completions_per_pass": GROUP,
        "max_completion_tokens": TOKENS,
        "report_to": ["dvclive"],  # a trial is no run
        "grpo": {"optim": "sgd", **inputs.train.grpo},
    }
    with tempfile.TemporaryDirectory() as folder:
        params = inputs.train.model_copy(update=changes)
        config = make_config(params, 0, device, Path(folder))
        config.save_strategy = "no"
        plan = [rows[number % len(rows)] for number in range(draws_needed(config))]
        trainer = make_trainer(inputs.policy, Alternating(), config, plan, params.lora)
        trainer.train()
        if params.lora is not None:
            adapter = Path(folder) / "adapter"
            trainer.save_model(str(adapter))
            merged_policy(trainer, inputs.policy, adapter)


class Alternating:
    """A reward of 0 and 1 in turns, so that every group has an advantage."""

    def score(self, rows: Sequence[dict[str, Any]], completions: Sequence[str]) -> np.ndarray:
        """Return the reward of each answer; see :class:`isodense.reward.scoring.load.Reward`."""
        return np.arange(len(completions), dtype=np.float32) % 2


def _tools(rows: Sequence[dict[str, Any]]) -> list[Any]:
    return [row.get("tools") for row in rows]
