"""Completions of a policy for many prompts, in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from isodense.conversations import Message
from isodense.policy import prompt_tokens, token_batches


@dataclass(frozen=True)
class Completion:
    """What a policy answered.

    Attributes
    ----------
    text : str
        Without special tokens.
    tokens : int
        Length, the end-of-turn token included.
    truncated : bool
        Whether the limit on tokens ended it.
    """

    text: str
    tokens: int
    truncated: bool


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[Message]],
    max_tokens: int,
    temperature: float,
    batch_tokens: int,
    seed: int,
    on_batch: Callable[[int], Any] = lambda count: None,
) -> list[Completion]:
    """Return one completion per prompt.

    Parameters
    ----------
    model, tokenizer
        The policy, as :mod:`isodense.policy` loads it.
    prompts : sequence of list of message
        Conversations that end with the user's turn.
    max_tokens : int
        Completions are cut there.
    temperature : float
        0 for the likeliest token at each step, which draws nothing.
    batch_tokens : int
        Padded tokens per batch, prompt and completion.
    seed : int
        Of the draws; the process's own random state is left as it was.
    on_batch : callable
        Called with the number of completions after each batch.
    """
    ids = prompt_tokens(tokenizer, prompts)
    settings: dict[str, Any] = {"max_new_tokens": max_tokens, "do_sample": temperature > 0}
    if temperature > 0:
        settings |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    ends = _end_tokens(model, tokenizer)
    settings |= {"eos_token_id": sorted(ends), "pad_token_id": tokenizer.pad_token_id}
    made: dict[int, Completion] = {}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        torch.manual_seed(seed)
        for batch in token_batches([len(row) + max_tokens for row in ids], batch_tokens):
            tokens, mask = _left_padded([ids[row] for row in batch], tokenizer.pad_token_id)
            output = model.generate(
                input_ids=tokens.to(model.device), attention_mask=mask.to(model.device), **settings
            )
            for row, answer in zip(batch, output[:, tokens.shape[1] :].tolist(), strict=True):
                made[row] = _completion(answer, ends, tokenizer)
            on_batch(len(batch))
    return [made[row] for row in range(len(ids))]


def _completion(answer: list[int], ends: set[int], tokenizer: Any) -> Completion:
    stop = next((place for place, token in enumerate(answer) if token in ends), None)
    kept = answer if stop is None else answer[: stop + 1]
    return Completion(tokenizer.decode(kept, skip_special_tokens=True), len(kept), stop is None)


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    declared = model.generation_config.eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    return {token for token in [*declared, tokenizer.eos_token_id] if token is not None}


def _left_padded(ids: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, ids))
    tokens = torch.full((len(ids), length), pad)
    mask = torch.zeros((len(ids), length), dtype=torch.long)
    for row, values in enumerate(ids):
        tokens[row, length - len(values) :] = torch.tensor(values)
        mask[row, length - len(values) :] = 1
    return tokens, mask
