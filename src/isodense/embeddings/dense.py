"""Pooling and dense layers of a sentence-transformers folder, read from the folder's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from isodense.models.inference.packing import product
from isodense.pipeline.errors import ModelError

PACKAGE = "sentence_transformers"  # modules of other packages are code that comes with a model
KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
POOLINGS = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}
POOLINGS |= {"lasttoken": "last"}  # by the names of newer and older sentence-transformers
ACTIVATIONS = {"Identity": torch.nn.Identity(), "Tanh": torch.nn.Tanh()}


class Dense:
    """Dense layers after the mean over positions.

    Parameters
    ----------
    layers : list of tuple
        Weight of shape (out, in), bias of shape (out,) or None, and activation of each layer.
    """

    def __init__(
        self, layers: list[tuple[torch.Tensor, torch.Tensor | None, torch.nn.Module]]
    ) -> None:
        self._layers = layers
        self.dim = len(layers[-1][0])

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return the vectors of sequences, not yet of unit length.

        Parameters
        ----------
        states : Tensor of shape (sequences, positions, hidden), float32
            Hidden states.

        Returns
        -------
        Tensor of shape (sequences, dim), float32
        """
        rows = states.mean(dim=1)
        for weight, bias, activation in self._layers:
            rows = activation(product(rows, weight, bias))
        return rows


def is_sentence_encoder(folder: str | Path) -> bool:
    """Return whether a model folder is in the format of sentence-transformers."""
    return (Path(folder) / "modules.json").is_file()


def modules(folder: Path) -> list[tuple[str, Path]]:
    """Return kind and path of each module of a sentence-transformers folder.

    Raises
    ------
    ModelError
        If a module is not of one of the supported `KINDS`.
    """
    found = []
    for module in json.loads((folder / "modules.json").read_text(encoding="utf-8")):
        package, _, kind = module["type"].rpartition(".")
        if kind not in KINDS or package.partition(".")[0] != PACKAGE:
            hint = f"isodense knows {', '.join(KINDS)} of {PACKAGE}; choose another encoder"
            raise ModelError(f"{folder} has a module of type {kind} ({package})", hint)
        found.append((kind, folder / module["path"]))
    return found


def settings_in(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}", "fetch the model again") from None
    return found


def folder_pooling(folder: Path) -> str:
    """Return the pooling of a sentence-transformers folder, by either format of its config.

    Returns
    -------
    {"mean", "cls", "last"}

    Raises
    ------
    ModelError
        If the pooling is of another kind, or there are several.
    """
    chosen: list[str] = []
    for kind, path in modules(folder):
        if kind == "Pooling":
            settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
            modes = settings.get("pooling_mode") or [
                key.removeprefix("pooling_mode_")
                for key, on in settings.items()
                if key.startswith("pooling_mode_") and on
            ]
            chosen = [modes] if isinstance(modes, str) else modes
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        message = f"{folder} asks for the pooling {' and '.join(chosen) or 'none'}"
        raise ModelError(message, "set embeddings.pooling to mean, cls or last")
    return POOLINGS[chosen[0]]


def load_dense(folder: Path, device: str) -> Dense | None:
    """Load the dense layers of a folder, None if it has none.

    Raises
    ------
    ModelError
        If a layer is incomplete or has an unsupported activation.
    """
    layers = []
    found = modules(folder) if is_sentence_encoder(folder) else []
    kinds = [kind for kind, _ in found]
    if kinds != sorted(kinds, key=KINDS.index):
        order = ", ".join(kinds)
        raise ModelError(f"{folder} has its modules in the order {order}", "choose another encoder")
    for path in (path for kind, path in found if kind == "Dense"):
        try:
            settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
            arrays = load_file(path / "model.safetensors", device=device)
            weight, bias = arrays["linear.weight"].float(), arrays.get("linear.bias")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(f"{path} is not a dense layer: {error}") from None
        name = str(settings.get("activation_function", "torch.nn.Tanh")).rpartition(".")[2]
        if name not in ACTIVATIONS or settings.get("use_residual"):
            hint = f"isodense knows {', '.join(ACTIVATIONS)}; choose another encoder"
            raise ModelError(f"{path} asks for a residual or the activation {name}", hint)
        layers.append((weight, None if bias is None else bias.float(), ACTIVATIONS[name]))
    return Dense(layers) if layers else None
