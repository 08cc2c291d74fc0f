"""Density weights on real requests by encoder, removed components and k.

`pip install --no-deps wordllama; python benchmarks/density.py --real DIR --policy models/policy`
runs it, on some sets of `labelled.py`: the sentence encoder of `--encoder`; hidden states of a
language model after 10 layers and after all; static token vectors, where wordllama is installed.
Each is taken as it is ("none"), and by all-but-the-top with several numbers of components, fitted
on each set.
"""

from __future__ import annotations

import importlib.util
import itertools
from functools import partial
from pathlib import Path

import numpy as np
from labelled import KS, Scores, Sets, drawn, measured, read, sets_of
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from density import Embed, caching, interval, table
from isodense.embeddings.postprocess import fit

SETS = {
    "constructed": ("HWU64, tail 1", "HWU64, tail 1.3", "SLURP, tail 1", "SLURP, 50 and 5"),
    "natural": ("SLURP", "SLURP, domains"),
    "even": ("SLURP, 50 each",),
}
COMPONENTS = (None, 0, 1, 5, 10)  # None: no post-processing; 0 centres
SCHEMES = [(f"k {k}", target) for target, k in itertools.product((0.9, 0.8), KS)]
DEFAULT = [("k 50", 0.9), ("k 50", 0.8)]


def encoders(embed: Embed, policy: Path, kept: Path | None) -> dict[str, tuple[Embed, int | None]]:
    """Return what embeds texts, and the components that are removed from it by default."""
    found = {
        "sentence encoder": (embed, None),
        "language model, layer 10": (caching(policy, kept and kept / "layer 10", 10), 5),
        "language model, all layers": (caching(policy, kept and kept / "all layers"), 5),
    }
    spec = importlib.util.find_spec("wordllama")
    return found | ({"static": (static(Path(spec.origin).parent), None)} if spec else {})


def static(folder: Path) -> Embed:
    """Return a function that embeds texts as the mean of the vectors of their tokens."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers/l2_supercat_tokenizer_config.json"))
    vectors = load_file(folder / "weights/l2_supercat_256.safetensors")["embedding.weight"]

    def embed(words: list[str]) -> np.ndarray:
        tokens = tokenizer.encode_batch(words, add_special_tokens=False)
        X = np.stack([vectors[one.ids].astype(np.float32).mean(axis=0) for one in tokens])
        return X / np.linalg.norm(X, axis=1, keepdims=True)

    return embed


def processed(embed: Embed, components: int | None, words: list[str]) -> np.ndarray:
    """Embed words, centre their vectors, and remove components."""
    X = embed(words)
    return X if components is None else fit([X], components).apply(X)


def means(embed: Embed, makers: Sets, seeds: range) -> dict[str, Scores]:
    """Return the mean over the sets of each kind."""
    found = {}
    for kind, names in SETS.items():
        each = []
        for name in names:
            rows = (makers[kind][name](np.random.default_rng(seed)) for seed in seeds)
            several = [drawn(embed, each_rows) for each_rows in rows]
            each.append(measured(several, kind == "even", SCHEMES))
        found[kind] = {one: np.mean([scores[one] for scores in each], axis=0) for one in SCHEMES}
    return found


def run(folder: Path, embed: Embed, policy: Path, kept: Path | None, seeds: range) -> None:
    """Print two tables of each kind of sets: scores, and differences paired by seed."""
    makers = sets_of(read(folder))
    usual, found = {}, {}
    for name, (raw, components) in encoders(embed, policy, kept).items():
        usual[name] = (name, components)
        for removed in COMPONENTS:
            found[name, removed] = means(partial(processed, raw, removed), makers, seeds)
    for kind in SETS:
        scores = {one: several[kind] for one, several in found.items()}
        rows, differences = [], []
        for (name, removed), of in scores.items():
            row = [name, "none" if removed is None else str(removed)]
            reached = f"{of[DEFAULT[1]][1].mean():.2f}"
            rows.append([*row, *(interval(of[one][0], 3) for one in SCHEMES), reached])
            others = [scores["sentence encoder", None], scores[usual[name]]]
            less = [of[one][0] - other[one][0] for other in others for one in DEFAULT]
            differences.append([*row, *(interval(each, 3) for each in less)])
        said = "change of entropy, %" if kind == "even" else "gap"
        title, header = f"{kind.capitalize()} sets, {said}", ["vectors", "components"]
        columns = [f"{k}, ESS {target}" for k, target in SCHEMES]
        table(title, [*header, *columns, "reached, k 50, ESS 0.8"], rows)
        pairs = itertools.product(("the first row", "its default"), DEFAULT)
        columns = [f"less {other}, ESS {target}" for other, (_, target) in pairs]
        table(f"{title}, k 50, by seed", header + columns, differences)
