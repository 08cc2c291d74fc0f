"""Features of the reward's kind ``head``: frozen hidden states of the policy.

A conversation's feature is the hidden state after block ``layer`` of the untrained policy, in the
policy's own chat format, at the answer's end-of-turn token (``last``), averaged over the answer's
tokens (``mean``), or both side by side. The reward is linear in it; differences between answers to
one prompt are log-odds of preference (Bradley and Terry 1952), and zero is the average answer of
the training pairs.

Answers to one prompt share its computation: each distinct prompt runs once, and its answers
continue from its cached keys and values. Where padding between prompt and answer would change the
answer's states (recurrent blocks, windows of attention that are shorter than a conversation,
positions that no argument sets), each conversation runs whole; a short trial at load time decides.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from isodense.models.inference.backbone import (
    FAILURES,
    has_window,
    is_recurrent,
    load_backbone,
    made_up,
)
from isodense.models.inference.policy import (
    answer_tokens,
    context_length,
    load_tokenizer,
    prompt_tokens,
)
from isodense.pipeline.errors import ModelError
from isodense.prompts.conversations import Message

Pooling = Literal["last", "mean", "both"]
Tools = Sequence[list[dict[str, Any]] | None] | None  # of each prompt

LENGTH_MULTIPLE = 8
ROWS_MULTIPLE = 4

TRIAL = (5, 11), (2, 3)  # tokens of the prompts and the answers of the trial
SAME = 1e-3  # largest difference of features that are the same, relative to the largest value


@dataclass(frozen=True)
class _Unit:
    """One distinct prompt and the rows of its answers."""

    prompt: tuple[int, ...]
    rows: list[int]

    @property
    def length(self) -> int:
        """Padded length of the prompt."""
        return _padded(len(self.prompt))


class Features:
    """Frozen features of answers.

    Attributes
    ----------
    dim : int
        Length of a feature.
    max_tokens : int
        Longest conversation; see :meth:`tokenize`.
    shares_prompts : bool
        Whether a prompt runs once for all its answers, rather than with each.
    """

    def __init__(
        self,
        policy: str | Path,
        layer: int,
        pooling: Pooling,
        max_tokens: int,
        batch_tokens: int,
        device: str = "cpu",
    ) -> None:
        self._tokenizer = load_tokenizer(policy)
        self._model, block = load_backbone(policy, layer, "reward.layer", device)
        self._pooling, self._batch_tokens, self._device = pooling, batch_tokens, device
        context = context_length(policy)
        if context is not None and max_tokens > context:
            message = f"reward.max_tokens = {max_tokens} exceeds the policy's context, {context}"
            raise ModelError(message, f"set it to at most {context}")
        self.max_tokens = max_tokens
        self.dim = int(self._model.config.get_text_config().hidden_size) * (
            2 if pooling == "both" else 1
        )
        self._states = torch.empty(0)
        block.register_forward_hook(self._keep)
        self.shares_prompts = self._continues(policy)

    def tokenize(
        self, prompts: Sequence[list[Message]], completions: Sequence[str], tools: Tools = None
    ) -> tuple[list[list[int]], list[list[int]], list[bool]]:
        """Return the tokens of prompts and answers, and which were cut: see :func:`tokenize`."""
        return tokenize(self._tokenizer, prompts, completions, self.max_tokens, tools)

    def __call__(
        self,
        prompts: Sequence[list[Message]],
        completions: Sequence[str],
        on_batch: Any = None,
        tools: Tools = None,
    ) -> np.ndarray:
        """Return the feature of each answer.

        Parameters
        ----------
        prompts : sequence of list of message
            Conversations that end with the user's turn.
        completions : sequence of str
            One answer per prompt.
        on_batch : callable, optional
            Called with the number of answers after each batch.
        tools : sequence of list of dict, optional
            See :func:`isodense.models.inference.policy.prompt_tokens`.

        Returns
        -------
        ndarray of shape (n, dim), float32
        """
        if not len(completions):
            return np.empty((0, self.dim), dtype=np.float32)
        asked, answered, _ = self.tokenize(prompts, completions, tools)
        return self.of_tokens(asked, answered, on_batch)

    def of_tokens(
        self, asked: list[list[int]], answered: list[list[int]], on_batch: Any = None
    ) -> np.ndarray:
        """Return the feature of each answer, given the tokens of :func:`tokenize`."""
        rows = np.empty((len(answered), self.dim), dtype=np.float32)
        for units in self._batches(asked, answered):
            for members, part in self._forward(units, answered):
                rows[members] = part
                if on_batch is not None:
                    on_batch(len(members))
        return rows

    def _batches(self, asked: list[list[int]], answered: list[list[int]]) -> Iterator[list[_Unit]]:
        """Yield batches of distinct prompts of one padded length, long ones first."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for row, prompt in enumerate(asked):
            rows.setdefault(tuple(prompt), []).append(row)
        units = sorted((_Unit(*item) for item in rows.items()), key=lambda unit: -unit.length)
        batch: list[_Unit] = []
        tokens = 0
        for unit in units:
            cost = unit.length + sum(_padded(len(answered[row])) for row in unit.rows)
            if batch and (tokens + cost > self._batch_tokens or unit.length != batch[0].length):
                yield batch
                batch, tokens = [], 0
            batch.append(unit)
            tokens += cost
        yield batch

    def _forward(
        self, units: list[_Unit], answered: list[list[int]]
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield rows and their features."""
        return (self._shared if self.shares_prompts else self._whole)(units, answered)

    @torch.inference_mode()
    def _continues(self, policy: str | Path) -> bool:
        """Return whether answers may continue from their prompt's cache, by trial.

        Raises
        ------
        ModelError
            If the model does not run.
        """
        config = self._model.config
        prompts, answered = made_up(config, TRIAL[0]), made_up(config, TRIAL[1])
        units = [_Unit(tuple(prompt), [row]) for row, prompt in enumerate(prompts)]
        try:
            whole = np.concatenate([part for _, part in self._whole(units, answered)])
        except FAILURES as error:
            if not self._states.numel():
                message = f"{policy} does not run the block at reward.layer on text"
                raise ModelError(message, "set reward.layer to another one") from None
            message = f"{policy} computes no features: {type(error).__name__}: {error}"
            raise ModelError(message, "choose another policy, or another reward.kind") from None
        longest = self.max_tokens + 2 * LENGTH_MULTIPLE  # padding counts in a cache's window
        if is_recurrent(config) or has_window(config, longest):
            return False
        try:
            shared = np.concatenate([part for _, part in self._shared(units, answered)])
        except FAILURES:
            return False
        return bool(np.abs(shared - whole).max() <= SAME * np.abs(whole).max())

    @torch.inference_mode()
    def _shared(
        self, units: list[_Unit], answered: list[list[int]]
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield rows and their features: the prompts run once, then answers of each length."""
        past, seen = self._extend(None, None, [unit.prompt for unit in units])
        lengths: dict[int, list[tuple[int, int]]] = {}
        for number, unit in enumerate(units):
            for row in unit.rows:
                lengths.setdefault(_padded(len(answered[row])), []).append((number, row))
        for members in lengths.values():
            rows = [row for _, row in members]
            owner = torch.tensor([number for number, _ in members], device=self._device)
            owner = torch.nn.functional.pad(owner, (0, -len(owner) % ROWS_MULTIPLE))
            branch = copy.deepcopy(past)
            branch.batch_select_indices(owner)
            _, mask = self._extend(branch, seen[owner], [answered[row] for row in rows])
            pooled = self._pool(self._states.float(), mask[:, seen.shape[1] :])
            yield rows, pooled[: len(rows)].cpu().numpy()

    @torch.inference_mode()
    def _whole(
        self, units: list[_Unit], answered: list[list[int]]
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield rows and their features: conversations of one padded length run together."""
        lengths: dict[int, list[tuple[int, int]]] = {}
        ids: dict[int, list[int]] = {}
        for unit in units:
            for row in unit.rows:
                ids[row] = [*unit.prompt, *answered[row]]
                lengths.setdefault(_padded(len(ids[row])), []).append((len(unit.prompt), row))
        for length, members in lengths.items():
            size = max(1, self._batch_tokens // length)
            for start in range(0, len(members), size):
                part = members[start : start + size]
                rows = [row for _, row in part]
                tokens, mask = self._padded_batch([ids[row] for row in rows])
                self._model(input_ids=tokens, attention_mask=mask, use_cache=False)
                for place, (prompt, _) in enumerate(part):
                    mask[place, :prompt] = 0
                yield rows, self._pool(self._states.float(), mask)[: len(rows)].cpu().numpy()

    def _extend(
        self, past: Any, seen: torch.Tensor | None, ids: Sequence[Sequence[int]]
    ) -> tuple[Any, torch.Tensor]:
        """Run tokens after those in the cache `past`; return the longer cache and its mask."""
        tokens, mask = self._padded_batch(ids)
        position = torch.arange(tokens.shape[1], device=self._device).expand_as(tokens)
        if seen is not None:
            position = position + seen.sum(dim=1, keepdim=True)
            mask = torch.cat([seen, mask], dim=1)
        output = self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=position,
            past_key_values=past,
            use_cache=True,
        )
        return output.past_key_values, mask

    def _pool(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        parts = []
        if self._pooling in ("last", "both"):
            end = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
            parts.append(states[torch.arange(len(states), device=states.device), end])
        if self._pooling in ("mean", "both"):
            weight = mask.unsqueeze(-1).to(states.dtype)
            parts.append((states * weight).sum(dim=1) / weight.sum(dim=1))
        return torch.cat(parts, dim=1)

    def _padded_batch(self, ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pad on the right, to shapes for which a row's bits do not depend on the batch."""
        length = _padded(max(map(len, ids)))
        shape = (_padded(len(ids), ROWS_MULTIPLE), length)
        tokens = torch.full(shape, int(self._tokenizer.pad_token_id))
        mask = torch.zeros(shape, dtype=torch.long)
        mask[len(ids) :, 0] = 1  # rows that only fill the batch attend to one token, not to none
        for row, values in enumerate(ids):
            tokens[row, : len(values)] = torch.tensor(values)
            mask[row, : len(values)] = 1
        return tokens.to(self._device), mask.to(self._device)

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._states = output[0] if isinstance(output, tuple) else output


def tokenize(
    tokenizer: Any,
    prompts: Sequence[list[Message]],
    completions: Sequence[str],
    limit: int,
    tools: Tools = None,
) -> tuple[list[list[int]], list[list[int]], list[bool]]:
    """Return the tokens of prompts and answers, and which conversations were cut.

    A conversation of more than `limit` tokens loses the start of its prompt; an answer that is too
    long by itself loses its end as well.
    """
    asked = prompt_tokens(tokenizer, prompts, tools)
    answered = [row[: limit - 1] for row in answer_tokens(tokenizer, completions)]
    room = [limit - len(answer) for answer in answered]
    cut = [len(prompt) > left for prompt, left in zip(asked, room, strict=True)]
    kept = [prompt[-left:] for prompt, left in zip(asked, room, strict=True)]
    return kept, answered, cut


def _padded(value: int, multiple: int = LENGTH_MULTIPLE) -> int:
    return -(-value // multiple) * multiple
