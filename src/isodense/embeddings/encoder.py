"""Text encoders: unit vectors whose bytes depend on nothing but the text and the model.

Two kinds of model folder are supported. For a sentence-transformers folder (``modules.json``), the
prefix (:mod:`isodense.embeddings.texts`), the pooling and the dense layers are those of the folder.
Any other folder is taken for a decoder language model, and the hidden states are averaged over all
tokens of the prompt but the first, which is an attention sink with a huge norm.

Texts run in packs, end to end without padding (:mod:`isodense.models.inference.packing`). Models
whose attention cannot be packed (windows, learnt position biases) run in padded batches; a short
trial at load time decides. On a CPU the last bits of a row change with the shape of a matrix
product, so batches are padded to fixed multiples. Either way the bytes of a row were the same in
every batch and at every thread count tried.

Texts of more than ``max_tokens`` are cut, or read in windows (:mod:`isodense.embeddings.windows`),
which go into batches like texts: those of one text need not be in one batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from isodense.embeddings.dense import Dense, folder_pooling, is_sentence_encoder, load_dense
from isodense.embeddings.double import computing_in
from isodense.embeddings.logits import LogitSpace
from isodense.embeddings.texts import LENGTH_MULTIPLE, Long, TextReader, load_reader
from isodense.embeddings.windows import Means, Windows
from isodense.models.inference import packing
from isodense.models.inference.backbone import load_backbone
from isodense.models.inference.reader import require_undamaged
from isodense.pipeline.errors import ModelError, TextError
from isodense.pipeline.runtime import resolve_device

Pooling = Literal["auto", "mean", "mean_without_first", "cls", "last"]
Space = Literal["hidden", "logits", "logits_projected", "logits_full"]
Precision = Literal["float64", "float32", "bfloat16"]

Head = LogitSpace | Dense

ROWS_MULTIPLE = 4
BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}  # on a CPU, as many as stay in the caches
# least cosine of a text's vectors, batched and alone
SAME = {"float64": 0.9999, "float32": 0.9999, "bfloat16": 0.99}

log = logging.getLogger("isodense")


class Encoder:
    """A frozen encoder; :func:`load_encoder` makes one.

    Attributes
    ----------
    max_tokens : int
        Most tokens that are read at once.
    long : {"cut", "windows"}
        Whether longer texts are truncated on the left, after any prefix, as the question is usually
        at the end, or are read in windows.
    device : {"cpu", "cuda"}
        Device of the model.
    precision : {"float64", "float32", "bfloat16"}
        Type of the model's weights and computations; vectors are float32.
    padded : str or None
        Why texts run in padded batches; None if they run in packs.

    Examples
    --------
    >>> import isodense
    >>> encoder = isodense.load_encoder("models/encoder", max_tokens=64)
    >>> X = encoder.encode(["How do I boil an egg?", "Name a volcano."])
    >>> X.shape == (2, encoder.dim), X.dtype.name
    (True, 'float32')
    """

    def __init__(
        self,
        model: Any,
        block: torch.nn.Module | None,
        reader: TextReader,
        pooling: str,
        head: Head | None,
        batch_tokens: int | None,
        padded: str | None,
    ) -> None:
        self._model, self._reader, self._pooling, self._head = model, reader, pooling, head
        self._left_out = int(pooling == "mean_without_first")  # first positions that no mean has
        if pooling.startswith("mean"):
            self._left_out = max(self._left_out, reader.unpooled)
        self.device = model.device.type
        self.precision = str(model.dtype).removeprefix("torch.")
        self._pooled = "float64" if self.precision == "float64" else "float32"
        self._batch_tokens = batch_tokens or BATCH_TOKENS[self.device]
        self.max_tokens, self.long, self.padded = reader.max_tokens, reader.long, padded
        self._states: torch.Tensor | None = None
        if block is not None:
            block.register_forward_hook(self._keep)

    @property
    def packed(self) -> bool:
        """Whether texts run in packs rather than padded batches."""
        return self.padded is None

    @property
    def dim(self) -> int:
        """Columns of a vector."""
        if self._head is not None:
            return self._head.dim
        return int(self._model.config.get_text_config().hidden_size)

    def tokenize(self, texts: list[str]) -> tuple[list[list[int]], int]:
        """Return the token ids of each text, and the number of texts that were truncated."""
        return self._reader.tokenize(texts)

    def tokenize_whole(self, texts: list[str]) -> tuple[list[list[int]], dict[int, list[int]]]:
        """Return the token ids of each text, and by row those of truncated texts as they were."""
        return self._reader.tokenize_whole(texts)

    def windows(self, ids: list[list[int]]) -> Windows:
        """Return what is read at once of texts with these token ids."""
        return self._reader.windows(ids)

    def windows_are_texts(self, text: str) -> bool:
        """Return whether the windows of a long text have the tokens that surround any text."""
        return self._reader.windows_are_texts(text)

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return one unit vector per text.

        Parameters
        ----------
        texts : list of str
            Any number, in any order.

        Returns
        -------
        ndarray of shape (n_texts, dim), float32
            Rows have unit L2 norm.

        Raises
        ------
        TextError
            If a text has no tokens, or its vector is not finite or is zero.
        """
        return self.encode_tokens(self.tokenize(texts)[0])

    def encode_tokens(self, ids: list[list[int]]) -> np.ndarray:
        """Return one unit vector per list of token ids.

        When memory runs out, the batch size is halved from there on.

        Parameters
        ----------
        ids : list of list of int
            Token ids of each text, at most `max_tokens` unless `long` is ``windows``.

        Returns
        -------
        ndarray of shape (n_texts, dim), float32
            Rows have unit L2 norm.

        Raises
        ------
        TextError
            If a text has no tokens, or its vector is not finite or is zero.
        ModelError
            If memory runs out on a single text.
        """
        empty = [row for row in range(len(ids)) if not ids[row]]
        if empty:
            raise TextError(f"{len(empty)} of {len(ids)} texts have no tokens", empty[0])
        windows = self.windows(ids)
        means, read = Means(windows, self.dim, self._pooled), windows.ids
        order = sorted(range(len(read)), key=lambda one: (-len(read[one]), one))
        done = 0
        while done < len(order):
            ahead = order[done : done + self._batch_tokens]
            batch = ahead[: self._fitting([len(read[one]) for one in ahead])]
            try:
                vectors = self._forward([read[one] for one in batch])
            except RuntimeError as error:
                self._halve(error, len(batch))
                continue
            done += len(batch)
            means.add(batch, vectors)
        return _normalised(means.rows)

    def projection_error(self, ids: list[list[int]]) -> dict[str, float]:
        """Return the absolute error of the projection's cosines, over all pairs of texts.

        Parameters
        ----------
        ids : list of list of int
            Token ids of each text.

        Returns
        -------
        dict
            ``median`` and ``max``.

        Raises
        ------
        ModelError
            If the encoder's space is not ``logits_projected``.
        """
        space = self._head
        if not isinstance(space, LogitSpace):
            raise ModelError("hidden states are not projected")
        projected = self.encode_tokens(ids)
        with space.unprojected():
            full = self.encode_tokens(ids)
        above = np.triu_indices(len(ids), 1)
        error = np.abs(projected @ projected.T - full @ full.T)[above]
        return {"median": round(float(np.median(error)), 6), "max": round(float(error.max()), 6)}

    def encode_alone(self, ids: list[int]) -> np.ndarray:
        """Return the unit vector of one window, run alone through the model's default attention."""
        tokens = torch.tensor([ids]).to(self._model.device)
        with packing.stock_attention(self._model) if self.packed else nullcontext():
            states = self._states_of(lambda: self._model(input_ids=tokens))
        return _normalised(self._pool(states).cpu().numpy())[0]

    def _fitting(self, lengths: list[int]) -> int:
        """Return how many of the texts, longest first, fit into one batch; at least one."""
        if self.packed:
            totals = np.cumsum(lengths)
            return max(1, int(np.searchsorted(totals, self._batch_tokens, side="right")))
        padded = _padded(lengths[0], LENGTH_MULTIPLE)
        size = self._batch_tokens // padded // ROWS_MULTIPLE * ROWS_MULTIPLE or ROWS_MULTIPLE
        return sum(_padded(length, LENGTH_MULTIPLE) == padded for length in lengths[:size])

    def _halve(self, error: RuntimeError, texts: int) -> None:
        """Halve the batch size if `error` means that memory ran out, else raise it again."""
        exhausted = isinstance(error, torch.OutOfMemoryError) or "can't allocate" in str(error)
        if not exhausted:
            raise error
        if texts == 1:
            message = f"memory runs out on a single text of up to {self.max_tokens} tokens"
            raise ModelError(message, "lower embeddings.max_tokens, or use bfloat16") from None
        self._batch_tokens = max(1, self._batch_tokens // 2)
        log.warning("out of memory: going on with batches of %d tokens", self._batch_tokens)
        if self.device == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _forward(self, ids: list[list[int]]) -> np.ndarray:
        """Return the vectors of a batch, not yet of unit length; texts come longest first."""
        if self.packed:
            place = packing.first_position(self._model), self.max_tokens
            states = self._states_of(lambda: packing.run(self._model, ids, *place))[0]
            parts = [
                states[part.start : part.stop].unflatten(0, (part.sequences, part.length))
                for part in packing.segments([len(row) for row in ids])
            ]
        else:
            states = self._states_of(lambda: self._model(**self._padded_batch(ids)))
            parts = [states[row : row + 1, : len(ids[row])] for row in range(len(ids))]
        return torch.cat([self._pool(part) for part in parts]).cpu().numpy()

    def _padded_batch(self, ids: list[list[int]]) -> dict[str, torch.Tensor]:
        length = _padded(len(ids[0]), LENGTH_MULTIPLE)
        count = _padded(len(ids), ROWS_MULTIPLE)
        tokens = torch.full((count, length), self._reader.pad)
        mask = torch.zeros((count, length), dtype=torch.long)
        for row, values in enumerate(ids):
            tokens[row, : len(values)] = torch.tensor(values)
            mask[row, : len(values)] = 1
        mask[len(ids) :, 0] = 1  # without any token, attention of the padding rows would be NaN
        device = self._model.device
        return {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}

    @torch.inference_mode()
    def _states_of(self, forward: Callable[[], Any]) -> torch.Tensor:
        with computing_in(self.precision):
            states = forward().last_hidden_state
            if self._states is not None:  # the hook's: those of a block, before the final norm
                states, self._states = self._states, None
            return states.float()

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._states = output[0] if isinstance(output, tuple) else output

    @torch.inference_mode()
    def _pool(self, states: torch.Tensor) -> torch.Tensor:
        """Return the vectors of sequences of one length, from their states (n, length, hidden)."""
        if self._pooling == "cls":
            states = states[:, :1]
        elif self._pooling == "last":
            states = states[:, -1:]
        elif states.shape[1] > self._left_out:
            states = states[:, self._left_out :]
        return states.mean(dim=1) if self._head is None else self._head(states)


def load_encoder(
    folder: str | Path,
    pooling: Pooling = "auto",
    layer: int | None = None,
    max_tokens: int = 256,
    batch_tokens: int | None = None,
    device: str = "auto",
    *,
    space: Space = "hidden",
    projection: int = 1024,
    precision: Precision = "float32",
    prefix: str | None = None,
    long: Long = "cut",
) -> Encoder:
    """Load an encoder from a folder of safetensors.

    Parameters
    ----------
    folder : str or Path
        A sentence-transformers or ``transformers`` folder.
    pooling : {"auto", "mean", "mean_without_first", "cls", "last"}
        ``auto`` is the pooling of a sentence-transformers folder; for a decoder the mean without
        the first token, and for mean logits the mean.
    layer : int, optional
        Use the hidden states after this many blocks, before any final norm; deeper blocks are not
        loaded.
    max_tokens : int
        Most tokens that are read at once.
    batch_tokens : int, optional
        Tokens per batch; changes speed and memory, not the result. 1,024 on a CPU by default,
        32,768 on a GPU.
    device : {"auto", "cpu", "cuda"}
        ``auto`` takes a GPU if there is one.
    space : {"hidden", "logits", "logits_projected", "logits_full"}
        Hidden states or mean logits, see :mod:`isodense.embeddings.logits`.
    projection : int
        Columns of ``logits_projected``.
    precision : {"float64", "float32", "bfloat16"}
        Type of the weights and computations; with ``float64`` vectors have the same bytes on every
        machine, see :mod:`isodense.embeddings.double`.
    prefix : str, optional
        Put before every text; by default the default prompt of a sentence-transformers folder, and
        nothing otherwise.
    long : {"cut", "windows"}
        Texts of more than `max_tokens` are truncated on the left, or read in windows whose vectors
        are averaged, see :mod:`isodense.embeddings.windows`.

    Returns
    -------
    Encoder

    Raises
    ------
    ArtifactError
        If the folder is an artifact and damaged.
    ModelError
        If the folder is not a whole model, has fewer layers or a shorter context, or asks for an
        unknown pooling, or if the prefix leaves no room for a text.

    Examples
    --------
    >>> import isodense
    >>> encoder = isodense.load_encoder("models/encoder", max_tokens=64)
    >>> X = encoder.encode(["How do I boil an egg?", "How do I boil eggs?", "Name a volcano."])
    >>> graph = isodense.knn_graph(X, k=2)
    >>> weights = isodense.density_weights(graph)
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no model (no config.json)", "run `dvc repro models`")
    require_undamaged(folder)
    if space != "hidden" and layer is not None:
        message = f"embeddings.layer = {layer} has no meaning for space {space!r}"
        raise ModelError(message, "set it to null: logits are made of the last layer's states")
    chosen = _auto_pooling(folder, space) if pooling == "auto" else pooling
    where = resolve_device(device)
    with computing_in(precision):
        model, block, padded = _load_model(folder, layer, max_tokens, where, precision)
        head = _load_head(folder, space, layer, projection, where)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limit = max_tokens if context is None else context - packing.first_position(model)
    reader = load_reader(folder, limit, max_tokens, prefix, long)
    return Encoder(model, block, reader, chosen, head, batch_tokens, padded)


def _load_head(
    folder: Path, space: Space, layer: int | None, projection: int, device: str
) -> Head | None:
    """Return the map from hidden states to a vector; None if the pooled states are the vector."""
    if space != "hidden":
        return LogitSpace(space, folder, projection, device)
    return load_dense(folder, device) if layer is None else None


def _load_model(
    folder: Path, layer: int | None, max_tokens: int, device: str, precision: Precision
) -> tuple[Any, torch.nn.Module | None, str | None]:
    """Return the backbone, the block to take states from, and why it is not set up for packs.

    The block is None where `layer` is, for the states after the final norm.
    """
    dtype = getattr(torch, precision)
    model, block = load_backbone(folder, layer, "embeddings.layer", device, dtype)
    padded = packing.not_packable(model, max_tokens)
    if padded is None and (padded := packing.pack(model, max_tokens, SAME[precision])):
        model, block = load_backbone(folder, layer, "embeddings.layer", device, dtype)  # as it was
    if padded:
        log.info("texts run in padded batches, not in packs: %s", padded)
    return model, None if layer is None else block, padded


def _auto_pooling(folder: Path, space: str) -> str:
    if space != "hidden":
        return "mean"
    return folder_pooling(folder) if is_sentence_encoder(folder) else "mean_without_first"


def _padded(value: int, multiple: int) -> int:
    return max(multiple, -(-value // multiple) * multiple)


def _normalised(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
    if len(bad):
        message = f"{len(bad)} of {len(rows)} texts have no finite, non-zero vector"
        raise TextError(message, int(bad[0]))
    return (rows / norms).astype(np.float32)
