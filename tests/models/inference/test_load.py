"""Nothing of a model is run, and none of its weights is dropped without a word."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from isodense.embeddings.encoder import load_encoder
from isodense.embeddings.logits import load_head
from isodense.models.inference.backbone import load_backbone
from isodense.models.inference.load import read_config, read_model
from isodense.models.inference.policy import context_length, load_policy, load_tokenizer
from isodense.models.params import ModelParams
from isodense.models.publish import publish
from isodense.pipeline.errors import ModelError
from isodense.reward.scoring.classifier import load_model
from isodense.reward.scoring.hidden_states import Features
from isodense.reward.trl import start
from isodense.train.grpo import check_policy
from tests import tiny
from tests.damage import reseal

CODE = "from pathlib import Path\nPath(__file__).with_name('CODE_RAN').touch()\n"
CLASSES = {"AutoConfig": "m.Config", "AutoModel": "m.Model", "AutoModelForCausalLM": "m.Model"}
READERS = {
    "config": read_config,
    "tokenizer": load_tokenizer,
    "context": context_length,
    "policy": load_policy,
    "backbone": lambda folder: load_backbone(folder, None, "embeddings.layer"),
    "encoder": lambda folder: load_encoder(folder, max_tokens=64),
    "head": load_head,
    "reward model": lambda folder: load_model(folder, "cpu"),
    "reward start": lambda folder: start(folder, 0),
    "trainer": check_policy,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a policy that comes with code, before a user who says yes to everything."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    made = tiny.policy(tmp_path / "policy")
    (made / "m.py").write_text(CODE)
    tiny.edit(made / "config.json", auto_map=CLASSES)
    return made


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_runs_the_code_of_an_unknown_model(folder, reader):
    tiny.edit(folder / "config.json", model_type="evilmodel")
    with pytest.raises(ModelError, match=r"needs code of its own \(model_type 'evilmodel'"):
        READERS[reader](folder)
    assert not list(folder.rglob("CODE_RAN"))


def test_the_models_stage_refuses_it_and_publishes_nothing(folder, tmp_path):
    tiny.edit(folder / "config.json", model_type="evilmodel")
    model = ModelParams(source="folder", name=str(folder), version=None, sha256=None, path=None)
    with pytest.raises(ModelError, match="isodense never runs"):
        publish("policy", model, tmp_path / "out", tmp_path / "cache")
    assert not (tmp_path / "out").exists()


def test_of_a_known_model_the_code_is_left_alone(folder):
    load_policy(folder)
    load_backbone(folder, 2, "reward.layer")
    load_tokenizer(folder)
    assert not list(folder.rglob("CODE_RAN"))


def test_a_tokenizer_that_is_code_is_refused(folder):
    tiny.edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["m.Tokenizer", None]})
    load_tokenizer(folder)  # tokenizer.json says all that the code would
    (folder / "tokenizer.json").unlink()
    reseal(folder)
    with pytest.raises(ModelError, match="tokenizer that needs code"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "reader", [name for name in READERS if name not in ("config", "context", "tokenizer")]
)
def test_weights_that_the_architecture_does_not_know_are_named(tmp_path, reader):
    folder = tiny.policy(tmp_path / "policy")
    tiny.edit(folder / "config.json", num_labels=1)
    tiny.add_weight(folder, "model.layers.0.mlp.gated.weight")
    with pytest.raises(ModelError, match=r"1 weights that \w+ does not know: .*mlp\.gated\.weight"):
        READERS[reader](folder)


def test_of_an_encoder_too(tmp_path):
    folder = tiny.encoder(tmp_path / "encoder")
    for name in ("embeddings.position_ids", "pooler.extra.weight"):  # old buffer, never used
        tiny.add_weight(folder, name)
    load_encoder(folder, max_tokens=64)
    tiny.add_weight(folder, "encoder.layer.0.gate.weight")
    with pytest.raises(ModelError, match=r"does not know: encoder\.layer\.0\.gate\.weight"):
        load_encoder(folder, max_tokens=64)


def test_heads_and_deeper_blocks_are_left_out_of_a_backbone(tmp_path):
    config = json.loads((tiny.policy(tmp_path / "policy") / "config.json").read_text())
    untied = LlamaConfig(**config | {"tie_word_embeddings": False})
    LlamaForCausalLM(untied).save_pretrained(tmp_path / "untied")
    assert len(load_backbone(tmp_path / "untied", 2, "reward.layer")[0].layers) == 2
    sizes = {"num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
    masked = BertForMaskedLM(BertConfig(vocab_size=300, num_hidden_layers=2, **sizes))
    masked.save_pretrained(tmp_path / "masked")
    load_backbone(tmp_path / "masked", 1, "embeddings.layer")


@pytest.mark.parametrize("reader", ["policy", "trainer"])
def test_a_policy_that_is_not_whole_is_refused(tmp_path, reader):
    config = json.loads((tiny.policy(tmp_path / "policy") / "config.json").read_text())
    untied = LlamaConfig(**config | {"tie_word_embeddings": False})
    LlamaForCausalLM(untied).model.save_pretrained(tmp_path / "headless")
    tiny.edit(tmp_path / "headless/config.json", architectures=["LlamaForCausalLM"])
    with pytest.raises(ModelError, match=r"lacks 1 weights, first lm_head\.weight"):
        READERS[reader](tmp_path / "headless")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.vision_policy(tmp_path_factory.mktemp("vision") / "policy")


@pytest.mark.parametrize("layer", [1, 3, None])
def test_blocks_of_a_model_that_also_sees_are_those_of_its_language_model(seeing, layer):
    whole = AutoModel.from_pretrained(seeing).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        states = whole(input_ids=ids, output_use_cache=False, output_hidden_states=True)
        states = states.hidden_states[layer or -1]
    model, block = load_backbone(seeing, layer, "reward.layer")
    kept: list[torch.Tensor] = []
    block.register_forward_hook(
        lambda _module, _inputs, output: kept.append(
            output[0] if isinstance(output, tuple) else output
        )
    )
    with torch.inference_mode():
        last = model(input_ids=ids).last_hidden_state
    found = last if layer is None else kept[0]
    torch.testing.assert_close(found, states)
    with pytest.raises(ModelError, match="has 4 layers"):
        load_backbone(seeing, 5, "reward.layer")


def test_a_policy_that_also_sees_has_features_and_a_context(seeing):
    assert context_length(seeing) == 256
    features = Features(seeing, 4, "both", 64, 512)
    asked, answered = (
        [tiny.user(text) for text in ("Name three colours.", "red?")],
        ["red", "a cat"],
    )
    together = features(asked, answered)
    alone = np.concatenate([features([a], [b]) for a, b in zip(asked, answered, strict=True)])
    assert together.shape == (2, 64)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert Features(seeing, 2, "both", 64, 512)(asked, answered).shape == (2, 64)
    load_policy(seeing)


def test_a_config_without_a_number_of_layers_is_one_clear_error(tmp_path, monkeypatch):
    folder = tiny.policy(tmp_path / "policy")
    config = read_config(folder)
    text = type("Text", (), {})()
    monkeypatch.setattr(type(config), "get_text_config", lambda *_, **__: text)
    with pytest.raises(ModelError, match="does not say how many layers"):
        load_backbone(folder, 2, "reward.layer")


def test_read_model_says_what_is_missing(tmp_path):
    folder = tiny.policy(tmp_path / "policy")
    model, missing = read_model(AutoModelForCausalLM, folder, dtype="auto")
    assert (model.dtype, missing) == (torch.float32, [])
