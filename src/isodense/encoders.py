"""Text encoders: unit vectors whose bytes depend on nothing but the text and the model.

Two kinds of model folder are understood. A sentence-transformers folder (``modules.json``) is
pooled as it says itself. Any other folder is a decoder language model: its hidden states are
averaged over the prompt's tokens without the first, which is an attention sink with a huge norm.

On a CPU the last bits of a row change with the shape of its batch, because matrix products choose
their kernels by shape. Lengths are therefore padded, under the mask, to a multiple of 16, and a
batch to a multiple of 4 rows: with these shapes a row's bytes were the same in every batch and at
every thread count tried (``tests/test_encoders.py`` repeats the trial).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from isodense.base import resolve_device
from isodense.errors import ModelError

Pooling = Literal["auto", "mean", "cls", "last"]

LENGTH_MULTIPLE = 16
ROWS_MULTIPLE = 4


class Encoder:
    """A frozen encoder.

    Attributes
    ----------
    dim : int
        Length of a vector.
    max_tokens : int
        Longer texts are cut at their start: what is asked usually stands at the end.
    device : str
        Where it runs.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        block: Any,
        pooling: str,
        max_tokens: int,
        batch_tokens: int,
        device: str,
    ) -> None:
        self._model, self._tokenizer, self._pooling = model.eval().to(device), tokenizer, pooling
        self._batch_tokens, self.device = batch_tokens, device
        self.max_tokens, self.dim = max_tokens, int(model.config.hidden_size)
        self._states: torch.Tensor | None = None
        if block is not None:
            block.register_forward_hook(self._keep)

    def tokenize(self, texts: list[str]) -> tuple[list[list[int]], int]:
        """Return the token ids of each text and how many texts were cut."""
        full = self._tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        cut = sum(len(ids) > self.max_tokens for ids in full)
        if not cut:
            return full, 0
        ids = self._tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"]
        return ids, cut

    def encode(self, texts: list[str], on_batch: Any = None) -> np.ndarray:
        """Return one unit vector per text.

        Parameters
        ----------
        texts : list of str
            Any number, in any order.
        on_batch : callable, optional
            Called with the number of texts and tokens after each batch.

        Returns
        -------
        ndarray of shape (n_texts, dim), float32
            Rows have unit L2 norm.

        Raises
        ------
        ModelError
            If a row is not finite or is zero, naming the text's number.
        """
        ids = self.tokenize(texts)[0] if texts else []
        rows = np.empty((len(texts), self.dim), dtype=np.float32)
        for batch in self._batches(ids):
            rows[batch] = self._forward([ids[index] for index in batch])
            if on_batch is not None:
                on_batch(len(batch), sum(len(ids[index]) for index in batch))
        return _normalised(rows)

    def _batches(self, ids: list[list[int]]) -> Iterator[list[int]]:
        """Yield row numbers of batches of one padded length, long ones first."""
        lengths = np.array([_padded(len(row), LENGTH_MULTIPLE) for row in ids], dtype=np.int64)
        for length in np.unique(lengths)[::-1]:
            members = np.flatnonzero(lengths == length)
            size = max(ROWS_MULTIPLE, self._batch_tokens // int(length))
            for start in range(0, len(members), size):
                yield members[start : start + size].tolist()

    @torch.inference_mode()
    def _forward(self, ids: list[list[int]]) -> np.ndarray:
        length = _padded(max(map(len, ids)), LENGTH_MULTIPLE)
        count = _padded(len(ids), ROWS_MULTIPLE)
        tokens = torch.full((count, length), int(self._tokenizer.pad_token_id or 0))
        mask = torch.zeros((count, length), dtype=torch.long)
        for row, values in enumerate(ids):
            tokens[row, : len(values)] = torch.tensor(values)
            mask[row, : len(values)] = 1
        mask[len(ids) :, 0] = 1  # rows that only fill the batch attend to one token, not to none
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        states = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state
        if self._states is not None:  # of the last block, before the model's final norm
            states = self._states
        return self._pool(states.float(), mask)[: len(ids)].cpu().numpy()

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._states = output[0] if isinstance(output, tuple) else output

    def _pool(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._pooling == "cls":
            return states[:, 0]
        if self._pooling == "last":
            last = mask.sum(dim=1) - 1
            return states[torch.arange(len(states), device=states.device), last]
        if self._pooling == "mean_without_first":
            mask = mask.clone()
            mask[:, 0] = (mask.sum(dim=1) == 1).long()  # a one-token text keeps its token
        weight = mask.unsqueeze(-1).to(states.dtype)
        return (states * weight).sum(dim=1) / weight.sum(dim=1)


def load_encoder(
    folder: str | Path,
    pooling: Pooling = "auto",
    layer: int | None = None,
    max_tokens: int = 256,
    batch_tokens: int = 4096,
    device: str = "auto",
) -> Encoder:
    """Load an encoder from a folder of safetensors.

    Parameters
    ----------
    folder : str or Path
        A sentence-transformers or ``transformers`` folder.
    pooling : {"auto", "mean", "cls", "last"}
        ``auto`` follows the folder's own pooling; for a decoder, the mean without the first token.
    layer : int, optional
        Use the hidden states after this many blocks, before any final norm; deeper blocks are not
        loaded.
    max_tokens : int
        Longer texts are cut at their start.
    batch_tokens : int
        Padded tokens per batch; changes speed and memory, not the result.
    device : {"auto", "cpu", "cuda"}

    Raises
    ------
    ModelError
        If the folder is not a whole model, has fewer layers or a shorter context, or asks for a
        pooling that is not known here.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no model (no config.json)", "run `dvc repro models`")
    chosen = _folder_pooling(folder) if pooling == "auto" else pooling
    model, tokenizer, block = _load(folder, layer)
    limit = min(model.config.max_position_embeddings, tokenizer.model_max_length)
    limit -= limit % LENGTH_MULTIPLE
    if max_tokens > limit:
        message = f"embeddings.max_tokens = {max_tokens} exceeds what {folder} reads, {limit}"
        raise ModelError(message, f"set it to at most {limit}")
    return Encoder(
        model, tokenizer, block, chosen, max_tokens, batch_tokens, resolve_device(device)
    )


def _load(folder: Path, layer: int | None) -> tuple[Any, Any, Any]:
    """Return model, tokenizer and, if the model is cut at `layer`, its last block."""
    try:
        config = AutoConfig.from_pretrained(folder)
        depth = config.num_hidden_layers
        if layer is not None and not 1 <= layer <= depth:
            raise ModelError(f"embeddings.layer = {layer}, but {folder} has {depth} layers")
        config.num_hidden_layers = layer or depth
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with _quiet():
            model, info = AutoModel.from_pretrained(
                folder, config=config, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from None
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        message = f"{folder} lacks {len(missing)} weights, first {missing[0]}"
        raise ModelError(message, "fetch the model again: they would be made up at random")
    tokenizer.truncation_side = "left"
    blocks = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    return model, tokenizer, blocks[0][-1] if layer is not None else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from listing the weights of the layers that are left out."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _folder_pooling(folder: Path) -> str:
    modules = folder / "modules.json"
    if not modules.is_file():
        return "mean_without_first"
    kinds = {"Transformer", "Pooling", "Normalize"}
    chosen = []
    for module in json.loads(modules.read_text(encoding="utf-8")):
        kind = module["type"].rpartition(".")[2]
        if kind not in kinds:
            remedy = f"isodense knows {', '.join(sorted(kinds))}; choose another encoder"
            raise ModelError(f"{folder} has a module of type {kind}", remedy)
        if kind == "Pooling":
            settings = json.loads((folder / module["path"] / "config.json").read_text("utf-8"))
            chosen = [key for key, on in settings.items() if key.startswith("pooling_mode_") and on]
    names = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last"}
    names = {f"pooling_mode_{key}": name for key, name in names.items()}
    if len(chosen) != 1 or chosen[0] not in names:
        message = f"{folder} asks for the pooling {' and '.join(chosen) or 'none'}"
        raise ModelError(message, "set embeddings.pooling to mean, cls or last")
    return names[chosen[0]]


def _padded(value: int, multiple: int) -> int:
    return max(multiple, -(-value // multiple) * multiple)


def _normalised(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
    if len(bad):
        message = f"{len(bad)} of {len(rows)} texts have no finite, non-zero vector, first {bad[0]}"
        raise ModelError(message, "the encoder or its precision does not suit these texts")
    return (rows / norms).astype(np.float32)
