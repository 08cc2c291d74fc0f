"""What is published is what was trained: all of it, in the policy's dtype, and changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from isodense.pipeline.artifact import write_manifest
from isodense.pipeline.errors import TrainingError
from isodense.sampling.weights import load_weights
from isodense.train import grpo
from isodense.train.grpo import has_changed, merge_adapter
from isodense.train.params import TrainParams
from isodense.train.train import train
from tests import tiny
from tests.damage import reseal
from tests.rl import SECTIONS, write_inputs

WEIGHTS = "model.safetensors"
LORA = {"r": 4, "target_modules": "all-linear"}
VISION = {"r": 4, "target_modules": ["q_proj", "v_proj", "in_proj_qkv", "up_proj"]}


def length(rows, completions) -> np.ndarray:
    return np.array([len(text) for text in completions], dtype=np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("grpo")
    prompts = write_inputs(folder).split("train")
    tiny.vision_policy(folder / "models/vision")
    half = shutil.copytree(folder / "models/policy", folder / "models/half")
    LlamaForCausalLM.from_pretrained(half).to(torch.bfloat16).save_pretrained(half)
    write_manifest(half, "models", role="policy")
    return folder, prompts


def run(world, policy: str, reward=length, **changes: object) -> tuple[Path, dict, dict]:
    """Train a policy; return the result's folder, and both policies' tensors."""
    folder, prompts = world
    out = folder / f"{policy}-{len(list(folder.iterdir()))}"
    train(
        prompts,
        (weights := load_weights(folder / "data/density")).weights,
        weights.density,
        lambda device: SimpleNamespace(score=reward),
        folder / "models" / policy,
        TrainParams(**(SECTIONS["train"] | changes)),  # type: ignore[arg-type]
        seed=1,
        device="cpu",
        cache=folder / "cache",
        inputs={
            "policy": {"kind": "models", "files": {"name": policy}},
            "reward": {"kind": "reward", "name": reward.__name__},
        },
        out=out / "models/grpo",
        live=out / "reports/train",
        table=out / "reports/train" / "realised.csv",
    )
    made = out / "models/grpo"
    return made, load_file(folder / "models" / policy / WEIGHTS), load_file(made / WEIGHTS)


def changed(before: dict, after: dict) -> list[str]:
    return [name for name in before if not torch.equal(before[name], after[name])]


def test_lora_of_a_policy_that_also_sees_is_in_what_is_published(world):
    (world[0] / "models/vision/preprocessor_config.json").write_text("{}")
    reseal(world[0] / "models/vision")
    made, before, after = run(world, "vision", lora=VISION)
    assert before.keys() == after.keys()
    moved = changed(before, after)
    assert moved
    assert all("language_model" in name for name in moved)
    assert any(".visual." in name for name in after)
    config = json.loads((made / "config.json").read_text())
    assert config["architectures"] == ["Qwen3_5ForConditionalGeneration"]
    assert (made / "preprocessor_config.json").is_file()


def test_the_merge_is_the_policy_and_the_adapters_product(world):
    made, before, after = run(world, "vision", lora=VISION)
    adapter = load_file(made / "adapter/adapter_model.safetensors")
    for name in changed(before, after):
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        product = adapter[f"{key}B.weight"] @ adapter[f"{key}A.weight"]
        scale = json.loads((made / "adapter/adapter_config.json").read_text())["lora_alpha"] / 4
        torch.testing.assert_close(after[name], before[name] + scale * product)


def test_an_adapter_that_cannot_be_merged_as_it_was_trained_is_refused(world):
    """The embeddings are tied: merged into them, the adapter would change the head, too."""
    with pytest.raises(TrainingError, match="the adapter gives another model"):
        run(world, "policy", lora={"target_modules": ["embed_tokens"], "r": 4, "lora_alpha": 64})


def test_an_adapter_is_trained_beside_layers_of_onednn_alike(world, monkeypatch):
    packed, plain = [], []
    monkeypatch.setattr(grpo, "prepack_frozen", packed_by(grpo.prepack_frozen, packed))
    onednn, *_ = run(world, "policy", lora=LORA)
    monkeypatch.setattr(grpo, "prepack_frozen", packed_by(lambda _: None, plain))
    torchs, *_ = run(world, "policy", lambda *both: length(*both), lora=LORA)  # of its own cache
    assert plain == [0]
    assert packed == [7 * 3 + 1 if torch.backends.mkldnn.is_available() else 0]  # and lm_head
    for name in ("adapter/adapter_model.safetensors", WEIGHTS):
        wanted, found = load_file(torchs / name), load_file(onednn / name)
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5)


def test_an_adapter_of_parameters_is_trained_on_a_cpu(world):
    lora = LORA | {"target_modules": ["up_proj"], "target_parameters": ["q_proj.weight"]}
    made, *_ = run(world, "policy", lora=lora)
    adapter = load_file(made / "adapter/adapter_model.safetensors")
    trained = [key for key, value in adapter.items() if "lora_B" in key and value.abs().sum() > 0]
    assert any("q_proj" in key or "self_attn" in key for key in trained), sorted(adapter)


def test_an_adapter_that_autocast_trained_is_published(world):
    made, before, after = run(world, "policy", lora=LORA, grpo={"bf16": True})
    assert (made / "adapter").is_dir()
    assert changed(before, after)


def packed_by(pack, counts):
    def counted(model):
        pack(model)
        layers = [layer for layer in model.modules() if type(layer) is torch.nn.Linear]
        counts.append(sum("forward" in vars(layer) for layer in layers))

    return counted


@pytest.mark.parametrize("lora", [LORA, None])
def test_a_bfloat16_policy_comes_out_bfloat16(world, lora):
    made, before, after = run(world, "half", lora=lora)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert json.loads((made / "config.json").read_text())["dtype"] == "bfloat16"
    assert before.keys() == after.keys()
    assert changed(before, after)


@pytest.mark.parametrize("lora", [LORA, None])
def test_rewards_that_never_differ_leave_the_policy_and_say_so(world, lora, caplog):
    def same(rows, completions) -> np.ndarray:
        return np.zeros(len(completions), dtype=np.float32)

    made, before, after = run(world, "policy", same, lora=lora)
    assert not changed(before, after)
    assert json.loads((made / "manifest.json").read_text())["changed"] is False
    metrics = json.loads((made.parents[1] / "reports/train/metrics.json").read_text())["train"]
    assert (metrics["changed"], metrics["steps_with_signal"]) == (0, 0)
    assert "the rewards of every group were equal in all 2 steps" in caplog.text


def test_a_signal_that_changes_nothing_is_an_error(world):
    with pytest.raises(TrainingError, match=r"changed no weight(?s:.)*train\.learning_rate"):
        run(world, "policy", learning_rate=1e-50)


def test_a_learning_rate_of_zero_asks_for_no_change(world):
    _, before, after = run(world, "policy", learning_rate=0.0)
    assert not changed(before, after)


def test_one_changed_weight_is_a_change(tmp_path):
    before, after = tiny.policy(tmp_path / "before"), tiny.policy(tmp_path / "after")
    assert not has_changed(before, after)
    tensors = load_file(after / WEIGHTS)
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, after / WEIGHTS, metadata={"format": "pt"})
    assert has_changed(before, after)


@pytest.mark.parametrize("fault", ["missing", "unexpected"])
def test_an_adapter_of_another_model_is_not_merged(world, tmp_path, fault):
    made, *_ = run(world, "policy", lora=LORA)
    adapter = shutil.copytree(made / "adapter", tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    first = sorted(tensors)[0]
    if fault == "missing":
        del tensors[first]
    else:
        tensors[first.replace("layers.0", "layers.7")] = tensors[first].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=f"does not fit LlamaForCausalLM(?s:.)*1 {fault}"):
        merge_adapter(LlamaForCausalLM, world[0] / "models/policy", adapter)
