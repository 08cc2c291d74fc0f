"""Features of the reward's kind ``head``: frozen hidden states of the policy.

A conversation's feature is the hidden state after block ``layer`` of the untrained policy, in the
policy's own chat format, at the answer's end-of-turn token (``last``), averaged over the answer's
tokens (``mean``), or both side by side. The reward is linear in it; differences between answers to
one prompt are log-odds of preference (Bradley and Terry 1952), and zero is the average answer of
the training pairs.

Answers to one prompt share its computation. Prompts and answers run in packs, end to end without
padding (:mod:`isodense.models.inference.packing`): each distinct prompt of a pack once, and its
answers as sequences that continue it. Policies whose attention cannot be packed run in padded
batches (:mod:`isodense.reward.scoring.padded`). A short trial at load time decides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isodense.models.inference import packing
from isodense.models.inference.backbone import FAILURES, Backbone, made_up
from isodense.models.inference.policy import (
    answer_tokens,
    context_length,
    load_tokenizer,
    prompt_tokens,
)
from isodense.pipeline.errors import ModelError
from isodense.prompts.conversations import Message
from isodense.reward.scoring.padded import Padded, Pooling, Rows

Tools = Sequence[list[dict[str, Any]] | None] | None  # of each prompt
Way = Callable[[list[list[int]], list[list[int]]], Rows]  # to compute features of tokens

TRIAL = (5, 11), (2, 3)  # tokens of the prompts and the answers of the trial
SAME = 1e-3  # largest difference of features that are the same, relative to the largest value
SAME_COSINE = 0.9999  # least cosine of a token's states, in packs and alone

log = logging.getLogger("isodense")


class Features:
    """Frozen features of answers.

    Attributes
    ----------
    dim : int
        Length of a feature.
    max_tokens : int
        Longest conversation; see :meth:`tokenize`.
    padded : str or None
        Why conversations run in padded batches; None if they run in packs.
    shares_prompts : bool
        Whether a prompt runs once for all its answers of a batch, rather than with each.
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
        load = partial(Backbone, policy, layer, "reward.layer", device)
        self._backbone = load()
        self._pooling, self._batch_tokens = pooling, batch_tokens
        context = context_length(policy)
        if context is not None and max_tokens > context:
            message = f"reward.max_tokens = {max_tokens} exceeds the policy's context, {context}"
            raise ModelError(message, f"set it to at most {context}")
        self.max_tokens = max_tokens
        self.dim = int(self._backbone.model.config.get_text_config().hidden_size) * (
            2 if pooling == "both" else 1
        )
        self._way, self.padded, self.shares_prompts = self._choose(policy, load)

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
        if not completions:
            return np.empty((0, self.dim), dtype=np.float32)
        asked, answered, _ = self.tokenize(prompts, completions, tools)
        return self.of_tokens(asked, answered, on_batch)

    def of_tokens(
        self, asked: list[list[int]], answered: list[list[int]], on_batch: Any = None
    ) -> np.ndarray:
        """Return the feature of each answer, given the tokens of :func:`tokenize`."""
        rows = np.empty((len(answered), self.dim), dtype=np.float32)
        for members, part in self._way(asked, answered):
            rows[members] = part
            if on_batch is not None:
                on_batch(len(members))
        return rows

    def _choose(
        self, policy: str | Path, load: Callable[[], Backbone]
    ) -> tuple[Way, str | None, bool]:
        """Return a way that gives what conversations alone do, why not packs, and if it shares.

        Raises
        ------
        ModelError
            If the model does not run.
        """
        alone = self._tried(self._in_batches().whole)
        if isinstance(alone, Exception):
            if not self._backbone.states.numel():
                message = f"{policy} does not run the block at reward.layer on text"
                raise ModelError(message, "set reward.layer to another one")
            message = f"{policy} computes no features: {type(alone).__name__}: {alone}"
            raise ModelError(message, "choose another policy, or another reward.kind")
        why_not = packing.not_packable(self._backbone.model, self.max_tokens)
        if why_not is None:
            why_not = packing.pack(self._backbone.model, self.max_tokens, SAME_COSINE)
            if why_not is None and _same(self._tried(self._in_packs), alone):
                return self._in_packs, None, True
            why_not = why_not or "in a trial, packs gave other features"
            self._backbone = load()  # as it was
        log.info("answers run in padded batches, not in packs: %s", why_not)
        batches = self._in_batches()
        if batches.may_share(self.max_tokens) and _same(self._tried(batches.shared), alone):
            return batches.shared, why_not, True
        return batches.whole, why_not, False

    def _tried(self, way: Way) -> np.ndarray | Exception:
        """Return features of a short trial, two answers to each of two prompts, or what failed."""
        config = self._backbone.model.config
        asked, answered = (made_up(config, lengths) for lengths in TRIAL)
        rows = np.empty((4, self.dim))
        try:
            for members, part in way(asked * 2, answered + answered[::-1]):
                rows[members] = part
        except FAILURES as error:
            return error
        return rows

    def _in_batches(self) -> Padded:
        pad = int(self._tokenizer.pad_token_id)
        return Padded(self._backbone, self._pooling, pad, self._batch_tokens)

    @torch.inference_mode()
    def _in_packs(self, asked: list[list[int]], answered: list[list[int]]) -> Rows:
        """Yield rows and their features: of each pack the prompts, each once, then the answers."""
        model = self._backbone.model
        first = packing.first_position(model)
        for rows in packs(asked, answered, self._batch_tokens):
            prompts = list(dict.fromkeys(tuple(asked[row]) for row in rows))
            number = {prompt: place for place, prompt in enumerate(prompts)}
            owners = [None] * len(prompts) + [number[tuple(asked[row])] for row in rows]
            answers = [answered[row] for row in rows]
            packing.run(model, [*prompts, *answers], first, self.max_tokens, owners)
            start, lengths = sum(map(len, prompts)), [len(answer) for answer in answers]
            states = self._backbone.states[0, start : start + sum(lengths)].float()
            pooled = [self._pool(part) for part in states.split(lengths)]
            yield rows, torch.stack(pooled).cpu().numpy()

    def _pool(self, states: torch.Tensor) -> torch.Tensor:
        """Return the feature of an answer, from the states of its tokens, (tokens, hidden)."""
        parts = []
        if self._pooling in ("last", "both"):
            parts.append(states[-1])
        if self._pooling in ("mean", "both"):
            parts.append(states.mean(dim=0))
        return torch.cat(parts)


def packs(
    asked: Sequence[Sequence[int]], answered: Sequence[Sequence[int]], batch_tokens: int
) -> Iterator[list[int]]:
    """Yield the rows of each pack, long prompts first and answers to one prompt together.

    Parameters
    ----------
    asked, answered : sequence of sequence of int
        Tokens of prompts and answers.
    batch_tokens : int
        Most tokens of a pack, in which a prompt counts once; a longer conversation is one by
        itself.

    Examples
    --------
    >>> list(packs([[7, 7], [7, 7], [7, 7], [8]], [[1], [2, 2], [3], [4]], batch_tokens=5))
    [[1, 0], [2, 3]]
    """
    pack: list[int] = []
    tokens = 0

    def place(row: int) -> tuple[int, tuple[int, ...], int]:
        return -len(asked[row]), tuple(asked[row]), -len(answered[row])

    for row in sorted(range(len(asked)), key=place):
        shared = bool(pack) and asked[row] == asked[pack[-1]]
        cost = len(answered[row]) + (0 if shared else len(asked[row]))
        if pack and tokens + cost > batch_tokens:
            yield pack
            pack, tokens, cost = [], 0, len(asked[row]) + len(answered[row])
        pack.append(row)
        tokens += cost
    if pack:
        yield pack


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


def _same(found: np.ndarray | Exception, expected: np.ndarray) -> bool:
    if isinstance(found, Exception):
        return False
    return bool(np.abs(found - expected).max() <= SAME * np.abs(expected).max())
