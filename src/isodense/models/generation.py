"""Completions of a policy for many prompts, and how likely a policy finds given completions.

Prompts run in batches of similar length. Each runs once, whatever the number of its completions,
which continue from copies of its cached keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

from isodense.models.policy import prompt_tokens, token_batches
from isodense.prompts.conversations import Message


@dataclass(frozen=True)
class Completion:
    """What a policy answered.

    Attributes
    ----------
    text : str
        Without special tokens.
    ids : tuple of int
        Its tokens, the end-of-turn token included.
    truncated : bool
        Whether the limit on tokens ended it.
    """

    text: str
    ids: tuple[int, ...]
    truncated: bool

    @property
    def tokens(self) -> int:
        """Length, the end-of-turn token included."""
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
) -> list[list[Completion]]:
    """Return some completions of each prompt.

    Every batch has a seed of its own. So two policies that are asked the same get the same random
    numbers at every step, in every batch, although one may end a batch sooner.

    Parameters
    ----------
    model, tokenizer
        The policy, as :mod:`isodense.models.policy` loads it.
    prompts : sequence of list of message
        Conversations that end with the user's turn.
    num_generations : int
        Completions per prompt.
    max_tokens : int
        Completions are cut there.
    temperature : float
        0 for the likeliest token at each step, which draws nothing.
    batch_tokens : int
        Padded tokens per batch, prompts and completions.
    seed : int
        Of the draws; the process's own random state is left as it was.
    on_batch : callable
        Called with the number of prompts after each batch.

    Returns
    -------
    list of list of Completion
        `num_generations` for each prompt, in the order of the prompts.
    """
    ids = prompt_tokens(tokenizer, prompts)
    costs = [num_generations * (len(row) + max_tokens) for row in ids]
    ends = _end_tokens(model, tokenizer)
    settings = _settings(temperature, max_tokens)
    settings |= {"eos_token_id": sorted(ends), "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig()  # a folder may ask for other odds than the model's
    made: dict[int, list[Completion]] = {}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        for number, batch in enumerate(token_batches(costs, batch_tokens)):
            torch.manual_seed(seed + number)
            tokens, mask, cache = _prefill(
                model, [ids[row] for row in batch], tokenizer.pad_token_id, num_generations
            )
            output = model.generate(
                input_ids=tokens, attention_mask=mask, past_key_values=cache, **settings
            )
            answers = iter(output[:, tokens.shape[1] :].tolist())
            for row in batch:
                group = [next(answers) for _ in range(num_generations)]
                made[row] = [_completion(answer, ends, tokenizer) for answer in group]
            on_batch(len(batch))
    return [made[row] for row in range(len(ids))]


@torch.inference_mode()
def log_probs(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[Message]],
    completions: Sequence[Sequence[Completion]],
    temperature: float,
    batch_tokens: int,
    on_batch: Callable[[int], Any] = lambda count: None,
) -> np.ndarray:
    """Return the log-probability of each completion under a policy.

    It is the sum over the completion's tokens, the end-of-turn token included where there is one.
    Of a truncated completion it is the probability to begin so.

    Parameters
    ----------
    model, tokenizer
        The policy, as :mod:`isodense.models.policy` loads it.
    prompts : sequence of list of message
        Conversations that end with the user's turn.
    completions : sequence of sequence of Completion
        As many of each prompt.
    temperature : float
        Above 0: what logits are divided by, as in sampling.
    batch_tokens : int
        Padded tokens per batch, prompts and completions.
    on_batch : callable
        Called with the number of prompts after each batch.

    Returns
    -------
    ndarray of shape (n_prompts, num_generations), float64
        In nats.
    """
    ids = prompt_tokens(tokenizer, prompts)
    copies = len(completions[0])
    costs = [
        copies * (len(asked) + max(made.tokens for made in group))
        for asked, group in zip(ids, completions, strict=True)
    ]
    found = np.empty((len(ids), copies))
    for batch in token_batches(costs, batch_tokens):
        asked = [ids[row] for row in batch]
        answers = [made.ids for row in batch for made in completions[row]]
        sums = _sums(model, asked, answers, tokenizer.pad_token_id, temperature)
        found[batch] = np.reshape(list(sums), (len(batch), copies))
        on_batch(len(batch))
    return found


def _sums(
    model: Any,
    asked: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    pad: int,
    temperature: float,
) -> Iterator[float]:
    """Yield the log-probability of each answer; as many in a row belong to each prompt."""
    prompt, mask, cache = _prefill(model, asked, pad, len(answers) // len(asked))
    answer, seen = (part.to(model.device) for part in _padded(answers, pad, left=False))
    tokens = torch.cat([prompt[:, -1:], answer[:, :-1]], dim=1)  # each token predicts the next
    mask = torch.cat([mask, seen[:, :-1]], dim=1)
    logits = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=_positions(mask)[:, -tokens.shape[1] :],
        past_key_values=cache,
    ).logits
    for row, ids in enumerate(answers):  # one by one: a whole batch of logits is large already
        scaled = logits[row, : len(ids)].float() / temperature
        yield -float(cross_entropy(scaled, answer[row, : len(ids)], reduction="sum"))


def _prefill(
    model: Any, ids: Sequence[Sequence[int]], pad: int, copies: int
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Run all of each prompt but its last token.

    Returns tokens, mask and the cache of what was run, all with `copies` rows of each prompt.
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
    """Return the settings of generation that draw from the policy itself."""
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
