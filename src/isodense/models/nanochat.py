"""nanochat checkpoints, read safely, as a ``transformers`` model with a fast tokenizer.

:func:`load` reads a checkpoint from nanochat's base directory, :func:`convert` writes it as a
safetensors folder. The directory has folders of checkpoints, and one tokenizer for all of them::

    base_checkpoints/d20/model_021400.pt      also mid_, chatsft_ and chatrl_checkpoints
    base_checkpoints/d20/meta_021400.json
    tokenizer/tokenizer.pkl

or all files of one model, the tokenizer's too, are in one folder.

Weights and tokenizer are pickles, which can contain any code. The weights are read by
``torch.load(weights_only=True)``, the tokenizer as :mod:`isodense.models.nanochat_tokenizer` says;
nothing is executed.

Two of nanochat's architectures are read. That of 2025-10-13 to 2026-01-10 is
``transformers.NanoChatForCausalLM``, that since 2026-03-14 is
:mod:`isodense.models.inference.nanochat_2026`; it is known by the weights ``smear_gate`` and
``backout_lambda``. In between, constants changed that no checkpoint shows, so that such a
checkpoint is refused, as is any with weights that are neither's.

The tokenizer gives the same tokens as nanochat:

- A special token that is spelt out in a text stays text (``split_special_tokens``).
- No ``<|bos|>`` is prepended, unless ``tokenizer.add_bos_token = True``.
- The chat template needs special tokens recognised: set ``tokenizer.split_special_tokens = False``,
  and pass ``sanitize_control_tokens=True`` to ``apply_chat_template``, so that those in messages
  stay text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import (
    NanoChatConfig,
    NanoChatForCausalLM,
    PreTrainedTokenizerFast,
)

from isodense.models.inference.nanochat_2026 import (
    LONG,
    SHORT,
    NanoChat2026Config,
    NanoChat2026ForCausalLM,
)
from isodense.models.nanochat_files import find_tokenizer, find_weights
from isodense.models.nanochat_tokenizer import BROKEN, FAILED, UNTRUSTED, load_tokenizer
from isodense.pipeline.errors import ModelError

Source = Literal["base", "mid", "sft", "rl"]
SIZES = {"vocab_size": "vocab_size", "sequence_len": "max_position_embeddings"}
SIZES |= {"n_embd": "hidden_size", "n_layer": "num_hidden_layers"}
SIZES |= {"n_head": "num_attention_heads", "n_kv_head": "num_key_value_heads"}
PATTERN = "window_pattern"
TABLES = {"transformer.wte.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
QKV = {f"attn.c_{name}": f"self_attn.{name}_proj" for name in "qkv"}
LAYER = {**QKV, "attn.c_proj": "self_attn.o_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
MARKS = {"smear_gate.weight", "backout_lambda"}  # which only checkpoints since 2026-03-14 have
WHOLE = {name: f"model.{name}" for name in (*sorted(MARKS), "smear_lambda")}
SCALES = {"resid_lambdas": "residual_scale", "x0_lambdas": "first_scale"}  # one of each per block
PADDED = 64  # since 2025-12-09 tables have a multiple of so many rows
READ = "isodense reads nanochat of 2025-10-13 to 2026-01-10, and of 2026-03-14 and later"
BETWEEN = "constants that changed from 2026-01-11 to 2026-03-13 do not show in a checkpoint"
SHORT_WINDOW = 128  # short windows are a quarter of the long one, rounded up to a multiple


def load(
    base_dir: str | Path, source: Source, tag: str | None = None, step: int | None = None
) -> tuple[NanoChatForCausalLM | NanoChat2026ForCausalLM, PreTrainedTokenizerFast]:
    """Load a checkpoint as a ``transformers`` model and a fast tokenizer.

    Parameters
    ----------
    base_dir : str or Path
        nanochat's base directory, or a folder with weights, meta file and ``tokenizer.pkl``.
    source : {"base", "mid", "sft", "rl"}
        The stage of nanochat's training that wrote the checkpoint. What all is in one folder has no
        name of it, so any is accepted.
    tag : str, optional
        The model's folder; by default the ``d<N>``, or ``d<N>`` with a suffix, with the largest N.
    step : int, optional
        Training step of the checkpoint; the last one by default.

    Returns
    -------
    model : NanoChatForCausalLM or NanoChat2026ForCausalLM
        In float32, on the CPU, in evaluation mode.
    tokenizer : PreTrainedTokenizerFast
        With nanochat's chat template.

    Raises
    ------
    ModelError
        If there is no such checkpoint (the hint lists the existing ones), or it is damaged,
        malicious, or of an architecture that neither class represents.
    """
    base = Path(base_dir).expanduser()
    weights = find_weights(base, source, tag, step)
    meta = weights.with_name(weights.stem.replace("model_", "meta_") + ".json")
    settings = _read_settings(meta)
    tokenizer = load_tokenizer(find_tokenizer(base), settings["sequence_len"])
    if len(tokenizer) != settings["vocab_size"]:
        message = f"{meta} counts {settings['vocab_size']} tokens, the tokenizer {len(tokenizer)}"
        raise ModelError(message, "copy the tokenizer that the checkpoint was trained with")
    state = _read_state(weights)
    common = _common(settings, tokenizer)
    kind: Any
    config: Any
    if MARKS & set(state):
        kind, config = NanoChat2026ForCausalLM, _config_of_2026(settings, common, meta)
        state, names = _split(state, config.num_hidden_layers, weights), _names_of_2026(config)
    else:
        _require_keys(meta, "model_config", settings, SIZES)
        kind, config = NanoChatForCausalLM, NanoChatConfig(**common)
        names = _names_of_2025(config.num_hidden_layers)
    state = _converted(state, names, kind, config, weights)
    model = kind.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    model.name_or_path = model.config.name_or_path = ""
    return model.eval(), tokenizer


def parse(checkpoint: str) -> tuple[Source, str | None, int | None]:
    """Return source, tag and step of a checkpoint given as ``source[/tag[/step]]``.

    Examples
    --------
    >>> parse("mid/d20/765")
    ('mid', 'd20', 765)
    >>> parse("sft")
    ('sft', None, None)
    """
    source, tag, step = [*checkpoint.split("/"), None, None][:3]
    return cast(Source, source), tag, int(step) if step else None


def convert(
    base_dir: str | Path, source: Source, tag: str | None, step: int | None, out: str | Path
) -> None:
    """Write a checkpoint as a ``transformers`` folder `out`; see :func:`load`."""
    model, tokenizer = load(base_dir, source, tag, step)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _read_settings(path: Path) -> dict[str, Any]:
    """Return the ``model_config`` of a meta file: sizes, and in newer ones the window pattern."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["model_config"]
        _require_keys(path, "model_config", set(settings) - {PATTERN}, SIZES)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", "copy it too: it has the head counts") from None
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} has no readable model_config: {error!r}") from None
    for name in SIZES:
        if type(settings[name]) is not int or settings[name] < 1:
            message = f"{path}: {name} = {settings[name]!r} is not a positive whole number"
            raise ModelError(message)
    return settings


def _common(settings: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return the fields that configs of both architectures have."""
    return {ours: settings[theirs] for theirs, ours in SIZES.items()} | {
        "intermediate_size": 4 * settings["n_embd"],
        "rms_norm_eps": torch.finfo(torch.float32).eps,  # nanochat leaves it to torch's rms_norm
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _config_of_2026(
    settings: dict[str, Any], common: dict[str, Any], path: Path
) -> NanoChat2026Config:
    """Return the config of a model since 2026-03-14; like nanochat, take no pattern for ``L``."""
    pattern = settings.get(PATTERN, "L")
    if not isinstance(pattern, str) or not re.fullmatch("[SLsl]+", pattern):
        raise ModelError(f"{path}: {PATTERN} = {pattern!r} is not letters S (short) and L (long)")
    depth = settings["n_layer"]
    short = [pattern[layer % len(pattern)] in "Ss" for layer in range(depth - 1)]
    window = -(-settings["sequence_len"] // (4 * SHORT_WINDOW)) * SHORT_WINDOW
    return NanoChat2026Config(
        **common,
        layer_types=[SHORT if one else LONG for one in (*short, False)],  # the last is long
        sliding_window=window + 1 if any(short) else None,  # transformers counts the token itself
    )


def _names_of_2025(depth: int) -> dict[str, str]:
    """Return our name of each of nanochat's weights."""
    names = dict(TABLES)
    for layer in range(depth):
        for theirs, ours in LAYER.items():
            names[f"transformer.h.{layer}.{theirs}.weight"] = f"model.layers.{layer}.{ours}.weight"
    return names


def _names_of_2026(config: NanoChat2026Config) -> dict[str, str]:
    """Return our name of each of nanochat's weights, once :func:`_split` has split some."""
    names = _names_of_2025(config.num_hidden_layers) | WHOLE
    for layer in range(config.num_hidden_layers):
        for theirs, ours in SCALES.items():
            names[f"{theirs}.{layer}"] = f"model.layers.{layer}.{ours}"
    for layer in config.value_embedding_layers:
        block = f"model.layers.{layer}.self_attn"
        names[f"value_embeds.{layer}.weight"] = f"{block}.value_embeds.weight"
        names[f"transformer.h.{layer}.attn.ve_gate.weight"] = f"{block}.value_gate.weight"
    return names


def _split(state: dict[str, Any], depth: int, path: Path) -> dict[str, Any]:
    """Return the weights with the scales of all blocks, vectors, split into those of each."""
    parts: dict[str, Any] = {}
    for name in set(SCALES) & set(state):
        _require_shape(path, name, state[name], (depth,))
        parts |= {f"{name}.{layer}": state[name][layer : layer + 1] for layer in range(depth)}
    return {name: tensor for name, tensor in state.items() if name not in SCALES} | parts


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a weights file by name, without the prefix of compiled models."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (*BROKEN, *FAILED) as error:  # torch's message without its advice to load unsafely
        found = re.search(r"(?i)^(?!weights only).+|unsupported (global: )?\S+ \S+", str(error))
        reason = found[0] if found else type(error).__name__
        raise ModelError(f"{path} is not a plain file of tensors: {reason}", UNTRUSTED) from None
    tensors = list(state.values()) if isinstance(state, dict) else [None]
    if not all(torch.is_tensor(tensor) and tensor.is_floating_point() for tensor in tensors):
        raise ModelError(f"{path} is not a state dict of floating-point tensors")
    return {str(name).removeprefix("_orig_mod."): tensor for name, tensor in state.items()}


def _converted(
    state: dict[str, Any], names: dict[str, str], kind: Any, config: Any, path: Path
) -> dict[str, Any]:
    """Return the tensors in float32, under our names and with the shapes of `config`."""
    _require_keys(path, "state dict", state, names)
    with torch.device("meta"):
        wanted = kind(config).state_dict()
    padded = -(-config.vocab_size // PADDED) * PADDED
    converted = {}
    for theirs, ours in names.items():
        tensor, shape = state[theirs], wanted[ours].shape
        is_table = theirs in TABLES or theirs.startswith("value_embeds.")
        if is_table and tensor.shape == (padded, *shape[1:]):
            tensor = tensor[: config.vocab_size].clone()
        _require_shape(path, theirs, tensor, shape)
        converted[ours] = tensor.to(torch.float32)
    return converted


def _require_shape(path: Path, name: str, tensor: torch.Tensor, shape: Iterable[int]) -> None:
    if tensor.shape != tuple(shape):
        fault = f"{name} has shape {tuple(tensor.shape)}, its meta file means {tuple(shape)}"
        raise ModelError(f"{path}: {fault}")


def _require_keys(path: Path, what: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Raise unless `found` has exactly the `known` keys; the error names those that differ."""
    differ = {"unknown": set(found) - set(known), "missing": set(known) - set(found)}
    faults = [f"{len(x)} {fault} ({', '.join(sorted(x)[:8])})" for fault, x in differ.items() if x]
    if faults:
        raise ModelError(f"{path}: {what} keys: {' and '.join(faults)}", f"{READ}; {BETWEEN}")
