"""Reading the reward, of whatever kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load_file

from isodense.models.inference.reader import check_files
from isodense.pipeline.artifact import checked, content_sha256, read_manifest
from isodense.pipeline.errors import ArtifactError
from isodense.reward.scoring.hidden_states import Features

HEAD = "head.safetensors"


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
