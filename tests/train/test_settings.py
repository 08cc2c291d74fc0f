from __future__ import annotations

from pathlib import Path

import pytest

from isodense.pipeline.errors import TrainingError
from isodense.train.settings import draws_needed, make_config, resumable_every
from tests.train.test_train import section


def test_completions_must_divide_over_processes_and_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(TrainingError, match="completions_per_pass 5"):
        make_config(section(completions_per_pass=5), 0, "cpu", tmp_path)
    whole = make_config(section(completions_per_pass=64), 0, "cpu", tmp_path)
    assert (whole.per_device_train_batch_size, whole.gradient_accumulation_steps) == (16, 1)
    half = make_config(section(), 0, "cpu", tmp_path)
    assert (half.per_device_train_batch_size, half.gradient_accumulation_steps) == (8, 2)
    assert half.generation_batch_size == whole.generation_batch_size == 16
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(TrainingError, match="over 3 processes"):
        make_config(section(), 0, "cpu", tmp_path)


@pytest.mark.parametrize(
    "grpo",
    [{"lr_scheduler_type": "nonsense"}, {"num_iterations": 0}, {"num_iterations": "two"}],
)
def test_a_value_that_trl_refuses_is_an_error(tmp_path: Path, grpo: dict[str, object]):
    with pytest.raises(TrainingError, match="TRL refuses"):
        make_config(section(grpo=grpo), 0, "cpu", tmp_path)


@pytest.mark.parametrize(
    ("grpo", "expected"),
    [({}, 48), ({"num_iterations": 2}, 24), ({"num_iterations": 5}, 12)],
)
def test_a_plan_is_as_long_as_the_run(tmp_path: Path, grpo: dict[str, int], expected: int):
    assert draws_needed(make_config(section(grpo=grpo), 0, "cpu", tmp_path)) == expected


def test_checkpoints_fall_where_completions_are_drawn_anew(tmp_path: Path):
    config = make_config(section(grpo={"num_iterations": 4}, save_steps=6), 0, "cpu", tmp_path)
    assert (resumable_every(config), config.save_steps) == (4, 8)
    apart = section(grpo={"num_iterations": 3, "steps_per_generation": 2}, completions_per_pass=2)
    assert resumable_every(make_config(apart, 0, "cpu", tmp_path)) == 3
