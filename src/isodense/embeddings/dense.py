"""What a sentence-transformers folder does after pooling: its dense layers, read from its files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from isodense.embeddings.packing import product
from isodense.pipeline.errors import ModelError

KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
ACTIVATIONS = {"Identity": torch.nn.Identity(), "Tanh": torch.nn.Tanh()}


class Dense:
    """Dense layers after the mean over positions.

    Parameters
    ----------
    layers : list of (weight, bias or None, activation)
        Weights of shape (out, in).
    """

    def __init__(
        self, layers: list[tuple[torch.Tensor, torch.Tensor | None, torch.nn.Module]]
    ) -> None:
        self._layers = layers
        self.dim = len(layers[-1][0])

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return the vectors of sequences, from their states (sequences, positions, hidden)."""
        rows = states.mean(dim=1)
        for weight, bias, activation in self._layers:
            rows = activation(product(rows, weight, bias))
        return rows


def is_sentence_encoder(folder: str | Path) -> bool:
    """Return whether a model folder is one of sentence-transformers."""
    return (Path(folder) / "modules.json").is_file()


def modules(folder: Path) -> list[tuple[str, Path]]:
    """Return kind and path of each module of a sentence-transformers folder.

    Raises
    ------
    ModelError
        If a module is of a kind that is not known here.
    """
    found = []
    for module in json.loads((folder / "modules.json").read_text(encoding="utf-8")):
        kind = module["type"].rpartition(".")[2]
        if kind not in KINDS:
            hint = f"isodense knows {', '.join(KINDS)}; choose another encoder"
            raise ModelError(f"{folder} has a module of type {kind}", hint)
        found.append((kind, folder / module["path"]))
    return found


def load_dense(folder: Path, device: str) -> Dense | None:
    """Load the dense layers of a folder, if it has any.

    Raises
    ------
    ModelError
        If a layer is not whole, or has an activation that is not known here.
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
