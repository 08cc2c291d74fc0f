"""Kinds ``model`` and ``full``: a sequence classifier with one output, in its own chat format.

A conversation, answer included, is rendered by the model's own chat template, as TRL's
``RewardTrainer`` does, padded on the right, and scored at the position that the model itself pools.
One that is too long loses whole turns from its start, after any system message, then the start of
the question, then the end of the answer: what is left is still a conversation of the template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from transformers import AutoModelForSequenceClassification

from isodense.models.inference.load import (
    UNREADABLE,
    other_head,
    read_config,
    read_model,
    read_tokenizer,
)
from isodense.models.inference.policy import token_batches
from isodense.pipeline.errors import ModelError
from isodense.prompts.conversations import Message

MODEL = "model"  # folder inside the artifact


class Classifier:
    """A reward model that scores conversations.

    Parameters
    ----------
    folder : Path
        Safetensors, configuration and tokenizer.
    max_tokens : int
        Longest conversation.
    batch_tokens : int
        Padded tokens per batch.
    device : str
        A torch device. On a CPU the model computes in float32, on a GPU as it was stored.

    Raises
    ------
    ModelError
        If the model has not exactly one output, or cannot tell turns or padding.
    """

    def __init__(self, folder: Path, max_tokens: int, batch_tokens: int, device: str) -> None:
        self.tokenizer = load_chat_tokenizer(folder)
        self.model = load_model(folder, device)
        self.pad = pad_token(self.model, folder)
        require_context(self.model.config, max_tokens)
        self._limit, self._batch_tokens, self._device = max_tokens, batch_tokens, device

    def tokenize(
        self, prompts: Sequence[list[Message]], completions: Sequence[str]
    ) -> tuple[list[list[int]], list[bool]]:
        """Return the tokens of each conversation; see :func:`conversation_tokens`."""
        return conversation_tokens(self.tokenizer, prompts, completions, self._limit)

    def score(self, rows: Sequence[dict[str, Any]], completions: Sequence[str]) -> np.ndarray:
        """Return the reward of each answer; see :class:`isodense.reward.scoring.load.Reward`."""
        return self.of_tokens(self.tokenize([row["prompt"] for row in rows], completions)[0])

    @torch.inference_mode()
    def of_tokens(
        self, ids: Sequence[Sequence[int]], on_batch: Callable[[int], Any] = lambda count: None
    ) -> np.ndarray:
        """Return the reward of tokenised conversations: ndarray of shape (n,), float32."""
        scores = np.empty(len(ids), dtype=np.float32)
        for rows in token_batches([len(row) for row in ids], self._batch_tokens):
            length = len(ids[rows[0]])
            tokens = torch.full((len(rows), length), self.pad)
            mask = torch.zeros_like(tokens)
            for place, row in enumerate(rows):
                tokens[place, : len(ids[row])] = torch.tensor(ids[row])
                mask[place, : len(ids[row])] = 1
            output = self.model(
                input_ids=tokens.to(self._device), attention_mask=mask.to(self._device)
            )
            scores[rows] = output.logits[:, 0].float().cpu().numpy()
            on_batch(len(rows))
        return scores


def load_chat_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a reward model.

    Raises
    ------
    ModelError
        If there is none, or none with a chat template.
    """
    try:
        tokenizer = read_tokenizer(folder)
    except UNREADABLE as error:
        raise ModelError(f"the reward model has no tokenizer: {error}") from None
    if tokenizer.chat_template is None:
        message = "the reward model's tokenizer has no chat template to render conversations with"
        hint = "save the one that it was trained with as chat_template.jinja in its folder"
        raise ModelError(message, hint)
    return tokenizer


def load_model(folder: Path, device: str) -> Any:
    """Load a sequence classifier with one output, in evaluation mode; never unpickling.

    Raises
    ------
    ModelError
        If it is another model, or has other outputs.
    """
    try:
        outputs = read_config(folder).num_labels
        if outputs != 1:
            message = f"the reward model has {outputs} outputs, not one"
            raise ModelError(message, "choose a sequence classifier with num_labels 1")
        model, missing = read_model(
            AutoModelForSequenceClassification,
            folder,
            other_head(folder),
            dtype=torch.float32 if device == "cpu" else "auto",
        )
    except UNREADABLE as error:
        raise ModelError(f"the reward model cannot be loaded: {error}") from None
    if missing:
        message = f"the reward model lacks {len(missing)} weights"
        first = f"first {missing[0]}"
        hint = "choose a sequence classifier: they would be made up at random"
        raise ModelError(f"{message}, {first}", hint)
    return model.eval().to(device)


def pad_token(model: Any, folder: Path) -> int:
    """Return the token that the model itself skips when it looks for a conversation's end.

    Raises
    ------
    ModelError
        If it has none: then only the last position of a batch is ever scored, padding or not.
    """
    pad = model.config.get_text_config().pad_token_id
    if not isinstance(pad, int):
        message = "the reward model's config.json names no pad_token_id to batch answers with"
        hint = "set it to the tokenizer's pad token, one that no conversation ends with"
        raise ModelError(message, hint)
    return pad


def require_context(config: Any, max_tokens: int) -> None:
    """Raise unless the model reads that many tokens.

    Raises
    ------
    ModelError
        Naming the most it reads.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and max_tokens > context:
        message = f"reward.max_tokens = {max_tokens} exceeds the reward model's context, {context}"
        raise ModelError(message, f"set it to at most {context}")


def conversation_tokens(
    tokenizer: Any, prompts: Sequence[list[Message]], completions: Sequence[str], limit: int
) -> tuple[list[list[int]], list[bool]]:
    """Return the tokens of each conversation, answer included, and which ones were cut.

    Raises
    ------
    ModelError
        If the chat template refuses a conversation, or takes more than `limit` tokens by itself.
    """
    whole = [_answered(*pair) for pair in zip(prompts, completions, strict=True)]
    ids = _rendered(tokenizer, whole) if whole else []
    cut = [len(row) > limit for row in ids]
    for row, too_long in enumerate(cut):
        if too_long:
            ids[row] = _fitted(tokenizer, prompts[row], completions[row], limit)
    return ids, cut


def _answered(prompt: list[Message], answer: str) -> list[Message]:
    return [*prompt, {"role": "assistant", "content": answer}]


def _rendered(tokenizer: Any, conversations: list[list[Message]]) -> list[list[int]]:
    try:
        made = tokenizer.apply_chat_template(conversations, tokenize=True, return_dict=True)
    except TemplateError as error:
        message = f"the reward model's chat template refuses a conversation: {error}"
        raise ModelError(message) from None
    ids: list[list[int]] = made["input_ids"]
    return ids


def _fitted(tokenizer: Any, prompt: list[Message], answer: str, limit: int) -> list[int]:
    def tokens(turns: list[Message], text: str) -> list[int]:
        return _rendered(tokenizer, [_answered(turns, text)])[0]

    prompt = list(prompt)
    first = int(prompt[0]["role"] == "system")
    while len(tokens(prompt, answer)) > limit and len(prompt) > first + 1:
        del prompt[first]
        while prompt[first]["role"] != "user":
            del prompt[first]
    question = prompt[-1]["content"]

    def asking(kept: int) -> list[Message]:
        return [*prompt[:-1], {"role": "user", "content": question[len(question) - kept :]}]

    kept = _most(lambda size: len(tokens(asking(size), answer)) <= limit, len(question))
    if kept is not None:
        return tokens(asking(kept), answer)
    left = _most(lambda size: len(tokens(asking(0), answer[:size])) <= limit, len(answer))
    if left is None:
        message = f"the reward model's chat template alone takes more than {limit} tokens"
        raise ModelError(message, "raise reward.max_tokens")
    return tokens(asking(0), answer[:left])


def _most(fits: Callable[[int], bool], size: int) -> int | None:
    """Return the largest number up to `size` that fits, by bisection, or None if 0 does not."""
    if not fits(0):
        return None
    low, high = 0, size
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
