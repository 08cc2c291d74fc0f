"""Completions of a policy for many prompts, and the log-probabilities of completions.

Prompts run in batches of similar length. A prompt runs once, whatever the number of completions,
which continue from copies of the prompt's key-value cache. Models whose blocks carry a state along
(linear attention, state spaces) have no such cache, and padding on the left may change their state:
for these, and where a short trial fails, prompts of one length run together, once for each
completion, and conversations run whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

from isodense.models.inference.backbone import FAILURES, is_recurrent, made_up
from isodense.models.inference.policy import prompt_tokens, token_batches
from isodense.pipeline.errors import ModelError
from isodense.prompts.conversations import Message

Tools = Sequence[list[dict[str, Any]] | None] | None

STEPS = 3  # tokens that a trial generates
TRIED: dict[tuple[type, str], bool] = {}  # outcome of the trial, by class and config of the model
OTHER = "choose another policy"
SAME = 1e-3  # largest difference of log-probabilities that are the same


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
    batches = batches_of(
        model, tokenizer, prompts, num_generations, max_tokens, batch_tokens, tools
    )
    completed: dict[int, list[Completion]] = {}
    for number, batch in enumerate(batches):
        groups = complete_batch(
            model,
            tokenizer,
            [prompts[row] for row in batch],
            num_generations,
            max_tokens,
            temperature,
            seed + number,
            None if tools is None else [tools[row] for row in batch],
        )
        completed |= zip(batch, groups, strict=True)
        on_batch(len(batch))
    return [completed[row] for row in range(len(prompts))]


def batches_of(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[Message]],
    num_generations: int,
    max_tokens: int,
    batch_tokens: int,
    tools: Tools = None,
) -> list[list[int]]:
    """Return the numbers of the prompts that are answered together, a list for each batch.

    Parameters are those of :func:`complete`.
    """
    ids = prompt_tokens(tokenizer, prompts, tools)
    costs = [num_generations * (len(row) + max_tokens) for row in ids]
    copied = copies_caches(model, tokenizer.pad_token_id)
    return list(token_batches(costs, batch_tokens, None if copied else [len(row) for row in ids]))


@torch.inference_mode()
def complete_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[Message]],
    num_generations: int,
    max_tokens: int,
    temperature: float,
    seed: int,
    tools: Tools = None,
) -> list[list[Completion]]:
    """Return the completions of prompts that are answered together.

    Parameters are those of :func:`complete`; `seed` is the batch's.
    """
    ids = prompt_tokens(tokenizer, prompts, tools)
    ends = _end_tokens(model, tokenizer)
    settings = _settings(temperature, max_tokens)
    settings |= {"eos_token_id": sorted(ends), "pad_token_id": tokenizer.pad_token_id}
    copied = copies_caches(model, tokenizer.pad_token_id)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), _plain_generation(model):
        torch.manual_seed(seed)
        answers = _generate(model, ids, num_generations, settings, copied)
        return [
            [_completion(next(answers), ends, tokenizer) for _ in range(num_generations)]
            for _ in ids
        ]


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
    model: Any,
    ids: Sequence[Sequence[int]],
    copies: int,
    settings: dict[str, Any],
    copied: bool,
) -> Iterator[list[int]]:
    """Return the token ids of the answers to a batch, `copies` in a row for each prompt."""
    if copied:
        tokens, mask, cache = _prefill(model, ids, settings["pad_token_id"], copies)
        settings = {**settings, "past_key_values": cache}
    else:
        tokens = torch.tensor(ids, device=model.device).repeat_interleave(copies, 0)
        mask = torch.ones_like(tokens)
    output = model.generate(input_ids=tokens, attention_mask=mask, **settings)
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
    sums_of = _sums if copies_caches(model, tokenizer.pad_token_id) else _sums_whole
    for batch in token_batches(costs, batch_tokens):
        batch_ids = [ids[row] for row in batch]
        answers = [completion.ids for row in batch for completion in completions[row]]
        sums = sums_of(model, batch_ids, answers, tokenizer.pad_token_id, temperature)
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
        yield _log_prob(logits[row], ids, temperature)


def _sums_whole(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    pad: int,
    temperature: float,
) -> Iterator[float]:
    """Do as :func:`_sums` does, each conversation whole and padded on the right."""
    copies = len(answers) // len(prompts)
    owners = [prompt for prompt in prompts for _ in range(copies)]
    whole = [[*prompt, *ids] for prompt, ids in zip(owners, answers, strict=True)]
    tokens, mask = (part.to(model.device) for part in _padded(whole, pad, left=False))
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    for row, ids in enumerate(answers):
        yield _log_prob(logits[row, len(owners[row]) - 1 :], ids, temperature)


def _log_prob(logits: torch.Tensor, ids: Sequence[int], temperature: float) -> float:
    """Return the log-probability of tokens that the first of these logits predict."""
    scaled = logits[: len(ids)].float() / temperature
    wanted = torch.tensor(ids, device=logits.device)
    return -float(cross_entropy(scaled, wanted, reduction="sum"))


@torch.inference_mode()
def copies_caches(model: Any, pad: int) -> bool:
    """Return whether completions may continue from copies of their prompt's cache, by trial.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The policy.
    pad : int
        The token that fills a batch.

    Raises
    ------
    ModelError
        If the model does not run.
    """
    known = (type(model), model.config.to_json_string())
    if known not in TRIED:
        TRIED[known] = _copies_caches(model, pad)
    return TRIED[known]


def _copies_caches(model: Any, pad: int) -> bool:
    prompts, answers = made_up(model.config, (2, 5)), made_up(model.config, (2, 1, 1, 1))
    try:
        whole = list(_sums_whole(model, prompts, answers, pad, 1.0))
        alone = is_recurrent(model.config) or _remembers_positions(model)
        if not alone and _copied_alike(model, prompts, answers, pad, whole):
            return True
        likeliest = _generates(model, prompts[:1], pad, copied=False)
    except FAILURES as error:
        message = f"{_name(model)} does not generate: {type(error).__name__}: {error}"
        raise ModelError(message, OTHER) from None
    if not likeliest:
        message = f"{_name(model)} generates other tokens than its own logits make likeliest"
        raise ModelError(message, f"transformers {transformers.__version__} is at fault; {OTHER}")
    return False


def _remembers_positions(model: Any) -> bool:
    """Return whether a model takes positions from its last prefill, as those that see do."""
    return any(hasattr(module, "rope_deltas") for module in model.modules())


def _copied_alike(
    model: Any, prompts: list[list[int]], answers: list[list[int]], pad: int, whole: list[float]
) -> bool:
    """Return whether copies of caches give the log-probabilities `whole`, and generate."""
    try:
        copied = list(_sums(model, prompts, answers, pad, 1.0))
        near = np.allclose(copied, whole, rtol=SAME, atol=SAME)
        return bool(near and _generates(model, prompts, pad, copied=True))
    except FAILURES:
        return False


def _generates(model: Any, prompts: Sequence[Sequence[int]], pad: int, copied: bool) -> bool:
    """Return whether greedy decoding takes the likeliest tokens of a whole forward pass."""
    settings = {**_settings(0.0, STEPS), "pad_token_id": pad}
    with _plain_generation(model):
        made = list(_generate(model, prompts, 2, settings, copied))
    for prompt, answer, other in zip(prompts, made[::2], made[1::2], strict=True):
        ids = torch.tensor([[*prompt, *answer]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, -STEPS - 1 : -1].float()
        chosen = logits.gather(1, ids[0, -STEPS:, None])[:, 0]
        if bool((logits.amax(dim=1) - chosen > SAME * logits.abs().amax()).any()):
            return False
        if answer != other:
            return False
    return True


def _name(model: Any) -> str:
    return f"{type(model).__name__} of {model.name_or_path}"


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
