from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.params import build
from isodense.train.params import OWN_FIELDS, TrainParams
from tests.rl import SECTIONS


def faults_of(**changes: Any) -> list[str]:
    with pytest.raises(IsodenseError) as caught:
        build(TrainParams, SECTIONS["train"] | changes, "train")
    return caught.value.message.split("\n  ")[1:]


def test_wrong_fields_of_grpo_and_lora_are_named_all_at_once():
    found = faults_of(
        grpo={"num_iteration": 2, "beta": 1.0, "optim": "sgd", "zzz": 0},
        lora={"lora_alfa": 8, "task_type": "CAUSAL_LM", "layer_replication": [[0, 2]]},
    )
    assert found == [
        "grpo.num_iteration is not a field of GRPOConfig (did you mean 'num_iterations'?)",
        "grpo.beta is set by train.beta",
        "grpo.zzz is not a field of GRPOConfig",
        "lora.lora_alfa is not a field of LoraConfig (did you mean 'lora_alpha'?)",
        "lora.task_type is set by the stage",
        "lora.layer_replication is set by the stage (the policy keeps its layers)",
    ]


def test_redrawing_is_with_replacement():
    assert faults_of(redraw="label", replacement=False) == [
        "redraw label needs replacement true, not false"
    ]


def test_every_own_field_is_one_of_trl():
    from trl import GRPOConfig

    assert len(OWN_FIELDS) > 20
    assert set(OWN_FIELDS) <= {field.name for field in fields(GRPOConfig)}
