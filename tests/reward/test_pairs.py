from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isodense.pipeline.errors import ArtifactError, TrainingError
from isodense.prompts.conversations import prompt_id
from isodense.prompts.deduplicate import unique_prompts
from isodense.prompts.reader import PromptSet
from isodense.reward.pairs import (
    folds_of,
    margins,
    pair_weights,
    require_any,
    require_both,
    sides,
    split_pairs,
)
from isodense.sampling.weights import load_weights
from tests.prompts.test_split import problems
from tests.rl import make_pairs, write_density, write_inputs
from tests.tiny import user


def test_pairs_go_with_their_prompts_split():
    pairs = make_pairs(3)
    splits = [(pairs[0], "train"), (pairs[1], "heldout")]
    rows = [{"id": prompt_id(pair["prompt"]), "split": split} for pair, split in splits]
    parts = split_pairs(pairs, PromptSet(rows))
    assert parts == {"train": [pairs[0]], "heldout": [pairs[1]], "unknown": [pairs[2]]}
    require_both(parts)
    with pytest.raises(TrainingError, match=r"raise prompts\.heldout"):
        require_both(split_pairs(pairs, PromptSet(rows[:1])))
    with pytest.raises(TrainingError, match="dvc repro prompts"):
        require_both(split_pairs(pairs, PromptSet(rows[1:])))


@pytest.mark.parametrize("kind", ["head", "full"])
def test_a_kind_that_is_fitted_on_pairs_needs_some(kind: str):
    with pytest.raises(TrainingError, match=f"kind {kind} needs preference pairs, this data has"):
        require_any(kind, [])
    require_any(kind, make_pairs(1))
    require_any("function", [])


def test_near_duplicates_are_in_one_fold():
    edits = ("", "Hello! ")
    texts = [edit + text for text in problems(50) for edit in edits]
    pairs = [{**make_pairs(1)[0], "prompt": user(text)} for text in texts]
    prompts = unique_prompts(pairs, 0.0)
    folds = folds_of(pairs, prompts, 0.5).reshape(50, 2)
    assert (folds[:, 0] == folds[:, 1]).all()
    assert set(folds.ravel().tolist()) == set(range(5))
    apart = folds_of(pairs, prompts, None).reshape(50, 2)
    assert (apart[:, 0] != apart[:, 1]).mean() > 0.5
    assert folds_of([], prompts, 0.5).tolist() == []


def test_margins_are_chosen_less_rejected():
    pairs = make_pairs(5)
    prompts, answers = sides(pairs)
    assert prompts == [pair["prompt"] for pair in pairs] * 2
    scores = np.array([text.endswith(".") for text in answers], dtype=np.float32)
    assert margins(scores).tolist() == [1.0] * 5
    assert margins(scores).dtype == np.float64


def test_a_prompts_weight_is_shared_by_its_pairs(tmp_path: Path):
    prompts = write_inputs(tmp_path)
    weights = load_weights(tmp_path / "data/density")
    train = set(prompts.split("train").ids)
    pairs = [pair for pair in make_pairs(60) if prompt_id(pair["prompt"]) in train]
    once = pair_weights(pairs, prompts, weights)
    assert once.mean() == pytest.approx(1)
    np.testing.assert_allclose(once / once.sum(), weights.weights, rtol=1e-6)
    thrice = pair_weights([pairs[0], pairs[0], *pairs], prompts, weights)
    assert thrice.mean() == pytest.approx(1)
    np.testing.assert_allclose(thrice[:3], thrice[0])
    assert thrice[:3].sum() / thrice[3] == pytest.approx(once[0] / once[1])
    assert pair_weights(pairs, prompts, None).tolist() == [1.0] * len(pairs)


def test_weights_of_other_prompts_are_refused(tmp_path: Path):
    prompts = write_inputs(tmp_path)
    write_density(tmp_path / "data/density", PromptSet(prompts.rows[1:]))
    weights = load_weights(tmp_path / "data/density")
    with pytest.raises(ArtifactError, match="the weights belong to other prompts"):
        pair_weights(make_pairs(1), prompts, weights)
