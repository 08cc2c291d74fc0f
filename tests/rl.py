"""Small complete inputs of the reward, train and evaluate stages, on the tiny policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from isodense.artifacts import ids_sha256, publishing, write_manifest
from isodense.prompts import unique_prompts
from isodense.promptset import FILE, PromptSet
from isodense.records import write_jsonl
from isodense.weights import DENSITY, HELDOUT_DENSITY, IDS, WEIGHTS
from tests.tiny import WORDS, policy, user


def make_pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return pairs whose chosen answer ends in a full stop and whose rejected one does not."""
    rng = np.random.default_rng(seed)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(low, high)))

    return [
        {
            "id": f"{number:032x}",
            "prompt": user(f"{words(1, 6)} {number}?"),
            "chosen": [{"role": "assistant", "content": f"{words(2, 7)}."}],
            "rejected": [{"role": "assistant", "content": words(2, 7)}],
            "source": "test",
        }
        for number in range(count)
    ]


def write_inputs(folder: Path, count: int = 60, heldout: float = 0.3) -> PromptSet:
    """Write ``data/pairs``, ``data/prompts``, ``data/density`` and ``models/policy``."""
    pairs = make_pairs(count)
    prompts = unique_prompts(pairs, heldout)
    with publishing(folder / "data/pairs") as made:
        write_jsonl(made / "pairs.jsonl", pairs)
        write_manifest(
            made, "download", rows=count, ids_sha256=ids_sha256(pair["id"] for pair in pairs)
        )
    with publishing(folder / "data/prompts") as made:
        write_jsonl(made / FILE, prompts.rows)
        write_manifest(made, "prompts", rows=len(prompts), ids_sha256=prompts.ids_sha256)
    write_density(folder / "data/density", prompts)
    policy(folder / "models/policy")
    return prompts


def write_density(folder: Path, prompts: PromptSet) -> None:
    """Write weights that fall with the row number."""
    train, heldout = prompts.split("train"), prompts.split("heldout")
    density = np.linspace(0, 2, len(train), dtype=np.float32)
    weights = np.exp(-density.astype(np.float64))
    with publishing(folder) as made:
        np.save(made / WEIGHTS, (weights / weights.sum()).astype(np.float32))
        np.save(made / DENSITY, density)
        np.save(made / IDS, np.array(train.ids, dtype="S32"))
        np.save(made / HELDOUT_DENSITY, np.linspace(0, 2, len(heldout), dtype=np.float32))
        write_manifest(made, "density", rows=len(train), ids_sha256=train.ids_sha256)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file under `folder`."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
