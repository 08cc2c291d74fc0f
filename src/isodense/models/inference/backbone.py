"""Loading the backbone of a model: the transformer without language head, cut at a layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as transformers_logging

from isodense.pipeline.errors import ModelError


def load_backbone(
    folder: str | Path,
    layer: int | None,
    param: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, torch.nn.Module]:
    """Load the token embedding and the first `layer` blocks of a model.

    Parameters
    ----------
    folder : str or Path
        A safetensors folder.
    layer : int, optional
        Blocks to keep, all by default; deeper ones are not read.
    param : str
        Name of the param that `layer` comes from, for errors.
    device : {"cpu", "cuda"}
        Device of the model.
    dtype : torch.dtype
        Type of the weights.

    Returns
    -------
    model : transformers.PreTrainedModel
        The backbone, in evaluation mode.
    block : torch.nn.Module
        The last block, whose output is the hidden state at that depth, before any final norm; the
        model itself if all layers share one block.

    Raises
    ------
    ModelError
        If the folder is not a whole model, or has fewer layers.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
        depth = config.num_hidden_layers
        if layer is not None and not 1 <= layer <= depth:
            message = f"{param} = {layer}, but {folder} has {depth} layers"
            raise ModelError(message, f"set {param} to 1 … {depth}")
        config.num_hidden_layers = layer or depth
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: layer or depth]
        with quiet():
            model, info = AutoModel.from_pretrained(
                folder, config=config, dtype=dtype, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from None
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        message = f"{folder} lacks {len(missing)} weights, first {missing[0]}"
        raise ModelError(message, "fetch the model again: they would be made up at random")
    block = _last_block(model, config.num_hidden_layers)
    if block is None and layer is not None:
        message = f"{folder} shares its weights among its layers and cannot be cut at {layer}"
        raise ModelError(message, f"set {param} to null, or choose another model")
    return model.eval().to(device), model if block is None else block


def _last_block(model: torch.nn.Module, depth: int) -> torch.nn.Module | None:
    """Return the last of `depth` blocks, None if the model has no such list of blocks."""
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return module[-1]
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars of transformers and its list of unused weights."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
