"""Checkpoints as nanochat writes them, small and random, of both architectures."""

from __future__ import annotations

import collections
import itertools
import json
import pickle
import sys
import types
from contextlib import contextmanager
from unittest.mock import patch

import torch

PATTERN = r"'(?i:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s+"
SPECIALS = ["bos", "user_start", "user_end", "assistant_start", "assistant_end", "python_start"]
WORDS = b"the theme then there these banana bananas aaaaaaaaa abababab".split()
SIZES = {"sequence_len": 32, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 16}

SIZES_2026 = {"sequence_len": 160, "n_layer": 5, "n_head": 4, "n_kv_head": 2, "n_embd": 32}
SIZES_2026 |= {"window_pattern": "SSL"}  # of the five blocks, the third and the last are long


class Encoding:
    """Pickles like ``tiktoken.core.Encoding``: as an instance of that name with this state."""

    def __init__(self, state):
        self.state = state

    def __getstate__(self):
        return self.state

    def __setstate__(self, state):
        raise AssertionError("the real class must not be used")


@contextmanager
def importable():
    """Let pickle find ``tiktoken.core.Encoding``, which need not be installed, inside the block."""
    core = types.ModuleType("tiktoken.core")
    core.Encoding = Encoding
    modules = {"tiktoken": types.ModuleType("tiktoken"), "tiktoken.core": core}
    with patch.dict(sys.modules, modules), patch.object(Encoding, "__module__", "tiktoken.core"):
        yield


def pickled(state):
    """Return a tokenizer file with this state of an encoding."""
    with importable():
        return pickle.dumps(Encoding(state), protocol=4)


def trained(words=WORDS, size=40):
    """Return the ranks of a byte-pair vocabulary: at each step the most frequent pair joins."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    rows = [[bytes([byte]) for byte in word] for word in words]
    for _ in range(size):
        pairs = collections.Counter(pair for row in rows for pair in itertools.pairwise(row))
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks.setdefault(b"".join(best), len(ranks))
        for row in rows:
            for at in range(len(row) - 1):
                if tuple(row[at : at + 2]) == best:
                    row[at : at + 2] = [b"".join(best)]
    return ranks


def encoding():
    ranks = trained()
    specials = {f"<|{name}|>": len(ranks) + at for at, name in enumerate(SPECIALS)}
    fields = {"name": "test", "pat_str": PATTERN}
    return {**fields, "mergeable_ranks": ranks, "special_tokens": specials}


def weights(vocabulary, rows=None, seed=0):
    """Return a random state dict under nanochat's names of 2025."""
    made = torch.Generator().manual_seed(seed)
    shapes = shapes_2025(vocabulary, rows, SIZES)
    return {f"{name}.weight": torch.randn(*shape, generator=made) for name, shape in shapes.items()}


def shapes_2025(vocabulary, rows, sizes):
    hidden, pairs = sizes["n_embd"], sizes["n_embd"] * sizes["n_kv_head"] // sizes["n_head"]
    shapes = {
        "transformer.wte": (rows or vocabulary, hidden),
        "lm_head": (rows or vocabulary, hidden),
    }
    for layer in range(sizes["n_layer"]):
        stem = f"transformer.h.{layer}"
        shapes |= {f"{stem}.attn.{name}": (hidden, hidden) for name in ("c_q", "c_proj")}
        shapes |= {f"{stem}.attn.{name}": (pairs, hidden) for name in ("c_k", "c_v")}
        shapes |= {f"{stem}.mlp.c_fc": (4 * hidden, hidden)}
        shapes |= {f"{stem}.mlp.c_proj": (hidden, 4 * hidden)}
    return shapes


def weights_2026(vocabulary, sizes, seed=0):
    """Return a random state dict under nanochat's names since 2026-03-14, with all that it has."""
    made, depth = torch.Generator().manual_seed(seed), sizes["n_layer"]
    rows = -(-vocabulary // 64) * 64
    shapes = shapes_2025(vocabulary, rows, sizes) | {"smear_gate": (1, 24)}
    for layer in range(depth - 1, -1, -2):
        shapes[f"value_embeds.{layer}"] = (rows, shapes["transformer.h.0.attn.c_k"][0])
        shapes[f"transformer.h.{layer}.attn.ve_gate"] = (sizes["n_kv_head"], 12)
    state = {
        f"{name}.weight": torch.randn(*shape, generator=made) * (1 if shape[0] == rows else 0.3)
        for name, shape in shapes.items()
    }
    spread = torch.rand(2, depth, generator=made)
    scales = {"resid_lambdas": 0.9 + 0.3 * spread[0], "x0_lambdas": 0.2 + 0.3 * spread[1]}
    single = {"smear_lambda": torch.tensor([0.8]), "backout_lambda": torch.tensor([0.3])}
    return {**scales, **single, **state}


def store(base, stage="base", tag="d2", step=10, state=None, **sizes):
    """Write one checkpoint into a base directory, and a tokenizer if it has none; return both."""
    made = encoding()
    vocabulary = len(made["mergeable_ranks"]) + len(SPECIALS)
    folder = base / f"{stage}_checkpoints" / tag
    folder.mkdir(parents=True, exist_ok=True)
    state = weights(vocabulary) if state is None else state
    torch.save(state, folder / f"model_{step:06d}.pt")
    settings = {"step": step, "model_config": {**SIZES, "vocab_size": vocabulary, **sizes}}
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(settings))
    if not (base / "tokenizer").exists():
        (base / "tokenizer").mkdir()
        (base / "tokenizer" / "tokenizer.pkl").write_bytes(pickled(made))
    return folder / f"model_{step:06d}.pt", vocabulary


def store_2026(base, stage="base", tag="d5", step=10, state=None, seed=0, **changes):
    """Write one checkpoint of the architecture since 2026-03-14; return its path."""
    sizes = SIZES_2026 | changes
    state = weights_2026(VOCABULARY, sizes, seed) if state is None else state
    return store(base, stage, tag, step, state, **sizes)[0]


VOCABULARY = len(trained()) + len(SPECIALS)
