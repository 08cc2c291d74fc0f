"""nanochat checkpoints, read safely, as a ``transformers`` model with a fast tokenizer.

:func:`load` reads a checkpoint from nanochat's base directory, :func:`convert` writes it as a
safetensors folder. The directory has folders of checkpoints, and one tokenizer for all of them::

    base_checkpoints/d20/model_021400.pt      also mid_, chatsft_ and chatrl_checkpoints
    base_checkpoints/d20/meta_021400.json
    tokenizer/tokenizer.pkl

Weights and tokenizer are pickles, which can contain any code. The weights are read by
``torch.load(weights_only=True)``, the tokenizer by an unpickler that accepts one name,
``tiktoken.core.Encoding``, and replaces it by a class that only keeps its state; any other name is
an error, and nothing is executed. ``NanoChatForCausalLM`` represents the architecture that nanochat
had from 2025-10-13 to 2026-01-10; weights of later architectures are an error that names them.

The tokenizer gives the same tokens as nanochat:

- A special token that is spelt out in a text stays text (``split_special_tokens``).
- No ``<|bos|>`` is prepended, unless ``tokenizer.add_bos_token = True``.
- The chat template needs special tokens recognised: set ``tokenizer.split_special_tokens = False``,
  and pass ``sanitize_control_tokens=True`` to ``apply_chat_template``, so that those in messages
  stay text.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
from pathlib import Path
from typing import Any, Literal, cast

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import NanoChatConfig, NanoChatForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from isodense.pipeline.errors import ModelError

Source = Literal["base", "mid", "sft", "rl"]
FOLDERS = {"base": "base", "mid": "mid", "sft": "chatsft", "rl": "chatrl"}  # …_checkpoints
SIZES = {"vocab_size": "vocab_size", "sequence_len": "max_position_embeddings"}
SIZES |= {"n_embd": "hidden_size", "n_layer": "num_hidden_layers"}
SIZES |= {"n_head": "num_attention_heads", "n_kv_head": "num_key_value_heads"}
TABLES = {"transformer.wte.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
QKV = {f"attn.c_{name}": f"self_attn.{name}_proj" for name in "qkv"}
LAYER = {**QKV, "attn.c_proj": "self_attn.o_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
ENCODING = {"name": str, "pat_str": str, "mergeable_ranks": dict, "special_tokens": dict}
BOS, EOS = "<|bos|>", "<|assistant_end|>"
SPECIALS = [BOS, "<|user_start|>", "<|user_end|>", "<|assistant_start|>", EOS]
CHAT_TEMPLATE = (  # a system message is joined to the first user message by a blank line
    "{% set system = messages[0]['role'] == 'system' %}{{ '<|bos|>' }}"
    "{% for message in (messages[1:] if system else messages) %}"
    "{% set role = loop.cycle('user', 'assistant') %}{% if message['role'] != role %}"
    "{{ raise_exception('nanochat needs user and assistant by turns, after at most one system') }}"
    "{% endif %}{{ '<|' + role + '_start|>' }}"
    "{% if system and loop.first %}{{ messages[0]['content'] + '\n\n' }}{% endif %}"
    "{{ message['content'] + '<|' + role + '_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant_start|>' }}{% endif %}"
)
# Errors that damaged pickles raised in trials with random faults.
BROKEN = (AssertionError, AttributeError, EOFError, LookupError, MemoryError, OverflowError)
FAILED = (OSError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError, struct.error)
UNTRUSTED = "nothing in it was run; copy it again, from someone you trust"


def load(
    base_dir: str | Path, source: Source, tag: str | None = None, step: int | None = None
) -> tuple[NanoChatForCausalLM, PreTrainedTokenizerFast]:
    """Load a checkpoint as a ``transformers`` model and a fast tokenizer.

    Parameters
    ----------
    base_dir : str or Path
        nanochat's base directory.
    source : {"base", "mid", "sft", "rl"}
        The stage of nanochat's training that wrote the checkpoint.
    tag : str, optional
        The model's folder; by default the ``d<N>`` with the largest N.
    step : int, optional
        Training step of the checkpoint; the last one by default.

    Returns
    -------
    model : NanoChatForCausalLM
        In float32, on the CPU, in evaluation mode.
    tokenizer : PreTrainedTokenizerFast
        With nanochat's chat template.

    Raises
    ------
    ModelError
        If there is no such checkpoint (the hint lists the existing ones), or it is damaged,
        malicious, or of an architecture that ``NanoChatForCausalLM`` cannot represent.
    """
    base = Path(base_dir).expanduser()
    weights = _find(base, source, tag, step)
    meta = weights.with_name(weights.stem.replace("model_", "meta_") + ".json")
    sizes = _read_sizes(meta)
    tokenizer = _load_tokenizer(base / "tokenizer" / "tokenizer.pkl", sizes["sequence_len"])
    if len(tokenizer) != sizes["vocab_size"]:
        message = f"{meta} counts {sizes['vocab_size']} tokens, the tokenizer {len(tokenizer)}"
        raise ModelError(message, "copy the tokenizer that the checkpoint was trained with")
    config = _config(sizes, tokenizer)
    state = _converted(_read_state(weights), config, weights)
    model = NanoChatForCausalLM.from_pretrained(
        None, config=config, state_dict=state, dtype=torch.float32
    )
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


def _find(base: Path, source: str, tag: str | None, step: int | None) -> Path:
    """Return the path of a checkpoint's weights."""
    found = {name: _checkpoints(base / f"{stem}_checkpoints") for name, stem in FOLDERS.items()}
    tags = _pick({name: tags for name, tags in found.items() if tags}, source, base, "source")
    depths = {int(name[1:]): name for name in tags if re.fullmatch(r"d[0-9]+", name)}
    deepest = depths[max(depths)] if depths else "d<N>"
    steps = _pick(tags, tag or deepest, base / f"{FOLDERS[source]}_checkpoints", "tag")
    return _pick(steps, max(steps) if step is None else step, steps[max(steps)].parent, "step")


def _pick(existing: dict[Any, Any], wanted: Any, folder: Path, what: str) -> Any:
    """Return the value of `wanted`, or raise a `ModelError` that lists the keys."""
    if wanted not in existing:
        hint = f"it has: {', '.join(map(str, sorted(existing))) or 'none'}"
        raise ModelError(f"{folder} has no nanochat checkpoint of {what} {wanted!r}", hint)
    return existing[wanted]


def _checkpoints(folder: Path) -> dict[str, dict[int, Path]]:
    """Return the paths of all checkpoints in a folder, by tag and step."""
    found: dict[str, dict[int, Path]] = {}
    for path in folder.glob("*/model_*.pt"):
        if match := re.fullmatch(r"model_([0-9]+)\.pt", path.name):
            found.setdefault(path.parent.name, {})[int(match[1])] = path
    return found


def _read_sizes(path: Path) -> dict[str, int]:
    """Return the sizes of the model in a meta file."""
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))["model_config"]
        _require_keys(path, "model_config", sizes.keys(), SIZES.keys())
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", "copy it too: it has the head counts") from None
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} has no readable model_config: {error!r}") from None
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ModelError(f"{path}: {name} = {size!r} is not a positive whole number")
    return sizes


def _config(sizes: dict[str, int], tokenizer: PreTrainedTokenizerFast) -> NanoChatConfig:
    same: dict[str, Any] = {ours: sizes[theirs] for theirs, ours in SIZES.items()}
    return NanoChatConfig(
        **same,
        intermediate_size=4 * sizes["n_embd"],
        rms_norm_eps=torch.finfo(torch.float32).eps,  # nanochat leaves it to torch's rms_norm
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


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


def _converted(state: dict[str, Any], config: NanoChatConfig, path: Path) -> dict[str, Any]:
    """Return the tensors in float32, under the names and with the shapes of `config`."""
    names = dict(TABLES)
    for layer in range(config.num_hidden_layers):
        for theirs, ours in LAYER.items():
            names[f"transformer.h.{layer}.{theirs}.weight"] = f"model.layers.{layer}.{ours}.weight"
    _require_keys(path, "state dict", state, names)
    with torch.device("meta"):
        wanted = NanoChatForCausalLM(config).state_dict()
    padded = -(-config.vocab_size // 64) * 64  # nanochat pads the vocabulary since 2025-12-09
    converted = {}
    for theirs, ours in names.items():
        tensor, shape = state[theirs], wanted[ours].shape
        if theirs in TABLES and tensor.shape == (padded, *shape[1:]):
            tensor = tensor[: config.vocab_size].clone()
        if tensor.shape != shape:
            fault = f"{theirs} has shape {tuple(tensor.shape)}, its meta file means {tuple(shape)}"
            raise ModelError(f"{path}: {fault}")
        converted[ours] = tensor.to(torch.float32)
    return converted


def _require_keys(path: Path, what: str, found: Any, known: Any) -> None:
    """Raise unless `found` has exactly the `known` keys; the error names those that differ."""
    differ = {"unknown": set(found) - set(known), "missing": set(known) - set(found)}
    faults = [f"{len(x)} {fault} ({', '.join(sorted(x)[:8])})" for fault, x in differ.items() if x]
    if faults:
        hint = "only nanochat's architecture of 2025-10-13 to 2026-01-10 can be represented"
        raise ModelError(f"{path}: {what} keys: {' and '.join(faults)}", hint)


class _Encoding:
    """Replacement for ``tiktoken.core.Encoding`` that keeps the state and does nothing."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Unpickler that accepts ``tiktoken.core.Encoding`` and no other name."""

    def find_class(self, module: str, name: str) -> type[_Encoding]:
        if (module, name) != ("tiktoken.core", "Encoding"):
            raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'!r}")
        return _Encoding


def _load_tokenizer(path: Path, max_tokens: int) -> PreTrainedTokenizerFast:
    """Return the fast tokenizer that gives the same tokens as a pickled ``tiktoken.Encoding``."""
    encoding = _read_encoding(path)
    made = Tokenizer(_byte_pairs(encoding["mergeable_ranks"]))
    try:
        split = pre_tokenizers.Split(Regex(encoding["pat_str"]), "isolated")
    except Exception as error:  # noqa: BLE001 - tokenizers raises just that
        raise ModelError(f"{path}: pat_str is not a regular expression: {error}") from None
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, spelling])
    made.decoder = decoders.ByteLevel()
    specials = sorted(encoding["special_tokens"], key=encoding["special_tokens"].get)
    made.add_special_tokens([AddedToken(text, normalized=False) for text in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=max_tokens,
        split_special_tokens=True,
        chat_template=CHAT_TEMPLATE,
    )


def _byte_pairs(ranks: dict[bytes, int]) -> models.BPE:
    """Return a BPE model; merges are all splits of a token into two tokens, by the token's rank."""
    alphabet = bytes_to_unicode()
    spelt = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    merges = [
        (spelt[token[:cut]], spelt[token[cut:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    vocabulary = {spelt[token]: rank for token, rank in ranks.items()}
    return models.BPE(vocabulary, merges, ignore_merges=True)


def _read_encoding(path: Path) -> dict[str, Any]:
    """Return the state of a pickled ``tiktoken.Encoding``, after checking it."""
    try:
        with path.open("rb") as stream:
            encoding = _Unpickler(stream).load()
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", "copy the tokenizer folder too") from None
    except (*BROKEN, *FAILED) as error:
        raise ModelError(f"{path} is not a plain tokenizer: {error}", UNTRUSTED) from None
    state = encoding.state if type(encoding) is _Encoding else None
    if type(state) is not dict or {key: type(state[key]) for key in state} != ENCODING:
        raise ModelError(f"{path} is not an encoding with {', '.join(ENCODING)}", UNTRUSTED)
    if fault := _token_fault(state["mergeable_ranks"], state["special_tokens"]):
        raise ModelError(f"{path} is not a tokenizer of nanochat: {fault}")
    return state


def _token_fault(ranks: dict[Any, Any], specials: dict[Any, Any]) -> str:
    """Return a fault of the vocabulary, empty if it has all bytes and nanochat's special tokens."""
    ids = [*ranks.values(), *specials.values()]
    kinds = [{type(value) for value in values} for values in (ranks, specials, ids)]
    if kinds != [{bytes}, {str}, {int}] or not all(map(str.isprintable, specials)):
        return "tokens are not bytes, special tokens not text, or ids not whole numbers"
    if sorted(ids[: len(ranks)]) + sorted(ids[len(ranks) :]) != list(range(len(ids))):
        return "ids are not 0, 1, 2, … with the special tokens last"
    absent = [token for token in SPECIALS if token not in specials]
    absent += [f"byte {byte}" for byte in range(256) if bytes([byte]) not in ranks]
    return f"it lacks {', '.join(absent[:8])}" if absent else ""
