"""How often prompts are drawn by density, all alike, or by occurrences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isodense.pipeline.errors import ArtifactError, TrainingError
from isodense.prompts.reader import PromptSet
from isodense.sampling.schemes import prompt_weights
from isodense.sampling.weights import load_weights
from tests.rl import write_inputs


def test_weights_of_other_prompts_are_refused(tmp_path: Path):
    prompts = write_inputs(tmp_path).split("train")
    weights = load_weights(tmp_path / "data/density")
    assert np.array_equal(prompt_weights(prompts, weights, "density"), weights.weights)
    asked = [row | {"count": number} for number, row in enumerate(prompts.rows, start=1)]
    assert prompt_weights(PromptSet(asked), weights, "count").tolist() == [
        *range(1, len(prompts) + 1)
    ]
    assert set(prompt_weights(PromptSet(asked), weights, "uniform").tolist()) == {1.0}
    other = PromptSet(prompts.rows[::-1])
    for sampling in ("density", "uniform"):
        with pytest.raises(ArtifactError, match=r"the weights belong to(.|\n)*dvc repro density"):
            prompt_weights(other, weights, sampling)
    with pytest.raises(TrainingError, match=r"no prompt is left to train on\n.*lower "):
        prompt_weights(PromptSet([]), weights, "density")


def test_the_inverted_scheme_draws_what_is_crowded(tmp_path: Path):
    prompts = write_inputs(tmp_path).split("train")
    weights = load_weights(tmp_path / "data/density")
    odds = prompt_weights(prompts, weights, "inverted")
    np.testing.assert_allclose(odds * weights.weights.astype(np.float64), 1, rtol=1e-15)
    assert odds.argmax() == weights.weights.argmin()


def test_the_label_scheme_gives_each_label_the_same_mass(tmp_path: Path):
    prompts = write_inputs(tmp_path).split("train")
    weights = load_weights(tmp_path / "data/density")
    labels = np.array(["rare"] + ["common"] * (len(prompts) - 1))
    rows = [row | {"label": str(label)} for row, label in zip(prompts.rows, labels, strict=True)]
    odds = prompt_weights(PromptSet(rows), weights, "label")
    assert odds[labels == "rare"].sum() == pytest.approx(odds[labels == "common"].sum())
    assert len(set(odds[labels == "common"])) == 1
    missing = PromptSet([rows[0] | {"label": None}, *rows[1:]])
    with pytest.raises(TrainingError, match=rf", and 1 of {len(prompts)} prompts have no label\n"):
        prompt_weights(missing, weights, "label")
