"""How difficulty enters the draws: most for what is solved half of the time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from isodense.difficulty.artifact import publish, publish_empty
from isodense.difficulty.params import DifficultyParams
from isodense.pipeline.errors import ArtifactError, TrainingError
from isodense.prompts.reader import PromptSet
from isodense.sampling.difficulty import load_difficulty, signal
from isodense.sampling.draw import draw
from isodense.sampling.schemes import prompt_weights
from isodense.sampling.weights import load_weights
from tests.rl import SECTIONS, write_inputs

PARAMS = DifficultyParams(**SECTIONS["difficulty"] | {"completions": 8})


def write(folder: Path, prompts: PromptSet, solved: list[int], of: int) -> Path:
    counts = np.array(solved, dtype=np.int32)
    publish(prompts, counts, np.full(len(counts), of, dtype=np.int32), PARAMS, {}, folder)
    return folder


def test_prompts_solved_half_of_the_time_are_drawn_most_and_hard_as_often_as_easy():
    found = signal(np.array([0, 2, 4, 6, 8]), np.full(5, 8), 0.0)
    assert np.argmax(found) == 2
    assert found[2] == 1
    np.testing.assert_allclose(found, found[::-1])
    assert found[0] < found[1] < found[2]
    # many completions leave little to the prior: p = 0.9 has 4 × 0.9 × 0.1 = 0.36
    assert signal(np.array([9000]), np.array([10000]), 0.0)[0] == pytest.approx(0.36, abs=5e-4)
    assert signal(np.array([0, 500]), np.array([1000, 1000]), 0.2).tolist() == [0.2, 1.0]
    assert signal(np.array([0]), np.array([0]), 0.0).tolist() == [1.0]


def test_each_factor_alone_and_their_product(tmp_path: Path):
    prompts = write_inputs(tmp_path).split("train")
    density = load_weights(tmp_path / "data/density")
    solved = [number % 9 for number in range(len(prompts))]
    difficulty = load_difficulty(write(tmp_path / "difficulty", prompts, solved, of=8))
    alone = prompt_weights(prompts, density, "difficulty", difficulty, 0.1)
    both = prompt_weights(prompts, density, "density+difficulty", difficulty, 0.1)
    np.testing.assert_allclose(both / density.weights, alone)
    assert prompt_weights(prompts, density, "difficulty", difficulty)[0] == alone[0] < 1
    assert alone[4] == 1 > alone[3] > alone[0]
    np.testing.assert_allclose(alone[:9], alone[8::-1])
    drawn = np.bincount(draw(both, 20_000, seed=0), minlength=len(prompts)) / 20_000
    np.testing.assert_allclose(drawn, both / both.sum(), atol=0.02)
    other = PromptSet(prompts.rows[::-1])
    with pytest.raises(ArtifactError, match="belong to other prompts"):
        prompt_weights(other, density, "difficulty", difficulty)


def test_difficulty_that_was_not_measured_or_cannot_be_is_refused(tmp_path: Path):
    publish_empty(tmp_path / "off")
    with pytest.raises(TrainingError, match=r"not measured\n.*set difficulty\.completions"):
        load_difficulty(tmp_path / "off")
    prompts = write_inputs(tmp_path).split("train")
    folder = write(tmp_path / "difficulty", prompts, [9] * len(prompts), of=8)
    with pytest.raises(ArtifactError, match=r"solved more often than answered.*\n  -> run"):
        load_difficulty(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"rows": 1}))
    with pytest.raises(ArtifactError, match=r"does not hold 1 values.*\n  -> .*difficulty"):
        load_difficulty(folder)
