"""isodense: sampling weights inverse to local density, for RL fine-tuning of language models.

Public names are imported on first use, so that ``import isodense`` costs nothing and a stage
depends only on the modules that it uses.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

if sys.platform == "win32":  # folders are locked with flock
    raise ImportError("isodense runs on Linux and macOS. On Windows, install it in WSL.")

# OpenMP's threads wait for each other by spinning, 300,000 times by default. On a machine whose
# processors others use too, they spin away the time slices that the awaited thread needs: training
# and embedding then take 6 to 8 times as long. It is read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"

_EXPORTS = {
    "draw": "isodense.sampling.draw",
    "DistributedWeightedSampler": "isodense.sampling.draw",
    "select": "isodense.sampling.draw",
    "load_weights": "isodense.sampling.load",
    "Weights": "isodense.sampling.weights",
    "Graph": "isodense.neighbors.graph",
    "knn_graph": "isodense.neighbors.build",
    "density_weights": "isodense.density.estimate",
    "load_encoder": "isodense.embeddings.encoder",
    "Encoder": "isodense.embeddings.encoder",
    "weigh": "isodense.weighing.weigh",
    "Weighed": "isodense.weighing.result",
    "IsodenseError": "isodense.pipeline.errors",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'isodense' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
