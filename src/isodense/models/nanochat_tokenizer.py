"""nanochat's tokenizer, a pickled ``tiktoken.Encoding``, as a fast tokenizer.

The pickle is read by an unpickler that accepts one name, ``tiktoken.core.Encoding``, and replaces
it by a class that only keeps its state; any other name is an error, and nothing is executed.
"""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from isodense.pipeline.errors import ModelError

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


def load_tokenizer(path: Path, max_tokens: int) -> PreTrainedTokenizerFast:
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
