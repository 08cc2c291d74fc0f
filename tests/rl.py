"""Small complete inputs of the reward, train and evaluate stages, on the tiny policy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from isodense.pipeline.params import as_dict
from isodense.prompts.deduplicate import unique_prompts
from isodense.prompts.reader import PromptSet
from isodense.reward.fit import fit
from isodense.reward.params import RewardParams
from tests.density.vectors import PARAMS
from tests.tables import write_examples, write_prompts
from tests.tiny import WORDS, policy, user
from tests.weights import write_weights

ROOT = Path(__file__).parents[1]
SECTIONS: dict[str, dict[str, Any]] = {
    "base": {"seed": 0, "device": "cpu"},
    "density": as_dict(PARAMS),
    "reward": {
        "kind": "head",
        "sampling": "uniform",
        "layer": 2,
        "pooling": "both",
        "max_tokens": 128,
        "l2": 0.01,
        "batch_tokens": 2048,
        "full": {"epochs": 1.0, "batch_size": 8, "learning_rate": 0.001, "trainer": {}},
        "model": {"source": None, "name": None, "version": None},
        "functions": [],
        "solved_above": 0.5,
        "check": {
            "prompts": 8,
            "num_generations": 4,
            "max_completion_tokens": 6,
            "temperature": 1.0,
        },
    },
    "difficulty": {
        "completions": 0,
        "column": None,
        "max_completion_tokens": 6,
        "temperature": 1.0,
        "batch_tokens": 512,
    },
    "train": {
        "sampling": "density",
        "replacement": True,
        "uniform_share": 0.0,
        "difficulty_floor": 0.0,
        "redraw": None,
        "seed": 0,
        "max_steps": 2,
        "prompts_per_step": 2,
        "num_generations": 4,
        "completions_per_pass": 8,
        "max_prompt_tokens": 64,
        "max_completion_tokens": 6,
        "learning_rate": 0.01,
        "beta": 0.0,
        "temperature": 1.0,
        "save_steps": 100,
        "on_weak_reward": "error",
        "report_to": ["dvclive"],
        "lora": None,
        "grpo": {},
    },
    "evaluate": {
        "max_prompts": 8,
        "answer": None,
        "num_generations": 2,
        "max_completion_tokens": 6,
        "temperature": 1.0,
        "batch_tokens": 512,
    },
}
FLAGS = {
    "reward": "--examples data/examples --prompts data/prompts --policy models/policy "
    "--density data/density --raw models/raw --rewards rewards --out models/reward "
    "--metrics reports/metrics/reward.json",
    "difficulty": "--prompts data/prompts --policy models/policy --reward models/reward "
    "--out data/difficulty --metrics reports/metrics/difficulty.json",
    "train": "--prompts data/prompts --density data/density --difficulty data/difficulty "
    "--policy models/policy "
    "--reward models/reward --out models/grpo --metrics reports/train/metrics.json "
    "--plots reports/train/plots/metrics --realised reports/train/realised.csv",
    "evaluate": "--prompts data/prompts --density data/density --policy models/policy "
    "--trained models/grpo --reward models/reward --encoder models/encoder "
    "--metrics reports/metrics/evaluate.json --deciles reports/plots/reward_by_decile.csv "
    "--labels reports/plots/reward_by_label.csv "
    "--completions reports/completions.jsonl",
}


def run_stage(
    stage: str, folder: Path, **changes: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    """Run a stage as DVC does, in `folder`; `changes` go into the sections of params.yaml."""
    sections = {name: section | changes.get(name, {}) for name, section in SECTIONS.items()}
    (folder / "params.yaml").write_text(yaml.safe_dump(sections))
    return subprocess.run(
        [sys.executable, ROOT / f"stages/{stage}.py", *FLAGS[stage].split()],
        cwd=folder,
        env={**os.environ, "CI": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


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


def write_inputs(
    folder: Path,
    count: int = 60,
    heldout: float = 0.3,
    pairs: int | None = None,
    **columns: Callable[[int], Any],
) -> PromptSet:
    """Write ``data/examples``, ``data/prompts``, ``data/density`` and ``models/policy``.

    The first `pairs` examples (by default all) have answers; `columns` give each prompt the values
    of further columns, by its row number.
    """
    examples = make_pairs(count)
    prompts = unique_prompts(examples, heldout)
    for number, row in enumerate(prompts.rows):
        row.update({name: value(number) for name, value in columns.items()})
    write_examples(folder / "data/examples", examples[:pairs])
    write_prompts(folder / "data/prompts", prompts.rows)
    write_density(folder / "data/density", prompts)
    policy(folder / "models/policy")
    return prompts


def reward_params(**changes: Any) -> RewardParams:
    """Return the params of the reward stage, with `changes`."""
    return RewardParams(**(SECTIONS["reward"] | changes))


def write_reward(folder: Path, prompts: PromptSet, count: int = 60, **changes: Any) -> None:
    """Make ``models/reward`` from the inputs of `write_inputs`, with `changes` of its params."""
    policy, reward = folder / "models/policy", folder / "models/reward"
    settings = reward_params(**changes)
    pairs = make_pairs(count)
    fit(pairs, prompts, policy, settings, 0, "cpu", folder / ".cache/isodense", {}, reward)


def write_density(folder: Path, prompts: PromptSet) -> None:
    """Write weights that fall with the row number."""
    train, heldout = prompts.split("train"), prompts.split("heldout")
    density = np.linspace(0, 2, len(train), dtype=np.float32)
    weights = np.exp(-density.astype(np.float64))
    values = np.linspace(0, 2, len(heldout))
    write_weights(folder, train.ids, weights, density, values, heldout_ids=heldout.ids)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file under `folder`."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
