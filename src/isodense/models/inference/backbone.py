"""Loading the backbone of a model: the transformer without language head, cut at a layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
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

WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention")  # fields of model configs
FAILURES = (  # of a model that lacks what is asked of it, or whose code in transformers is wrong
    AttributeError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)
BY_LAYER = (  # fields of model configs with a value for each layer
    "layer_types",
    "layers_block_type",
    "mlp_layer_types",
    "intermediate_size",
    "activation_sparsity_pattern",
    "no_rope_layers",
)


class Backbone:
    """A model up to a block, with what that block last put out.

    Attributes
    ----------
    model : transformers.PreTrainedModel
    states : Tensor
        Hidden states of the last call of `model` after the block, before any final norm.
    """

    def __init__(self, folder: str | Path, layer: int, param: str, device: str) -> None:
        """Load it; see :func:`load_backbone` for the arguments and errors."""
        self.model, block = load_backbone(folder, layer, param, device)
        self.states = torch.empty(0)
        block.register_forward_hook(self._keep)

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self.states = output[0] if isinstance(output, tuple) else output


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
    if config.is_encoder_decoder:
        message = f"{folder} is an encoder-decoder ({config.model_type}), which has two backbones"
        raise ModelError(message, "choose an encoder or a decoder")
    kept = _cut(config, layer, param, folder)
    is_head = other_head(folder)

    def left_out(model: Any, name: str) -> bool:
        return is_head(model, name) or _is_deeper(model, name, kept)

    settings = {"config": config, "dtype": dtype}
    if dtype == torch.float64:  # torch has no grouped products of experts in float64
        settings["experts_implementation"] = "eager"
    try:
        model, missing = read_model(AutoModel, folder, left_out, **settings)
    except UNREADABLE as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from None
    require_whole(folder, [name for name in missing if not name.startswith("pooler.")])
    block = _blocks(model, kept)[1]
    if block is None and layer is not None:
        message = f"{folder} shares its weights among its layers and cannot be cut at {layer}"
        raise ModelError(message, f"set {param} to null, or choose another model")
    return model.eval().to(device), model if block is None else block[(layer or 0) - 1]


def _cut(config: Any, layer: int | None, param: str, folder: str | Path) -> int:
    """Let the config end after `layer` blocks, all by default; return the number of those to load.

    Where weights outside the blocks are of all blocks, all are loaded.
    """
    text = config.get_text_config()  # of a model that also sees, the language model's part
    depth = getattr(text, "num_hidden_layers", None)
    if depth is None:
        message = f"{folder} does not say how many layers it has (num_hidden_layers)"
        raise ModelError(message, "choose another model")
    if layer is not None and not 1 <= layer <= depth:
        message = f"{param} = {layer}, but {folder} has {depth} layers"
        raise ModelError(message, f"set {param} to 1 … {depth}")
    per_layer_inputs = getattr(text, "hidden_size_per_layer_input", None)
    kept = int(depth) if layer is None or per_layer_inputs else layer
    lists = {name: getattr(text, name, None) for name in BY_LAYER}
    text.num_hidden_layers = kept
    for name, values in lists.items():
        if isinstance(values, list) and len(values) == depth:
            with suppress(AttributeError):  # a property, made of other fields
                setattr(text, name, values[:kept])
    if is_recurrent(config):
        text.use_cache = False  # transformers has no cache for such blocks alone
    return kept


def is_recurrent(config: Any) -> bool:
    """Return whether a block carries a state along: padding and caches would change its output."""
    kinds = getattr(config.get_text_config(), "layer_types", None) or []
    return any(kind == "linear_attention" or not kind.endswith("attention") for kind in kinds)


def made_up(config: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Return sequences of tokens for trials, the same at every call.

    They are ordinary tokens only: special ones come first or last in a vocabulary.
    """
    generator = torch.Generator().manual_seed(0)
    most = config.get_text_config().vocab_size // 2
    return [torch.randint(8, most, (size,), generator=generator).tolist() for size in lengths]


def has_window(config: Any, tokens: int) -> bool:
    """Return whether a token sees fewer than that many before it."""
    text = config.get_text_config()
    windows = [getattr(text, name, None) for name in WINDOWS]
    return any(isinstance(window, int) and window < tokens for window in windows)


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
