"""Post-processing of embeddings that is fitted on the prompts: centring and all-but-the-top.

Hidden states of language models share a large mean and a few dominant directions that carry little
information about the text; removing them makes distances more meaningful (Mu and Viswanath 2018,
arXiv 1702.01417). Shards hold the vectors before post-processing, so that a shard depends on the
encoder and its prompts only. The fitted transform is a small separate file in the same folder,
applied when the vectors are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from isodense.pipeline.artifact import checked
from isodense.pipeline.errors import ModelError

FILE = "transform.safetensors"
ROWS_PER_DIRECTION = 10  # with fewer prompts per removed direction, the fit is noise


@dataclass(frozen=True)
class Transform:
    """Centring and removal of the top principal components.

    Attributes
    ----------
    mean : ndarray of shape (dim,), float32
        Mean of the training prompts' vectors.
    components : ndarray of shape (n_components, dim), float32
        Orthonormal rows by falling variance; the entry largest in magnitude is positive.
    """

    mean: np.ndarray
    components: np.ndarray

    def apply(self, X: np.ndarray) -> np.ndarray:
        """Centre the rows of `X`, remove the components, and scale to unit length.

        Parameters
        ----------
        X : ndarray of shape (n, dim)
            Rows of unit length.

        Returns
        -------
        ndarray of shape (n, dim), float32
            Rows of unit length.

        Raises
        ------
        ModelError
            If a row is zero without the mean and the components.
        """
        components = self.components.astype(np.float64)
        rows = X.astype(np.float64) - self.mean
        rows -= (rows @ components.T) @ components
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        lost = np.flatnonzero(norms[:, 0] < 1e-6)
        if len(lost):
            message = f"all-but-the-top leaves nothing of {len(lost)} vectors, first {lost[0]}"
            raise ModelError(message, "set embeddings.postprocess: none")
        return (rows / norms).astype(np.float32)

    def save(self, folder: str | Path) -> None:
        """Write the transform into a folder of shards."""
        # save_file writes the memory of an array and ignores its strides.
        arrays = {"mean": self.mean, "components": np.ascontiguousarray(self.components)}
        save_file(arrays, Path(folder) / FILE)


def fit(blocks: Iterable[np.ndarray], components: int) -> Transform:
    """Fit mean and top principal components.

    Parameters
    ----------
    blocks : iterable of ndarray of shape (n, dim)
        Rows of unit length, block by block.
    components : int
        Directions to remove; 0 only centres.

    Returns
    -------
    Transform

    Raises
    ------
    ModelError
        If there are under ``ROWS_PER_DIRECTION`` rows per component.
    """
    count, total, square = 0, np.float64(0), np.float64(0)
    for block in blocks:
        block = block.astype(np.float64)
        count += len(block)
        total, square = total + block.sum(axis=0), square + block.T @ block
    if count < ROWS_PER_DIRECTION * (components + 1):
        message = f"{count} training prompts are too few to fit {components} components"
        raise ModelError(message, "set embeddings.postprocess: none, or fewer components")
    mean = np.asarray(total / count)
    top = np.linalg.eigh(square / count - np.outer(mean, mean))[1].T[::-1][:components]
    largest = np.take_along_axis(top, np.abs(top).argmax(axis=1)[:, None], axis=1)
    return Transform(mean.astype(np.float32), (top * np.sign(largest)).astype(np.float32))


def load_transform(folder: str | Path, manifest: dict[str, Any]) -> Transform:
    """Load the transform of an embeddings artifact, checked against its manifest."""
    arrays = load_file(checked(folder, manifest, FILE))
    return Transform(arrays["mean"], arrays["components"])
