"""Loading the backbone of a model: the transformer without language head, cut at a layer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from isodense.models.inference.load import (
    UNREADABLE,
    other_head,
    read_config,
    read_model,
    require_whole,
)
from isodense.models.inference.reader import require_undamaged
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
    ArtifactError
        If the folder is an artifact and damaged.
    ModelError
        If the folder is not a whole model, or has fewer layers.
    """
    require_undamaged(folder)
    config = read_config(folder)
    kept = _cut(config, layer, param, folder)
    is_head = other_head(folder)

    def left_out(model: Any, name: str) -> bool:
        return is_head(model, name) or _is_deeper(model, name, kept)

    try:
        model, missing = read_model(AutoModel, folder, left_out, config=config, dtype=dtype)
    except UNREADABLE as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from None
    require_whole(folder, [name for name in missing if not name.startswith("pooler.")])
    block = _blocks(model, kept)[1]
    if block is None and layer is not None:
        message = f"{folder} shares its weights among its layers and cannot be cut at {layer}"
        raise ModelError(message, f"set {param} to null, or choose another model")
    return model.eval().to(device), model if block is None else block[-1]


def _cut(config: Any, layer: int | None, param: str, folder: str | Path) -> int:
    """Let the config end after `layer` blocks, all by default; return their number."""
    text = config.get_text_config()  # of a model that also sees, the language model's part
    depth = getattr(text, "num_hidden_layers", None)
    if depth is None:
        message = f"{folder} does not say how many layers it has (num_hidden_layers)"
        raise ModelError(message, "choose another model")
    if layer is not None and not 1 <= layer <= depth:
        message = f"{param} = {layer}, but {folder} has {depth} layers"
        raise ModelError(message, f"set {param} to 1 … {depth}")
    text.num_hidden_layers = kept = layer or int(depth)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:kept]
    if is_recurrent(config):
        text.use_cache = False  # transformers has no cache for such blocks alone
    return kept


def is_recurrent(config: Any) -> bool:
    """Return whether a block carries a state along: padding and caches would change its output."""
    kinds = getattr(config.get_text_config(), "layer_types", None) or []
    return any(kind == "linear_attention" or not kind.endswith("attention") for kind in kinds)


def _blocks(model: Any, depth: int) -> tuple[str, torch.nn.ModuleList | None]:
    """Return name and list of the `depth` blocks, None if the model has no such list.

    The language model of one that also sees is searched first, since vision has blocks too.
    """
    language = model.get_decoder()
    for name, module in [*language.named_modules(), *model.named_modules()]:
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return name, module
    return "", None


def _is_deeper(model: Any, name: str, kept: int) -> bool:
    """Return whether a weight is of a block beyond the `kept` first."""
    blocks = _blocks(model, kept)[0]
    found = re.search(rf"(^|\.){re.escape(blocks)}\.(\d+)\.", name)
    return bool(blocks) and found is not None and int(found[2]) >= kept
