"""Reading the reward, and the features of its kind ``head``: frozen hidden states of the policy.

A conversation's feature is the hidden state after block ``layer`` of the untrained policy, in the
policy's own chat format, at the answer's end-of-turn token (``last``), averaged over the answer's
tokens (``mean``), or both side by side. The reward is linear in it; differences between answers to
one prompt are log-odds of preference (Bradley and Terry 1952), and zero is the average answer of
the training pairs.

Answers to one prompt share its computation: each distinct prompt runs once, and its answers
continue from its cached keys and values.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from safetensors.numpy import load_file

from isodense.models.inference.backbone import is_recurrent, load_backbone
from isodense.models.inference.policy import (
    answer_tokens,
    context_length,
    load_tokenizer,
    prompt_tokens,
)
from isodense.models.inference.reader import check_files
from isodense.pipeline.artifact import checked, content_sha256, read_manifest
from isodense.pipeline.errors import ArtifactError, ModelError
from isodense.prompts.conversations import Message

HEAD = "head.safetensors"
Pooling = Literal["last", "mean", "both"]
Tools = Sequence[list[dict[str, Any]] | None] | None  # of each prompt

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


class Features:
    """Frozen features of answers.

    Attributes
    ----------
    dim : int
        Length of a feature.
    max_tokens : int
        Longest conversation; see :meth:`tokenize`.
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
        self._states: torch.Tensor
        block.register_forward_hook(self._keep)

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

    @torch.inference_mode()
    def _forward(
        self, units: list[_Unit], answered: list[list[int]]
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield rows and their features: the prompts run once, then answers of each length."""
        if is_recurrent(self._model.config):
            yield from self._alone(units, answered)
            return
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

    def _alone(
        self, units: list[_Unit], answered: list[list[int]]
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield each row and its feature, one by one, of a model that padding would change."""
        for unit in units:
            for row in unit.rows:
                ids = torch.tensor([[*unit.prompt, *answered[row]]], device=self._device)
                self._model(input_ids=ids, use_cache=False)
                states = self._states[:, len(unit.prompt) :].float()
                mask = torch.ones(states.shape[:2], dtype=torch.long, device=self._device)
                yield [row], self._pool(states, mask).cpu().numpy()

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
            end = mask.sum(dim=1) - 1
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


class Reward(Protocol):
    """What scores answers, of whatever kind."""

    def score(self, rows: Sequence[dict[str, Any]], completions: Sequence[str]) -> np.ndarray:
        """Return the reward of each answer.

        Parameters
        ----------
        rows : sequence of dict
            Rows of prompts or examples, one for each answer: ``prompt`` and the data's columns.
        completions : sequence of str
            The answers.

        Returns
        -------
        ndarray of shape (n,), float32
        """
        ...


class HeadReward:
    """A Bradley–Terry head on :class:`Features`, in log-odds.

    Parameters
    ----------
    features : Features
    weight : ndarray of shape (dim,), float32
    bias : float
    """

    def __init__(self, features: Features, weight: np.ndarray, bias: float) -> None:
        self.features, self.weight, self.bias = features, weight, bias

    def score(self, rows: Sequence[dict[str, Any]], completions: Sequence[str]) -> np.ndarray:
        """Return the reward of each answer; see :class:`Reward`."""
        prompts = [row["prompt"] for row in rows]
        tools = [row.get("tools") for row in rows]
        rewards: np.ndarray = self.features(prompts, completions, tools=tools) @ self.weight
        return rewards + np.float32(self.bias)


def load_reward(
    folder: str | Path,
    policy: str | Path,
    device: str = "cpu",
) -> Reward:
    """Load ``models/reward``, of the kind that its manifest names.

    Parameters
    ----------
    folder : str or Path
        The reward's artifact.
    policy : str or Path
        The untrained policy's artifact, ``models/policy``: the features of a head are its.
    device : str
        A torch device.

    Raises
    ------
    ArtifactError
        If the artifact is incomplete, damaged, or was fitted on another policy.
    ModelError
        If a reward model cannot be loaded.
    TrainingError
        If a reward function cannot be found, or has changed since it was checked.
    """
    manifest = read_manifest(folder, "reward")
    kind = manifest.get("reward_kind")
    if kind == "head":
        return _load_head(Path(folder), Path(policy), manifest, device)
    if kind in ("full", "model"):
        from isodense.reward.scoring.classifier import MODEL, Classifier

        params = manifest["params"]
        path = Path(folder) / MODEL
        check_files(folder, manifest, MODEL)
        return Classifier(path, params["max_tokens"], params["batch_tokens"], device)
    if kind == "function":
        from isodense.reward.scoring.functions import load_functions

        return load_functions(manifest, policy)
    message = f"{folder} holds a reward of kind {kind!r}, which this code does not know"
    raise ArtifactError(message, "run `dvc repro reward`")


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


def _load_head(folder: Path, policy: Path, manifest: dict[str, Any], device: str) -> HeadReward:
    found = content_sha256(read_manifest(policy, "models"))
    if manifest["inputs"]["policy"] != found:
        message = f"{folder} was fitted on another policy than {policy}"
        raise ArtifactError(message, "run `dvc repro reward`")
    params = manifest["params"]
    features = Features(
        policy,
        params["layer"],
        params["pooling"],
        params["max_tokens"],
        params["batch_tokens"],
        device,
    )
    head = load_file(checked(folder, manifest, HEAD))
    if head["weight"].shape != (features.dim,) or not np.isfinite(head["weight"]).all():
        message = f"{folder / HEAD} does not fit the policy's features ({features.dim})"
        raise ArtifactError(message, "run `dvc repro reward`")
    return HeadReward(features, head["weight"], float(head["bias"][0]))


def _padded(value: int, multiple: int = LENGTH_MULTIPLE) -> int:
    return -(-value // multiple) * multiple
