from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from isodense.evaluate.heldout import Heldout, load_heldout, sample
from isodense.pipeline.errors import ArtifactError, TrainingError
from isodense.prompts.reader import PromptSet
from tests.damage import reseal
from tests.rl import write_density, write_inputs


def test_a_sample_keeps_order_and_changes_little_when_prompts_are_added():
    rng = np.random.default_rng(0)
    ids = [f"{int(value):032x}" for value in rng.integers(0, 2**62, 300)]
    rows = [{"id": identifier} for identifier in ids]
    many = Heldout(PromptSet(rows), np.arange(300, dtype=np.float32))
    few = Heldout(PromptSet(rows[:250]), np.arange(250, dtype=np.float32))
    one, other = sample(few, 50), sample(many, 50)
    assert len(set(one.prompts.ids) & set(other.prompts.ids)) > 35
    assert one.density.tolist() == [ids.index(identifier) for identifier in one.prompts.ids]
    assert np.all(np.diff(one.density) > 0)
    assert sample(few, 1000).prompts.ids == few.prompts.ids


def test_a_sample_does_not_prefer_prompts_that_are_held_out_by_their_own_ids():
    """Ids of these are small; those held out with a near-duplicate have any."""
    rng = np.random.default_rng(0)
    small = [f"{int(value):032x}" for value in rng.integers(0, 2**60, 200)]
    others = [f"{int(value):032x}" for value in rng.integers(2**60, 2**62, 200)]
    rows = [{"id": one} for pair in zip(small, others, strict=True) for one in pair]
    taken = sample(Heldout(PromptSet(rows), np.zeros(400)), 200).prompts.ids
    assert len(set(taken) & set(small)) == pytest.approx(100, abs=25)


def test_a_sample_takes_as_many_of_each_label():
    labels = ["a"] * 60 + ["b"] * 20 + ["c"] * 3 + [None] * 17
    rng = np.random.default_rng(0)
    rows = [{"id": f"{int(one):032x}", "label": label}
            for one, label in zip(rng.integers(0, 2**62, 100), labels, strict=True)]  # fmt: skip
    held = Heldout(PromptSet(rows), np.arange(100, dtype=np.float32), kinds=True)

    def taken(held: Heldout, size: int | None) -> Counter[str | None]:
        return Counter(row["label"] for row in sample(held, size).prompts.rows)

    assert taken(held, 12) == {"a": 3, "b": 3, "c": 3, None: 3}
    assert taken(held, 27) == {"a": 8, "b": 8, "c": 3, None: 8}
    assert taken(held, None) == Counter(labels)
    few, more = sample(held, 12), sample(held, 27)
    assert set(few.prompts.ids) < set(more.prompts.ids)
    assert more.density.tolist() == sorted(more.density.tolist())
    lopsided = Heldout(held.prompts, held.density, kinds=False)
    assert taken(lopsided, 50)["a"] == pytest.approx(30, abs=8)


def test_labels_come_by_the_number_of_training_prompts_and_then_by_name():
    rows = [{"id": str(place), "label": label} for place, label in enumerate("abcdda")]
    held = Heldout(
        PromptSet(rows), np.zeros(6, np.float32), True, training={"a": 9, "b": 2, "d": 2}
    )
    assert [one.tolist() for one in held.rarest_first] == [[2], [1], [3, 4], [0, 5]]


def test_training_prompts_of_a_label_are_counted_once_each(tmp_path: Path):
    prompts = write_inputs(tmp_path, label=lambda row: "even" if row % 2 == 0 else "odd")
    held = load_heldout(prompts, tmp_path / "data/density")
    train = [row["label"] for row in prompts.split("train").rows]
    assert held.training == {name: train.count(name) for name in ("even", "odd")}
    assert held.exponent == 1.0  # of the density's manifest


def test_crowded_prompts_weigh_less():
    held = Heldout(PromptSet([]), np.log(np.array([1, 4, 9], np.float32)), exponent=0.5)
    assert held.weights == pytest.approx(np.array([6, 3, 2]) / 11)


def test_an_empty_heldout_split_says_what_to_raise(tmp_path: Path):
    prompts = write_inputs(tmp_path, count=10, heldout=0.0)
    with pytest.raises(TrainingError, match=r"0 of 10(.|\n)*raise prompts\.heldout"):
        load_heldout(prompts, tmp_path / "data/density")


def test_densities_of_other_prompts_are_refused(tmp_path: Path):
    prompts = write_inputs(tmp_path)
    fewer = PromptSet(prompts.rows[:-3])
    with pytest.raises(ArtifactError, match=r"other prompts|one finite number"):
        load_heldout(fewer, tmp_path / "data/density")
    write_density(tmp_path / "density", prompts)
    values = np.full(len(prompts.split("heldout")), np.nan, dtype=np.float32)
    np.save(tmp_path / "density/heldout_density.npy", values)
    reseal(tmp_path / "density")
    with pytest.raises(ArtifactError, match="one finite number"):
        load_heldout(prompts, tmp_path / "density")
