"""Dense layers of sentence-transformers folders, in the files its version 6 writes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from isodense.embeddings.encoder import load_encoder
from isodense.pipeline.errors import ModelError
from tests import tiny
from tests.damage import reseal

TEXTS = tiny.texts(20)
KIND = "sentence_transformers.base.modules."
TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"


def add_dense(folder, number, weight, bias, activation, **settings):
    """Append a dense module to a tiny encoder's folder."""
    path = folder / f"{number}_Dense"
    path.mkdir()
    arrays = {"linear.weight": weight} | ({} if bias is None else {"linear.bias": bias})
    save_file(arrays, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"activation_function": activation, **settings}))
    append(folder, number, f"{KIND}dense.Dense", path.name)


def append(folder, number, kind, path):
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": number, "name": str(number), "path": path, "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))
    reseal(folder)


@pytest.fixture
def folder(tmp_path):
    made = tiny.encoder(tmp_path / "encoder")
    mode = {"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": True}
    (made / "1_Pooling" / "config.json").write_text(json.dumps(mode))
    return reseal(made)


def test_dense_layers_follow_the_mean(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        pooled = np.stack(
            [
                model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
                for text in TEXTS
            ]
        )
    generator = torch.Generator().manual_seed(1)
    first, bias = torch.randn(24, 32, generator=generator), torch.randn(24, generator=generator)
    second = torch.randn(16, 24, generator=generator)
    add_dense(folder, 2, first, bias, TANH)
    add_dense(folder, 3, second, None, IDENTITY)
    append(folder, 4, f"{KIND}normalize.Normalize", "4_Normalize")
    expected = np.tanh(pooled @ first.numpy().T + bias.numpy()) @ second.numpy().T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    encoder = load_encoder(folder, max_tokens=64)
    rows = encoder.encode(TEXTS)
    assert encoder.dim == 16
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert (np.stack([encoder.encode([text])[0] for text in TEXTS]) == rows).all()
    assert load_encoder(folder, layer=1, max_tokens=64).dim == 32  # not of the last layer


def test_what_is_not_known_is_refused(folder):
    weight = torch.ones(24, 32)
    add_dense(folder, 2, weight, None, "torch.nn.modules.activation.GELU")
    with pytest.raises(ModelError, match="residual or the activation GELU"):
        load_encoder(folder, max_tokens=64)
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"x")
    reseal(folder)
    with pytest.raises(ModelError, match="is not a dense layer"):
        load_encoder(folder, max_tokens=64)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([modules[0], modules[2], modules[1]]))
    reseal(folder)
    with pytest.raises(ModelError, match="in the order Transformer, Dense, Pooling"):
        load_encoder(folder, max_tokens=64)


def test_both_spellings_of_the_pooling_are_read(folder):
    for words in ({"pooling_mode": "cls"}, {"pooling_mode_cls_token": True}):
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(words))
        reseal(folder)
        rows = load_encoder(folder, max_tokens=64).encode(TEXTS)
        expected = load_encoder(folder, pooling="cls", max_tokens=64).encode(TEXTS)
        assert (rows == expected).all()
    for words in ({"pooling_mode": ["mean", "max"]}, {"pooling_mode": "weightedmean"}):
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(words))
        reseal(folder)
        with pytest.raises(ModelError, match="asks for the pooling"):
            load_encoder(folder, max_tokens=64)
