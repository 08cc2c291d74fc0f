"""What fails with the policy in a later stage is said before the first long one."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from isodense.preflight import trial
from isodense.preflight.checks import Finding
from isodense.preflight.inputs import Inputs, read_inputs
from tests import tiny
from tests.architectures import checkpoint
from tests.preflight.test_preflight import Project


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    project = Project(root)
    tiny.encoder(root / "encoder")
    project.configure()
    return root


@pytest.fixture
def inputs(made: Path) -> Inputs:
    names = ("examples", "prompts", "encoder", "policy")
    return read_inputs(made / "params.yaml", *(made / name for name in names))


def found(inputs: Inputs, cache: Path, launched: bool = False) -> list[Finding]:
    return list(trial.try_policy(inputs, "cpu", cache, launched))


def with_train(inputs: Inputs, **changes: object) -> Inputs:
    return replace(inputs, train=inputs.train.model_copy(update=changes))


def test_a_policy_that_fits_is_tried_once(inputs: Inputs, tmp_path: Path, monkeypatch):
    assert found(inputs, tmp_path) == []
    monkeypatch.setattr(trial, "try_completions", lambda *_: pytest.fail("tried again"))
    assert found(inputs, tmp_path) == []
    with pytest.raises(pytest.fail.Exception):
        found(with_train(inputs, beta=0.1), tmp_path, launched=True)


def test_modules_that_the_policy_lacks_are_said_before_training(inputs: Inputs, tmp_path: Path):
    wrong = with_train(inputs, lora={"r": 2, "target_modules": ["query_key_value"]})
    (finding,) = found(wrong, tmp_path)
    assert (finding.level, finding.stage) == ("problem", "train")
    assert "query_key_value" in finding.text
    assert "train.lora" in finding.hint
    assert len(found(wrong, tmp_path)) == 1  # what failed is tried again
    assert found(wrong, tmp_path, launched=True) == []  # there it is the launcher's processes'


def test_a_tracker_has_to_be_installed_and_is_told_nothing_of_a_trial(
    inputs: Inputs, tmp_path: Path, monkeypatch
):
    tracked = with_train(inputs, report_to=["dvclive", "mlflow"])
    real, told = importlib.util.find_spec, []
    monkeypatch.setattr(
        "isodense.train.grpo.make_trainer", lambda *given: told.append(given[2].report_to)
    )
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "mlflow" else real(name, *a)
    )
    found(tracked, tmp_path)
    assert not told
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: name == "mlflow" or real(name, *rest)
    )
    found(tracked, tmp_path)
    assert told == [[]]


def test_a_layer_that_is_not_there_is_said(inputs: Inputs, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(trial, "try_step", lambda *_: None)
    deep = replace(inputs, reward=inputs.reward.model_copy(update={"layer": 9}))
    (finding,) = found(deep, tmp_path)
    assert finding.stage == "reward"
    assert "reward.layer = 9, but" in finding.text
    assert finding.hint == "set reward.layer to 1 … 3"


def test_a_reward_that_trains_all_weights_is_started(inputs: Inputs, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(trial, "try_step", lambda *_: None)
    full = replace(inputs, reward=inputs.reward.model_copy(update={"kind": "full"}))
    assert found(full, tmp_path / "cache") == []
    refused = replace(full, policy=checkpoint(tmp_path / "mamba", "mamba"))
    assert [one.stage for one in found(refused, tmp_path / "cache")] == ["reward"]


@pytest.mark.parametrize(
    ("kind", "stage", "said"),
    [
        ("phimoe", "train", "fails in a trial of the stage with AttributeError: 'PhimoeConfig'"),
        ("rwkv", "evaluate", "generates other tokens than its own logits make likeliest"),
        ("bart", "evaluate", "is an encoder-decoder (bart), which TRL does not train"),
    ],
)
def test_an_architecture_that_a_stage_fails_with_is_refused_in_a_line(
    inputs: Inputs, tmp_path: Path, kind: str, stage: str, said: str
):
    policy = checkpoint(tmp_path / kind, kind)
    lines = {one.stage: one for one in found(replace(inputs, policy=policy), tmp_path / "cache")}
    assert said in lines[stage].text
    assert "\n" not in lines[stage].text
    assert lines[stage].hint


def test_the_encoder_is_tried_as_evaluate_loads_it(inputs: Inputs, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(trial, "try_step", lambda *_: None)
    broken = shutil.copytree(inputs.encoder, tmp_path / "encoder")
    tiny.edit(broken / "1_Pooling/config.json", pooling_mode_mean_tokens=False)
    (finding,) = found(replace(inputs, encoder=broken), tmp_path / "cache")
    assert finding.stage == "evaluate"
    assert "pooling" in finding.text
