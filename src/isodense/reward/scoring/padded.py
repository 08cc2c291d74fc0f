"""Features of answers in padded batches, for policies that cannot run in packs.

Each distinct prompt runs once, and its answers continue from its cached keys and values. Where
padding between prompt and answer would change the answer's states (recurrent blocks, windows of
attention that are shorter than a conversation, positions that no argument sets), each conversation
runs whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from isodense.models.inference.backbone import Backbone, has_window, is_recurrent

Pooling = Literal["last", "mean", "both"]
Rows = Iterator[tuple[list[int], np.ndarray]]  # rows and their features

LENGTH_MULTIPLE = 8
ROWS_MULTIPLE = 4


@dataclass(frozen=True)
class _Unit:
    """One distinct prompt and the rows of its answers."""

    prompt: tuple[int, ...]
    rows: list[int]

    @property
    def length(self) -> int:
        """Padded length of the prompt."""
        return _padded(len(self.prompt))


class Padded:
    """Features of answers in padded batches.

    Parameters
    ----------
    backbone : Backbone
        The policy up to the block that features are taken from.
    pooling : {"last", "mean", "both"}
        Over the answer's tokens.
    pad : int
        The token that fills a batch.
    batch_tokens : int
        Padded tokens per batch.
    """

    def __init__(self, backbone: Backbone, pooling: Pooling, pad: int, batch_tokens: int) -> None:
        self._backbone, self._pooling, self._pad = backbone, pooling, pad
        self._batch_tokens, self._device = batch_tokens, backbone.model.device

    def may_share(self, max_tokens: int) -> bool:
        """Return whether answers to one prompt may share it, for all that the config says.

        Parameters
        ----------
        max_tokens : int
            Tokens of the longest conversation.
        """
        config = self._backbone.model.config
        longest = max_tokens + 2 * LENGTH_MULTIPLE  # padding counts in a cache's window
        return not (is_recurrent(config) or has_window(config, longest))

    def shared(self, asked: list[list[int]], answered: list[list[int]]) -> Rows:
        """Yield rows and their features; each distinct prompt runs once.

        Parameters
        ----------
        asked, answered : list of list of int
            Tokens of prompts and answers.
        """
        for units in self._batches(asked, answered):
            yield from self._shared(units, answered)

    def whole(self, asked: list[list[int]], answered: list[list[int]]) -> Rows:
        """Do as :meth:`shared` does; each conversation runs whole."""
        for units in self._batches(asked, answered):
            yield from self._whole(units, answered)

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

    @torch.inference_mode()
    def _shared(self, units: list[_Unit], answered: list[list[int]]) -> Rows:
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
            pooled = self._pool(self._backbone.states.float(), mask[:, seen.shape[1] :])
            yield rows, pooled[: len(rows)].cpu().numpy()

    @torch.inference_mode()
    def _whole(self, units: list[_Unit], answered: list[list[int]]) -> Rows:
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
                self._backbone.model(input_ids=tokens, attention_mask=mask, use_cache=False)
                for place, (prompt, _) in enumerate(part):
                    mask[place, :prompt] = 0
                yield (
                    rows,
                    self._pool(self._backbone.states.float(), mask)[: len(rows)].cpu().numpy(),
                )

    def _extend(
        self, past: Any, seen: torch.Tensor | None, ids: Sequence[Sequence[int]]
    ) -> tuple[Any, torch.Tensor]:
        """Run tokens after those in the cache `past`; return the longer cache and its mask."""
        tokens, mask = self._padded_batch(ids)
        position = torch.arange(tokens.shape[1], device=self._device).expand_as(tokens)
        if seen is not None:
            position = position + seen.sum(dim=1, keepdim=True)
            mask = torch.cat([seen, mask], dim=1)
        output = self._backbone.model(
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
        tokens = torch.full(shape, self._pad)
        mask = torch.zeros(shape, dtype=torch.long)
        mask[len(ids) :, 0] = 1  # rows that only fill the batch attend to one token, not to none
        for row, values in enumerate(ids):
            tokens[row, : len(values)] = torch.tensor(values)
            mask[row, : len(values)] = 1
        return tokens.to(self._device), mask.to(self._device)


def _padded(value: int, multiple: int = LENGTH_MULTIPLE) -> int:
    return -(-value // multiple) * multiple
