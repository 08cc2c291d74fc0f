r"""Embeddings made of mean logits, as in the prototype, in fewer columns than the vocabulary.

The logits of a position are :math:`Wh`, with the language head :math:`W` and the hidden state
:math:`h`. Where nothing follows (no softcap), their mean over positions is :math:`W\bar h`, and

.. math:: (W\bar h)\cdot(W\bar g) = (S\bar h)\cdot(S\bar g), \qquad S = (W^\top W)^{1/2},

so the vectors :math:`S\bar h`, with as many columns as the hidden state, have the inner products,
norms and distances of the mean logits, without approximation. (The Cholesky factor would do as
well; the square root also exists where :math:`W^\top W` is singular and has no signs to choose.)

A softcap :math:`c\tanh(\cdot/c)` acts on the logits of every position before the mean, so the
identity does not hold. Two spaces compute the exact mean logits: ``logits_full`` keeps all columns,
``logits_projected`` multiplies them by a seeded Gaussian matrix (Johnson and Lindenstrauss 1984),
which keeps a cosine to within about :math:`1/\sqrt{m}` for :math:`m` columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

from isodense.models.inference.load import UNREADABLE, read_model
from isodense.models.inference.packing import product
from isodense.pipeline.errors import ModelError
from isodense.pipeline.runtime import one_thread

SEED = 0  # seed of the projection
BLOCK = 4096  # rows of the head per matrix product
HINT = "set embeddings.space: hidden"


def load_head(folder: str | Path) -> tuple[torch.Tensor, float | None]:
    """Load the language head of a model.

    Returns
    -------
    weight : Tensor of shape (vocabulary, hidden), float32
        Weight of the head.
    softcap : float or None
        Bound c of the logits, None if they are not capped.

    Raises
    ------
    ModelError
        If the model has no language head, or one with a bias.
    """
    try:
        model, missing = read_model(AutoModelForCausalLM, folder, dtype=torch.float32)
    except UNREADABLE as error:
        raise ModelError(f"{folder} has no language head: {error}", HINT) from None
    head = model.get_output_embeddings()
    if head is None or missing or getattr(head, "bias", None) is not None:
        raise ModelError(f"the language head of {folder} is missing or has a bias", HINT)
    return head.weight.detach().float(), getattr(
        model.config.get_text_config(), "final_logit_softcapping", None
    )


class LogitSpace:
    """A map from hidden states to mean logits.

    Parameters
    ----------
    space : {"logits", "logits_projected", "logits_full"}
        Columns to compute, see the module.
    folder : str or Path
        The model.
    columns : int
        Columns of ``logits_projected``.
    device : {"cpu", "cuda"}
        Device of the head's weight.

    Raises
    ------
    ModelError
        If `space` is ``logits`` and the model has a softcap.
    """

    def __init__(self, space: str, folder: str | Path, columns: int, device: str) -> None:
        weight, softcap = load_head(folder)
        if space == "logits" and softcap is not None:
            hint = (
                "set embeddings.space to logits_projected (true mean logits, projected, with its "
                "error in the metrics), logits_full (all columns) or hidden"
            )
            message = f"{folder} caps its logits at ±{softcap:g}: space logits would not be exact"
            raise ModelError(message, hint)
        self._weight, self._softcap = weight.to(device), softcap
        self._square_root = _square_root(weight).to(device) if space == "logits" else None
        self._projection: torch.Tensor | None = None
        if space == "logits_projected":
            self._projection = _gaussian(columns, len(weight)).to(device)

    @property
    def dim(self) -> int:
        """Columns of an embedding."""
        last = self._square_root if self._projection is None else self._projection
        return len(self._weight if last is None else last)

    @contextmanager
    def unprojected(self) -> Iterator[None]:
        """Compute all columns of the mean logits inside the block."""
        projection, self._projection = self._projection, None
        try:
            yield
        finally:
            self._projection = projection

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of sequences, not yet of unit length.

        Parameters
        ----------
        states : Tensor of shape (sequences, positions, hidden), float32
            Hidden states after the model's final norm.

        Returns
        -------
        Tensor of shape (sequences, dim), float32
        """
        if self._square_root is not None:
            return product(states.mean(dim=1), self._square_root)
        logits = torch.stack([self._mean_logits(sequence) for sequence in states])
        return logits if self._projection is None else product(logits, self._projection)

    def _mean_logits(self, states: torch.Tensor) -> torch.Tensor:
        logits = linear(states, self._weight)
        if self._softcap is not None:
            logits = self._softcap * torch.tanh(logits / self._softcap)
        return logits.mean(dim=0)


def _square_root(weight: torch.Tensor) -> torch.Tensor:
    """Return the symmetric square root of WᵀW, with the same bytes at any thread count.

    It is made of W's singular values, by way of R of W = QR. The square roots of the eigenvalues
    of WᵀW would be off by 1e-8 where W has dependent columns, and by other bits on each processor.
    """
    triangle = weight.new_empty(0, weight.shape[1]).double()
    with one_thread():
        for block in weight.split(BLOCK):
            triangle = torch.linalg.qr(torch.cat([triangle, block.double()]), mode="r").R
        _, values, vectors = torch.linalg.svd(triangle, full_matrices=False)
        root = (vectors.T * values) @ vectors
    return root.float()


def _gaussian(columns: int, vocabulary: int) -> torch.Tensor:
    generator = np.random.Generator(np.random.PCG64(SEED))
    drawn = generator.standard_normal((columns, vocabulary), dtype=np.float32)
    return torch.from_numpy(drawn / np.float32(np.sqrt(columns))).float()
