"""Completions of a policy for many prompts, and the log-probabilities of completions.

Prompts run in batches of similar length. A prompt runs once, whatever the number of completions,
which continue from copies of the prompt's key-value cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

from isodense.models.inference.policy import prompt_tokens, token_batches
from isodense.prompts.conversations import Message

Tools = Sequence[list[dict[str, Any]] | None] | None


@dataclass(frozen=True)
class Completion:
    """One completion of a prompt.

    Attributes
    ----------
    text : str
        The text, without special tokens.
    ids : tuple of int
        Token ids, the end-of-turn token included.
    truncated : bool
        Whether the completion was cut at the limit on tokens.
    """

    text: str
    ids: tuple[int, ...]
    truncated: bool

    @property
    def tokens(self) -> int:
        """Number of tokens, the end-of-turn token included."""
        return len(self.ids)


@torch.inference_mode()
def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[Message]],
    num_generations: int,
    max_tokens: int,
    temperature: float,
    batch_tokens: int,
    seed: int,
    on_batch: Callable[[int], Any] = lambda count: None,
    tools: Tools = None,
) -> list[list[Completion]]:
    """Return `num_generations` completions of each prompt.

    The random generator is seeded for every batch, so that two policies with the same prompts draw
    with the same random numbers in every batch, although one may finish a batch sooner.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The policy, see :func:`isodense.models.inference.policy.load_policy`.
    tokenizer : transformers.PreTrainedTokenizerBase
        Tokenizer of the policy.
    prompts : sequence of list of message
        Conversations that end with a user message.
    num_generations : int
        Completions per prompt.
    max_tokens : int
        Most tokens of a completion.
    temperature : float
        Temperature of the draws; 0 for greedy decoding.
    batch_tokens : int
        Padded tokens per batch, prompts and completions.
    seed : int
        Seed of the draws; torch's random state is restored afterwards.
    on_batch : callable
        Called with the number of prompts after each batch.
    tools : sequence of list of dict, optional
        See :func:`isodense.models.inference.policy.prompt_tokens`.

    Returns
    -------
    list of list of Completion
        Completions of each prompt, in the order of the prompts.
    """
    ids = prompt_tokens(tokenizer, prompts, tools)
    costs = [num_generations * (len(row) + max_tokens) for row in ids]
    ends = _end_tokens(model, tokenizer)
    settings = _settings(temperature, max_tokens)
    settings |= {"eos_token_id": sorted(ends), "pad_token_id": tokenizer.pad_token_id}
    completed: dict[int, list[Completion]] = {}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), _plain_generation(model):
        for number, batch in enumerate(token_batches(costs, batch_tokens)):
            torch.manual_seed(seed + number)
            answers = _generate(model, [ids[row] for row in batch], num_generations, settings)
            for row in batch:
                group = [next(answers) for _ in range(num_generations)]
                completed[row] = [_completion(answer, ends, tokenizer) for answer in group]
            on_batch(len(batch))
    return [completed[row] for row in range(len(ids))]


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Take the folder's settings of generation away for a while, as they change the distribution.

    They come back, since they have the ids that end a turn.
    """
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def _generate(
    model: Any, ids: Sequence[Sequence[int]], copies: int, settings: dict[str, Any]
) -> Iterator[list[int]]:
    """Return the token ids of the answers to a batch, `copies` in a row for each prompt."""
    tokens, mask, cache = _prefill(model, ids, settings["pad_token_id"], copies)
    output = model.generate(
        input_ids=tokens, attention_mask=mask, past_key_values=cache, **settings
    )
    return iter(output[:, tokens.shape[1] :].tolist())


@torch.inference_mode()
def log_probs(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[Message]],
    completions: Sequence[Sequence[Completion]],
    temperature: float,
    batch_tokens: int,
    on_batch: Callable[[int], Any] = lambda count: None,
    tools: Tools = None,
) -> np.ndarray:
    """Return the log-probability of each completion under a policy.

    It is the sum over the tokens of a completion, including the end-of-turn token unless the
    completion is truncated: then it is the log-probability of a longer answer beginning so.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The policy, see :func:`isodense.models.inference.policy.load_policy`.
    tokenizer : transformers.PreTrainedTokenizerBase
        Tokenizer of the policy.
    prompts : sequence of list of message
        Conversations that end with a user message.
    completions : sequence of sequence of Completion
        Completions of each prompt, the same number for all.
    temperature : float
        Temperature that logits are divided by, above 0.
    batch_tokens : int
        Padded tokens per batch, prompts and completions.
    on_batch : callable
        Called with the number of prompts after each batch.
    tools : sequence of list of dict, optional
        See :func:`isodense.models.inference.policy.prompt_tokens`.

    Returns
    -------
    ndarray of shape (n_prompts, num_generations), float64
        Log-probabilities in nats.
    """
    ids = prompt_tokens(tokenizer, prompts, tools)
    copies = len(completions[0])
    costs = [
        copies * (len(prompt) + max(completion.tokens for completion in group))
        for prompt, group in zip(ids, completions, strict=True)
    ]
    result = np.empty((len(ids), copies))
    for batch in token_batches(costs, batch_tokens):
        batch_ids = [ids[row] for row in batch]
        answers = [completion.ids for row in batch for completion in completions[row]]
        sums = _sums(model, batch_ids, answers, tokenizer.pad_token_id, temperature)
        result[batch] = np.reshape(list(sums), (len(batch), copies))
        on_batch(len(batch))
    return result


def _sums(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    pad: int,
    temperature: float,
) -> Iterator[float]:
    """Yield the log-probability of each answer; answers to one prompt are adjacent."""
    prompt, mask, cache = _prefill(model, prompts, pad, len(answers) // len(prompts))
    answer, seen = (part.to(model.device) for part in _padded(answers, pad, left=False))
    tokens = torch.cat([prompt[:, -1:], answer[:, :-1]], dim=1)  # each token predicts the next
    mask = torch.cat([mask, seen[:, :-1]], dim=1)
    logits = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=_positions(mask)[:, -tokens.shape[1] :],
        past_key_values=cache,
    ).logits
    for row, ids in enumerate(answers):  # one by one: float32 logits of a batch are large
        scaled = logits[row, : len(ids)].float() / temperature
        yield -float(cross_entropy(scaled, answer[row, : len(ids)], reduction="sum"))


def _prefill(
    model: Any, ids: Sequence[Sequence[int]], pad: int, copies: int
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Run all tokens of each prompt but the last.

    Returns the padded tokens, the mask and the key-value cache, with `copies` rows per prompt.
    """
    tokens, mask = (part.to(model.device) for part in _padded(ids, pad, left=True))
    cache = model(
        input_ids=tokens[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=_positions(mask)[:, :-1],
        use_cache=True,
        logits_to_keep=1,
    ).past_key_values
    cache.batch_repeat_interleave(copies)
    return tokens.repeat_interleave(copies, 0), mask.repeat_interleave(copies, 0), cache


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _settings(temperature: float, max_tokens: int) -> dict[str, Any]:
    """Return settings of generation that leave the policy's distribution as it is."""
    settings: dict[str, Any] = {"max_new_tokens": max_tokens}
    if temperature > 0:
        return settings | {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    return settings | {"do_sample": False}


def _completion(answer: list[int], ends: set[int], tokenizer: Any) -> Completion:
    stop = next((place for place, token in enumerate(answer) if token in ends), None)
    kept = answer if stop is None else answer[: stop + 1]
    text = tokenizer.decode(kept, skip_special_tokens=True)
    return Completion(text, tuple(kept), stop is None)


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    declared = model.generation_config.eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    return {token for token in [*declared, tokenizer.eos_token_id] if token is not None}


def _padded(
    ids: Sequence[Sequence[int]], pad: int, left: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, ids))
    tokens = torch.full((len(ids), length), pad)
    mask = torch.zeros((len(ids), length), dtype=torch.long)
    for row, values in enumerate(ids):
        place = slice(length - len(values), length) if left else slice(len(values))
        tokens[row, place] = torch.tensor(values)
        mask[row, place] = 1
    return tokens, mask
