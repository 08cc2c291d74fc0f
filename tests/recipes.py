"""Recorded values of small fixed inputs, which recipe versions of caches stand for.

A cache of costly pieces is keyed by a recipe version instead of the source of what computes them,
so that a comment costs nobody a night of computing. ``tests/recipes/NAME-VERSION.json`` holds what
that version gives. Whoever changes the values raises the version and records it anew:
``python -m tests.recipes``.

Machines differ in the last bits of float32 (by 3e-7 at most where it was measured), so float32
values are compared to 2e-6; tokens, pooling or normalisation that change move them by far more.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from isodense.difficulty import measure as difficulty
from isodense.difficulty.params import DifficultyParams
from isodense.embeddings import build as embeddings
from isodense.embeddings.encoder import load_encoder
from isodense.neighbors import build as neighbors
from isodense.neighbors.build import knn_graph
from isodense.reward import features
from isodense.reward.scoring.hidden_states import Features
from tests import rl, tiny

FOLDER = Path(__file__).with_name("recipes")
TEXTS = ["the cat is red", "what is the capital of egg", "cat " * 30]
COLUMNS = 6  # of each row are recorded


def rows_of_embeddings(folder: Path) -> dict[str, Any]:
    """Return the first columns of vectors by kind of encoder."""
    sentence, decoder = tiny.encoder(folder / "sentence"), tiny.policy(folder / "decoder")
    cases: dict[str, tuple[Path, dict[str, Any]]] = {
        "sentence-transformers": (sentence, {"max_tokens": 64}),
        "cls": (sentence, {"pooling": "cls", "max_tokens": 16}),
        "decoder": (decoder, {"max_tokens": 64}),
        "decoder, two layers, last": (decoder, {"layer": 2, "pooling": "last", "max_tokens": 16}),
        "logits": (decoder, {"space": "logits", "max_tokens": 16}),
        "windows": (sentence, {"long": "windows", "max_tokens": 16}),
    }
    return {
        name: load_encoder(model, **settings).encode(TEXTS)[:, :COLUMNS].tolist()
        for name, (model, settings) in cases.items()
    }


def rows_of_features(folder: Path) -> dict[str, Any]:
    """Return the first columns of the features of answers by pooling."""
    policy = tiny.policy(folder / "policy")
    prompts = [tiny.user(text) for text in TEXTS]
    return {
        pooling: Features(policy, 2, pooling, 24, 512)(prompts, TEXTS[::-1])[:, :COLUMNS].tolist()
        for pooling in ("last", "mean", "both")
    }


def graphs(_folder: Path) -> dict[str, Any]:
    """Return the hashes of graphs by method; the inverted file looks into every list."""
    X = np.random.default_rng(0).normal(size=(400, 12)).astype(np.float32)
    X[200:220] = X[:20]  # ties
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    found = {}
    for method in ("exact", "ivf"):
        graph = knn_graph(X, 7, method, recall_floor=1.0)
        found[method] = hashlib.sha256(
            graph.indices.tobytes() + graph.distances.tobytes()
        ).hexdigest()
    return found


def pass_counts(folder: Path) -> dict[str, Any]:
    """Return how often the tiny policy solves prompts, where every other completion does."""
    prompts = rl.write_inputs(folder, count=24)
    functions = [{"name": "tests.difficulty.graded:even", "weight": 1.0, "args": {}}]
    rl.write_reward(folder, prompts, count=24, kind="function", functions=functions)
    params = DifficultyParams(**rl.SECTIONS["difficulty"] | {"completions": 8})
    policy, reward = folder / "models/policy", folder / "models/reward"
    task = difficulty.Measurement(policy, reward, params, 5, "cpu")
    found = difficulty.measure(prompts, task, folder / "cache")
    return {name: found[name].tolist() for name in ("solved", "completions")}


RECIPES = {
    "difficulty": (difficulty.RECIPE, pass_counts),
    "embeddings": (embeddings.RECIPE, rows_of_embeddings),
    "features": (features.RECIPE, rows_of_features),
    "neighbors": (neighbors.RECIPE, graphs),
}


def recorded(name: str) -> dict[str, Any]:
    """Return what the present version of a recipe gave when it was recorded."""
    version, _ = RECIPES[name]
    found: dict[str, Any] = json.loads((FOLDER / f"{name}-{version}.json").read_text())
    return found


def record() -> None:
    """Write the values of versions that are not recorded yet."""
    FOLDER.mkdir(exist_ok=True)
    for name, (version, compute) in RECIPES.items():
        path = FOLDER / f"{name}-{version}.json"
        if not path.exists():
            with tempfile.TemporaryDirectory() as folder:
                path.write_text(json.dumps(compute(Path(folder)), indent=1) + "\n")


if __name__ == "__main__":
    record()
