"""A row's bytes depend on its text and the model, not on its batch; padding never leaks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from isodense.encoders import load_encoder
from isodense.errors import IsodenseError, ModelError
from tests import tiny

TEXTS = [" ".join(tiny.WORDS[: i % 11 + 1]) + "?" * (i % 7) + f" {i}" for i in range(90)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"encoder": tiny.encoder(root / "encoder"), "policy": tiny.policy(root / "policy")}


def reference(folder, text, first=0, layer=-1):
    """Pool one unpadded text by hand."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    ids = tokenizer([text], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[layer][0]
    row = states[first:].mean(dim=0).double().numpy()
    return row / np.linalg.norm(row)


@pytest.mark.parametrize(("kind", "first"), [("encoder", 0), ("policy", 1)])
def test_batched_equals_one_by_one_by_hand(folders, kind, first):
    rows = load_encoder(folders[kind], max_tokens=64).encode(TEXTS[:12])
    for text, row in zip(TEXTS[:12], rows, strict=True):
        assert row @ reference(folders[kind], text, first) > 1 - 1e-6
    np.testing.assert_allclose(np.linalg.norm(rows.astype(float), axis=1), 1, atol=1e-6)
    assert rows.dtype == np.float32


def test_a_layer_is_the_hidden_state_at_that_depth(folders):
    rows = load_encoder(folders["policy"], layer=2, max_tokens=64).encode(TEXTS[:5])
    for text, row in zip(TEXTS[:5], rows, strict=True):
        assert row @ reference(folders["policy"], text, 1, layer=2) > 1 - 1e-6


@pytest.mark.parametrize("kind", ["encoder", "policy"])
def test_bytes_ignore_batch_order_threads_and_company(folders, kind):
    whole = load_encoder(folders[kind], max_tokens=64).encode(TEXTS)
    threads = torch.get_num_threads()
    try:
        for count, budget in ((1, 64), (2, 300), (2, 8192)):
            torch.set_num_threads(count)
            encoder = load_encoder(folders[kind], max_tokens=64, batch_tokens=budget)
            order = np.random.default_rng(budget).permutation(len(TEXTS))
            shuffled = encoder.encode([TEXTS[index] for index in order])
            assert (shuffled == whole[order]).all()
            assert (encoder.encode(TEXTS[40:41]) == whole[40:41]).all()
    finally:
        torch.set_num_threads(threads)


def test_pooling_follows_the_folder_and_can_be_overruled(tmp_path, folders):
    cls = tiny.encoder(tmp_path / "cls", pooling="cls")
    auto = load_encoder(cls, max_tokens=64).encode(TEXTS[:3])
    assert (auto == load_encoder(cls, pooling="cls", max_tokens=64).encode(TEXTS[:3])).all()
    assert (auto != load_encoder(cls, pooling="mean", max_tokens=64).encode(TEXTS[:3])).any()
    last = load_encoder(folders["policy"], pooling="last", max_tokens=64)
    assert last.encode(["red", "red green"]).shape == (2, 32)
    with pytest.raises(ModelError, match="asks for the pooling pooling_mode_max_tokens"):
        load_encoder(tiny.encoder(tmp_path / "max", pooling="max"), max_tokens=64)
    modules = (cls / "modules.json").read_text()
    (cls / "modules.json").write_text(modules.replace("models.Pooling", "models.Dense"))
    with pytest.raises(ModelError, match="module of type Dense"):
        load_encoder(cls, max_tokens=64)


def test_long_texts_are_cut_at_their_start_and_counted(folders):
    encoder = load_encoder(folders["encoder"], max_tokens=16)
    long = "red " * 100
    assert encoder.tokenize([long, "red"])[1] == 1
    assert (encoder.encode(["blue " + long]) == encoder.encode([long])).all()
    assert (encoder.encode([long + "blue"]) != encoder.encode([long])).any()


def test_nothing_to_encode_is_no_rows(folders):
    assert load_encoder(folders["encoder"], max_tokens=64).encode([]).shape == (0, 32)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [({"layer": 9}, "has 2 layers"), ({"max_tokens": 4096}, "exceeds what .* reads, 128")],
)
def test_impossible_settings_are_named(folders, kwargs, words):
    with pytest.raises(ModelError, match=words):
        load_encoder(folders["encoder"], **{"max_tokens": 64} | kwargs)


def test_a_model_that_is_not_whole_is_refused(tmp_path):
    folder = tiny.encoder(tmp_path / "encoder")
    path = folder / "model.safetensors"
    weights = load_file(path)
    removed = next(name for name in weights if name.endswith("layer.1.output.dense.weight"))
    save_file({k: v for k, v in weights.items() if k != removed}, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, first .*layer\.1\.output"):
        load_encoder(folder, max_tokens=64)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(folder, max_tokens=64)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(folder, max_tokens=64)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_named(folders):
    with pytest.raises(IsodenseError, match="torch sees no GPU"):
        load_encoder(folders["encoder"], max_tokens=64, device="cuda")


def test_no_model_and_a_broken_one_are_refused(tmp_path, folders):
    with pytest.raises(ModelError, match="dvc repro models"):
        load_encoder(tmp_path)
    encoder = load_encoder(folders["encoder"], max_tokens=64)
    with torch.no_grad():
        encoder._model.embeddings.word_embeddings.weight[:] = torch.nan
    with pytest.raises(ModelError, match="2 of 2 texts have no finite, non-zero vector"):
        encoder.encode(["red", "green"])
