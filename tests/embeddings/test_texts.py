"""Vectors are those of sentence-transformers: its prompts, its lower case, its masked mean.

Expected vectors are computed by transformers alone; sentence-transformers 6.2 gave the same
(cosines from 0.9999999).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModel, AutoTokenizer

from isodense.embeddings.build import load_with
from isodense.embeddings.encoder import load_encoder
from isodense.embeddings.preflight import preflight
from isodense.pipeline.errors import ModelError
from tests import tiny
from tests.damage import reseal

TEXTS = ["What is the Capital of France?", "RED Green", "the cat sat", "egg"]
PROMPTS = {"query": "Query: ", "clustering": "Cluster: "}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tiny.encoder(tmp_path / "encoder")
    settings = made / "config_sentence_transformers.json"
    tiny.edit(settings, prompts=PROMPTS, default_prompt_name="clustering")
    return made


def expected(folder: Path, texts: list[str], skipped: int = 0) -> np.ndarray:
    """Return unit means over the positions from `skipped` on, each text run alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    rows = []
    for text in texts:
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].detach()
        rows.append(states[skipped:].mean(dim=0).numpy())
    return np.stack(rows) / np.linalg.norm(rows, axis=1, keepdims=True)


def same(folder: Path, rows: np.ndarray, prefix: str | None = None) -> None:
    encoder = load_encoder(folder, max_tokens=64, prefix=prefix)
    np.testing.assert_allclose(encoder.encode(TEXTS), rows, atol=2e-6)


def test_the_default_prompt_is_put_before_each_text(folder):
    same(folder, expected(folder, [f"Cluster: {text}" for text in TEXTS]))


def test_the_param_prefix_replaces_it(folder):
    same(folder, expected(folder, TEXTS), prefix="")
    same(folder, expected(folder, [f"query: {text}" for text in TEXTS]), prefix="query: ")


def test_prompts_without_a_default_are_not_used(folder):
    tiny.edit(folder / "config_sentence_transformers.json", default_prompt_name=None)
    same(folder, expected(folder, TEXTS))


def test_a_default_prompt_that_is_not_there_is_named(folder):
    tiny.edit(folder / "config_sentence_transformers.json", default_prompt_name="passage")
    with pytest.raises(ModelError, match=r"'passage'.* has the prompts: query, clustering"):
        load_encoder(folder, max_tokens=64)
    load_encoder(folder, max_tokens=64, prefix="")


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_roberta_config.json"])
def test_prefix_and_text_are_lower_cased(folder, name):
    tiny.edit(folder / name, do_lower_case=True)
    same(folder, expected(folder, [f"cluster: {text.lower()}" for text in TEXTS]))


def test_a_mean_can_leave_the_prefix_out(folder):
    tiny.edit(folder / "1_Pooling/config.json", include_prompt=False)
    skipped = len(AutoTokenizer.from_pretrained(folder)("Cluster: ")["input_ids"])
    same(folder, expected(folder, [f"Cluster: {text}" for text in TEXTS], skipped))
    same(folder, expected(folder, TEXTS), prefix="")


def test_the_first_token_is_pooled_with_a_prefix_too(folder):
    tiny.edit(folder / "1_Pooling/config.json", include_prompt=False)
    rows = load_encoder(folder, max_tokens=64, pooling="cls").encode(TEXTS)
    tiny.edit(folder / "1_Pooling/config.json", include_prompt=True)
    assert (rows == load_encoder(folder, max_tokens=64, pooling="cls").encode(TEXTS)).all()


def test_a_long_text_keeps_its_prefix_and_its_end(folder):
    encoder = load_encoder(folder, max_tokens=32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first = tokenizer("Cluster:")["input_ids"]  # a text's first word may take the space
    whole = tokenizer("Cluster: " + "red green " * 40)["input_ids"]
    ids, cut = encoder.tokenize(["red green " * 40, "red"])
    assert (cut, len(ids[0])) == (1, 32)
    assert ids[0][: len(first)] == first
    assert ids[0][-20:] == whole[-20:]
    preflight(encoder, TEXTS)


def test_a_prefix_that_leaves_no_room_is_refused(folder):
    with pytest.raises(ModelError, match=r"alone has \d+ tokens"):
        load_encoder(folder, max_tokens=32, prefix="red green " * 10)


def test_a_decoder_takes_a_prefix_and_has_none_by_default(tmp_path):
    folder = tiny.policy(tmp_path / "policy")
    plain, prefixed = load_encoder(folder, max_tokens=64), ["query: " + text for text in TEXTS]
    rows = load_encoder(folder, max_tokens=64, prefix="query: ").encode(TEXTS)
    assert (rows == plain.encode(prefixed)).all()


def test_artifacts_that_know_no_prefix_were_made_without(folder):
    params = {"pooling": "auto", "max_tokens": 64}
    old = load_with(folder, params, "cpu").encode(TEXTS)
    np.testing.assert_allclose(old, expected(folder, TEXTS), atol=2e-6)
    new = load_with(folder, params | {"prefix": None}, "cpu").encode(TEXTS)
    assert (new == load_encoder(folder, max_tokens=64).encode(TEXTS)).all()


def test_modules_that_are_code_are_refused(folder):
    modules = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(modules.replace("sentence_transformers.models.T", "own.T"))
    reseal(folder)
    with pytest.raises(ModelError, match=r"module of type Transformer \(own\)"):
        load_encoder(folder, max_tokens=64)


@pytest.mark.parametrize("name", ["eos", "bos"])
def test_a_token_that_the_tokenizer_does_not_add_is_named(folder, caplog, name):
    load_encoder(folder, max_tokens=64)
    assert not caplog.text
    tiny.edit(folder / "tokenizer_config.json", **{f"add_{name}_token": True})
    load_encoder(folder, max_tokens=64)
    token = {"eos": "<|im_end|>", "bos": "<|im_start|>"}[name]
    assert f"does not add the token {token} that add_{name}_token asks for" in caplog.text
