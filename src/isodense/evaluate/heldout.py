"""The held-out prompts that both policies answer: density, labels, and a sample of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from isodense.pipeline.artifact import checked, load_array, read_manifest, require_same_ids
from isodense.pipeline.errors import ArtifactError, TrainingError
from isodense.prompts.reader import PromptSet
from isodense.sampling.weights import HELDOUT_DENSITY, load_leaked


@dataclass(frozen=True)
class Heldout:
    """Held-out prompts and their density.

    Attributes
    ----------
    prompts : PromptSet
        Prompts of the split ``"heldout"``.
    density : ndarray of shape (n_prompts,), float32
        Log density among the training prompts.
    kinds : bool
        Whether labels name kinds of prompts.
    leaked : frozenset of str
        Ids of those with a near-duplicate in training.
    training : mapping of str to int
        Distinct training prompts of each label.
    exponent : float
        The power of the density that training weights fall with.
    """

    prompts: PromptSet
    density: np.ndarray
    kinds: bool = False
    leaked: frozenset[str] = frozenset()
    training: Mapping[str, int] = field(default_factory=dict)
    exponent: float = 0.0

    @property
    def clean(self) -> np.ndarray:
        """Whether a prompt has no near-duplicate in training: ndarray of shape (n_prompts,)."""
        return np.array([one not in self.leaked for one in self.prompts.ids], dtype=bool)

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """Row numbers of the prompts of each label, sorted by label; none unless labels are kinds.

        Prompts without a label are left out.
        """
        rows: dict[str, list[int]] = {}
        for number, row in enumerate(self.prompts.rows if self.kinds else []):
            if row.get("label"):
                rows.setdefault(row["label"], []).append(number)
        return {label: np.array(rows[label]) for label in sorted(rows)}

    @property
    def rarest_first(self) -> list[np.ndarray]:
        """Row numbers of each label: those of fewest training prompts first, ties by name."""
        labels = self.labels
        names = sorted(labels, key=lambda name: (self.training.get(name, 0), name))
        return [labels[name] for name in names]

    @property
    def weights(self) -> np.ndarray:
        """Weights inverse to density, as training weighs: (n_prompts,), float64, of sum 1."""
        density = self.density.astype(np.float64)
        weights = np.exp(-self.exponent * (density - density.min()))
        return weights / weights.sum()


def load_heldout(prompts: PromptSet, density: str | Path) -> Heldout:
    """Return the held-out prompts with their density.

    Parameters
    ----------
    prompts : PromptSet
        All prompts.
    density : str or Path
        The density artifact.

    Raises
    ------
    TrainingError
        If fewer than two prompts are held out, which give no interval.
    ArtifactError
        If the densities belong to other prompts.
    """
    train, heldout = prompts.split("train"), prompts.split("heldout")
    if len(heldout) < 2:
        message = f"{len(heldout)} of {len(prompts)} prompts are held out; evaluating takes two"
        raise TrainingError(message, "raise prompts.heldout, or add data")
    manifest = read_manifest(density, "density")
    require_same_ids(train.ids_sha256, manifest, f"the weights in {density}")
    what = f"the held-out densities in {density}"
    require_same_ids(heldout.ids_sha256, manifest, what, "heldout_ids_sha256")
    path = checked(density, manifest, HELDOUT_DENSITY)
    values = load_array(path)
    if values.shape != (len(heldout),) or not np.isfinite(values).all():
        message = f"{path} does not hold one finite number for each of {len(heldout)} prompts"
        raise ArtifactError(message, "run `dvc repro density`")
    return Heldout(
        heldout,
        values,
        prompts.labels_are_kinds,
        load_leaked(density, prompts),
        Counter(row["label"] for row in train.rows if row.get("label")),
        manifest["exponent"],
    )


def require_unseen(prompts: PromptSet, trained: str | Path) -> None:
    """Raise unless a policy was trained on the training prompts, and so on no held-out one.

    Parameters
    ----------
    prompts : PromptSet
        All prompts.
    trained : str or Path
        The trained policy's artifact.

    Raises
    ------
    ArtifactError
        If it was trained on others.
    """
    manifest = read_manifest(trained, "train")
    require_same_ids(prompts.split("train").ids_sha256, manifest, f"the draws of {trained}")


def sample(heldout: Heldout, size: int | None) -> Heldout:
    """Return at most `size` of the prompts, in order; None for all.

    Where labels are kinds, as many are taken of each as there are, up to one more or less. Among
    equals those whose ids have the smallest hashes come first: a fair sample, and one that
    appending data changes little. The ids themselves are none: the smallest ids are held out by
    themselves, and any id because of a near-duplicate.
    """
    rows = heldout.prompts.rows
    if size is None or size >= len(rows):
        return heldout
    hashes = [hashlib.sha256(row["id"].encode()).hexdigest() for row in rows]
    taken: Counter[str | None] = Counter()
    places = []  # of each prompt among those of its label
    for row in sorted(range(len(rows)), key=hashes.__getitem__):
        label = rows[row].get("label") if heldout.kinds else None
        places.append((taken[label], hashes[row], row))
        taken[label] += 1
    chosen = sorted(row for *_, row in sorted(places)[:size])
    kept = PromptSet([rows[row] for row in chosen])
    return replace(heldout, prompts=kept, density=heldout.density[chosen])
