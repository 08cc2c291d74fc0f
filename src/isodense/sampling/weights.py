"""Reading the density artifact: what training needs, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.artifact import checked, load_array, read_manifest, require_same_ids
from isodense.pipeline.errors import ArtifactError
from isodense.prompts.conversations import Message, prompt_id
from isodense.prompts.reader import PromptSet

WEIGHTS = "density_weights.npy"
DENSITY = "density.npy"
CLUSTERS = "duplicate_clusters.npy"
PARAPHRASES = "paraphrases.npy"
HELDOUT_DENSITY = "heldout_density.npy"
HELDOUT_LEAKED = "heldout_leaked.npy"
IDS = "prompt_ids.npy"
DTYPES = {WEIGHTS: "float32", DENSITY: "float32", CLUSTERS: "int32", IDS: "S32"}
OPTIONAL = {PARAPHRASES: "float32"}
LINE = np.dtype([("newline", "S1"), ("id", "S32")])
LINES = 4096  # hashed at once: they stay in the processor's cache
HELDOUT = "heldout_ids_sha256"
HINT = "run `dvc repro density`, or `dvc checkout --force data/density`"


@dataclass(frozen=True)
class Weights:
    """Sampling weights of the training prompts.

    Attributes
    ----------
    weights : ndarray of shape (n_prompts,), float32
        Sum 1; the larger, the less crowded the prompt's neighbourhood.
    density : ndarray of shape (n_prompts,), float32
        Log density; the larger, the more crowded.
    clusters : ndarray of shape (n_prompts,), int32
        Duplicate cluster of each prompt, from 0.
    prompt_ids : ndarray of shape (n_prompts,), S32
        Ids of the prompts, in the same order.
    metadata : dict
        The artifact's manifest.
    niches : ndarray of shape (n_prompts,), float32, optional
        With how many prompts each shares its weight as paraphrases, itself included; None where
        ``density.paraphrases`` is 0.

    Examples
    --------
    >>> import isodense
    >>> w = isodense.load_weights("data/density")
    >>> likely = w.weights.argmax()
    >>> bool(w.density[likely] <= np.median(w.density))
    True
    """

    weights: np.ndarray
    density: np.ndarray
    clusters: np.ndarray
    prompt_ids: np.ndarray
    metadata: dict[str, Any]
    niches: np.ndarray | None = None

    def align(self, prompts: Sequence[str | list[Message]]) -> np.ndarray:
        """Return the weights of prompts, in that order, scaled to sum 1.

        Parameters
        ----------
        prompts : sequence of str or list of message
            Prompt ids, texts of the user's only message, or conversations, of a data set that may
            be a subset, reordered or with repeats. A prompt that appears several times shares its
            weight among its rows. Prompts with tools go by id.

        Returns
        -------
        ndarray of shape (len(prompts),), float64

        Raises
        ------
        ArtifactError
            If a prompt has no weight: it is held out, or of another data set.

        Examples
        --------
        >>> import isodense
        >>> w = isodense.load_weights("data/density")
        >>> ids = [one.decode() for one in w.prompt_ids[[4, 2, 4]]]
        >>> first, second, third = w.align(ids)
        >>> bool(first == third), round(float(first + second + third), 6)
        (True, 1.0)
        """
        ids = [one if isinstance(one, str) else prompt_id(one) for one in prompts]
        rows, found = self._rows(ids)
        unknown: list[int] = np.flatnonzero(~found).tolist()
        texts = [place for place in unknown if isinstance(prompts[place], str)]
        if texts:  # neither an id of this set nor one of others
            hashed = [prompt_id([{"role": "user", "content": ids[place]}]) for place in texts]
            rows[texts], found[texts] = self._rows(hashed)
        if not found.all():
            first = str(prompts[int(np.argmin(found))])[:80]
            missing = int((~found).sum())
            message = f"{missing} of {len(ids)} prompts have no weight, first {first!r}"
            hint = "held-out prompts have none: leave them out (column split of data/prompts)"
            raise ArtifactError(message, f"{hint}; if they are new, run `dvc repro density`")
        aligned = self.weights[rows].astype(np.float64)
        aligned /= np.bincount(rows, minlength=len(self.prompt_ids))[rows]
        return aligned / aligned.sum()

    def _rows(self, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the row of each id, and whether it is there."""
        wanted = np.array([one.encode() for one in ids], dtype=bytes)  # of the longest id's length
        order = self._order
        place = np.searchsorted(self.prompt_ids, wanted, sorter=order)
        rows = order[np.minimum(place, len(order) - 1)]
        return rows, self.prompt_ids[rows] == wanted

    @cached_property
    def _order(self) -> np.ndarray:
        """Row numbers by rising id: found once, the second `align` does not sort."""
        return np.argsort(self.prompt_ids, kind="stable")


def load_weights(folder: str | Path) -> Weights:
    """Load ``data/density`` memory-mapped and check it.

    Parameters
    ----------
    folder : str or Path
        The artifact's folder.

    Raises
    ------
    ArtifactError
        If the artifact is incomplete or damaged, its arrays disagree, or a weight is not finite and
        positive.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, "density")
    dtypes = DTYPES | {name: OPTIONAL[name] for name in OPTIONAL if name in manifest["files"]}
    arrays = {name: load_array(checked(folder, manifest, name), mmap=True) for name in dtypes}
    for name, array in arrays.items():
        if array.shape != (manifest["rows"],):
            message = f"{folder / name} has shape {array.shape}, not ({manifest['rows']},)"
            raise ArtifactError(message, HINT)
        if array.dtype != dtypes[name]:
            raise ArtifactError(
                f"{folder / name} has dtype {array.dtype}, not {dtypes[name]}", HINT
            )
    _check_weights(folder / WEIGHTS, arrays[WEIGHTS])
    _check_clusters(folder / CLUSTERS, arrays[CLUSTERS])
    if _ids_sha256(arrays[IDS]) != manifest["ids_sha256"]:
        raise ArtifactError(f"{folder / IDS} does not hold the ids of its manifest", HINT)
    return Weights(
        arrays[WEIGHTS],
        arrays[DENSITY],
        arrays[CLUSTERS],
        arrays[IDS],
        manifest,
        arrays.get(PARAPHRASES),
    )


def load_leaked(folder: str | Path, prompts: PromptSet) -> frozenset[str]:
    """Return the ids of the held-out prompts that have a near-duplicate in training.

    Parameters
    ----------
    folder : str or Path
        The density artifact.
    prompts : PromptSet
        All prompts.

    Raises
    ------
    ArtifactError
        If the artifact is incomplete or of other prompts.
    """
    manifest = read_manifest(folder, "density")
    require_same_ids(prompts.split("train").ids_sha256, manifest, f"the weights in {folder}")
    heldout = prompts.split("heldout")
    require_same_ids(heldout.ids_sha256, manifest, f"the held-out prompts of {folder}", HELDOUT)
    path, ids = checked(folder, manifest, HELDOUT_LEAKED), heldout.ids
    leaked = load_array(path)
    if leaked.shape != (len(ids),) or leaked.dtype != np.bool_:
        message = f"{path} does not say yes or no of each of {len(ids)} held-out prompts"
        raise ArtifactError(message, HINT)
    return frozenset(ids[row] for row in np.flatnonzero(leaked))


def _check_weights(path: Path, weights: np.ndarray) -> None:
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights > 0)))
    if len(bad):
        message = f"{path}: {len(bad)} weights are not finite and positive, first in row {bad[0]}"
        raise ArtifactError(message, HINT)
    total = float(weights.sum(dtype=np.float64))
    if abs(total - 1) > 1e-6:
        raise ArtifactError(f"{path}: the weights sum to {total:.9f}, not 1", HINT)


def _check_clusters(path: Path, clusters: np.ndarray) -> None:
    bad = np.flatnonzero((clusters < 0) | (clusters >= len(clusters)))
    if len(bad):
        message = f"{path}: {len(bad)} prompts are in no duplicate cluster, first row {bad[0]}"
        raise ArtifactError(message, HINT)


def _ids_sha256(ids: np.ndarray) -> str:
    """Return what :func:`isodense.pipeline.artifact.ids_sha256` does, with no Python string per id.

    A million strings take longer to make than all else that training's start-up reads.
    """
    last_bytes = np.asarray(ids).view(np.uint8)[31::32]
    if not last_bytes.all():  # an id shorter than 32, which numpy pads
        return hashlib.sha256(b"\n".join(ids.tolist())).hexdigest()
    digest = hashlib.sha256()
    lines = np.full(LINES, b"\n", dtype="S1").astype(LINE)
    for start in range(0, len(ids), LINES):
        part = ids[start : start + LINES]
        lines["id"][: len(part)] = part
        text = lines[: len(part)].view(np.uint8).data
        digest.update(text if start else text[1:])  # newlines stand between ids only
    return digest.hexdigest()
