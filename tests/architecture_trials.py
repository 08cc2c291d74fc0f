"""What each stage computes with a policy, against the plainest way to compute it.

The oracle is the whole forward pass of one sequence, without cache, padding or packs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from isodense.embeddings.encoder import load_encoder
from isodense.models.inference.backbone import load_backbone
from isodense.models.inference.generation import complete, log_probs
from isodense.models.inference.policy import load_policy, load_tokenizer, prompt_tokens
from isodense.reward.scoring.hidden_states import Features
from tests import tiny
from tests.rl import SECTIONS

TEXTS = [" ".join(tiny.WORDS[:size]) for size in (1, 9, 4, 12, 2)]
PROMPTS = [tiny.user(text) for text in TEXTS]
ANSWERS = ["red", "green blue cat", "paris", "egg egg egg egg", "a"]
NEAR = 2e-3  # relative to the largest value
LORA = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}
LAYER = 2


def try_embeddings(folder: Path) -> None:
    """Vectors in packs or batches are those of each text alone."""
    encoder = load_encoder(folder, max_tokens=64, device="cpu")
    ids = encoder.tokenize(TEXTS)[0]
    alone = np.stack([encoder.encode_alone(row) for row in ids])
    assert (encoder.encode_tokens(ids) * alone).sum(axis=1).min() > 0.9999


def try_reward(folder: Path) -> None:
    """Features of answers, several to a prompt, are pooled states of the whole conversation."""
    features = Features(folder, LAYER, "both", 64, 512)
    prompts, answers = PROMPTS + PROMPTS, ANSWERS + ANSWERS[::-1]
    found = features(prompts, answers)
    model, block = load_backbone(folder, LAYER, "reward.layer")
    kept: list[torch.Tensor] = []
    block.register_forward_hook(
        lambda _module, _inputs, output: kept.append(
            output[0] if isinstance(output, tuple) else output
        )
    )
    asked, answered, _ = features.tokenize(prompts, answers)
    for row, prompt, answer in zip(found, asked, answered, strict=True):
        with torch.inference_mode():
            model(input_ids=torch.tensor([prompt + answer]), use_cache=False)
        states = kept.pop()[0, len(prompt) :]
        expected = torch.cat([states[-1], states.mean(0)]).numpy()
        np.testing.assert_allclose(row, expected, atol=NEAR * np.abs(expected).max())


def try_train(folder: Path) -> None:
    """One step of TRL with an adapter changes the policy."""
    from isodense.preflight.trial import Alternating
    from isodense.train.grpo import make_trainer, save_policy
    from isodense.train.params import TrainParams
    from isodense.train.settings import make_config

    changes = {"max_steps": 1, "lora": LORA, "max_completion_tokens": 3}
    params = TrainParams(**(SECTIONS["train"] | changes))
    rows = [{"id": str(row), "prompt": prompt} for row, prompt in enumerate(PROMPTS[:2])]
    with tempfile.TemporaryDirectory() as out:
        config = make_config(params, 0, "cpu", Path(out))
        trainer = make_trainer(folder, Alternating(), config, rows, params.lora)
        trainer.train()
        assert save_policy(trainer, folder, Path(out) / "policy")
        load_policy(Path(out) / "policy")


def try_evaluate(folder: Path) -> None:
    """Greedy completions are the likeliest tokens one by one; log-probabilities are sums."""
    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    ids = prompt_tokens(tokenizer, PROMPTS)

    @torch.inference_mode()
    def logits(tokens: list[int]) -> torch.Tensor:
        return model(torch.tensor([tokens]), use_cache=False).logits[0].float()

    greedy = complete(model, tokenizer, PROMPTS, 2, 6, 0.0, 10_000, 0)
    for row, (one, other) in zip(ids, greedy, strict=True):
        assert one == other
        expected: list[int] = []
        while len(expected) < 6 and tokenizer.eos_token_id not in expected:
            expected.append(int(logits(row + expected)[-1].argmax()))
        assert list(one.ids) == expected
    drawn = complete(model, tokenizer, PROMPTS, 3, 6, 1.0, 300, 0)
    found = log_probs(model, tokenizer, PROMPTS, drawn, 1.0, 10_000)
    for row, group, values in zip(ids, drawn, found, strict=True):
        for one, value in zip(group, values, strict=True):
            each = logits(row + list(one.ids)).log_softmax(-1)[len(row) - 1 : -1]
            total = float(each[torch.arange(len(one.ids)), list(one.ids)].sum())
            assert abs(total - value) <= NEAR * max(1, abs(total))


STAGES: dict[str, Callable[[Path], None]] = {
    "embeddings": try_embeddings,
    "reward": try_reward,
    "train": try_train,
    "evaluate": try_evaluate,
}

ENCODER_DECODER = "is an encoder-decoder"
LIMITS = {  # where a stage says no, with words of what it says
    ("embeddings", "xlstm"): "wrong shape",
    ("reward", "gemma3n_text"): "computes no features",
    ("reward", "mllama"): r"does not run the block at reward\.layer",
    ("reward", "xlstm"): "cannot be cut",
    ("train", "granitemoe"): "num_experts",
    ("train", "granitemoehybrid"): "num_experts",
    ("train", "phimoe"): "'tuple' object has no attribute 'dtype'",
    ("train", "llama4_text"): "'tuple' object has no attribute 'dtype'",
    ("train", "falcon_h1"): "out_proj",
    ("train", "nemotron_h"): "out_proj",
    ("train", "mamba"): "out_proj",
    ("train", "falcon_mamba"): "out_proj",
    ("train", "mamba2"): "out_proj",
    ("train", "xlstm"): "wrong shape",
    ("evaluate", "rwkv"): "generates other tokens",
    ("evaluate", "xlstm"): "does not generate",
    **{(stage, kind): ENCODER_DECODER for stage in STAGES for kind in ("t5", "bart")},
}
