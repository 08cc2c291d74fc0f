"""The preflight lets good encoders through and stops broken ones before the hours are spent."""

from __future__ import annotations

import pytest
import torch

from isodense.embeddings.encoder import Encoder, load_encoder
from isodense.embeddings.preflight import preflight
from isodense.models.inference import packing
from isodense.pipeline.errors import ModelError
from tests import tiny
from tests.embeddings.test_encoder import architecture

TEXTS = tiny.texts(50)
KINDS = {"bert": True, "llama": True}  # whether packed
KINDS |= {"mistral": False, "mpnet": False, "modernbert": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: architecture(root / kind, kind) for kind in KINDS}


def loaded(folders, kind, **kwargs):
    return load_encoder(folders[kind], **{"pooling": "mean", "max_tokens": 64} | kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_good_encoders_pass(folders, kind):
    encoder = loaded(folders, kind)
    assert encoder.packed is KINDS[kind]
    assert 1 - 1e-6 < preflight(encoder, TEXTS) < 1 + 1e-6


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize(
    "setting",
    [
        {"pooling": "last"},
        {"layer": 2},
        {"space": "logits_full"},
        {"precision": "bfloat16"},
        {"max_tokens": 16},
        {"batch_tokens": 64},
    ],
)
def test_good_encoders_pass_with_any_setting(folders, tmp_path, kind, setting):
    folders = folders if "space" not in setting else {kind: tiny.policy(tmp_path / "policy")}
    assert preflight(loaded(folders, kind, **setting), TEXTS) > 0.99


@pytest.mark.parametrize("texts", [TEXTS[:1], ["red"] * 30, ["red green " * 80, "red"]])
def test_few_equal_and_overlong_texts_pass(folders, texts):
    assert preflight(loaded(folders, "llama"), texts) > 1 - 1e-6


def test_texts_of_all_lengths_are_tried(folders, monkeypatch):
    tried = []
    original = Encoder.encode_alone

    def watching(self, ids):
        tried.append(len(ids))
        return original(self, ids)

    monkeypatch.setattr(Encoder, "encode_alone", watching)
    encoder = loaded(folders, "llama")
    preflight(encoder, TEXTS)
    lengths = [len(row) for row in encoder.tokenize(TEXTS)[0]]
    assert len(tried) == 8
    assert len(set(tried)) > 4
    assert min(tried) <= min(lengths) + 1
    assert max(tried) >= max(lengths) - 1


# --- what is broken -------------------------------------------------------------------------------


def one_sequence(model, rows, first_position, longest, run=packing.run):
    """Run a pack without telling the sequences apart."""
    return run(model, [[token for row in rows for token in row]], first_position, longest)


def off_by_one(model, rows, first_position, longest, run=packing.run):
    """Give each token the state of the one before."""
    output = run(model, rows, first_position, longest)
    output.last_hidden_state = output.last_hidden_state.roll(1, dims=1)
    return output


def positions_run_on(model, rows, first_position, longest, run=packing.run):
    """Forget where a sequence begins, in its positions alone."""

    def forward(**kwargs):
        kwargs["position_ids"] = torch.arange(kwargs["input_ids"].shape[1])[None]
        return model(**kwargs)

    forward.device = model.device
    return run(forward, rows, first_position, longest)


@pytest.mark.parametrize("broken", [one_sequence, off_by_one, positions_run_on])
def test_a_pack_that_leaks_is_noticed(folders, monkeypatch, broken):
    encoder = loaded(folders, "bert", max_tokens=128)
    texts = [*TEXTS[:5], "red"]
    assert sum(map(len, encoder.tokenize(texts)[0])) < 128  # as many positions as there are
    preflight(encoder, texts)
    monkeypatch.setattr(packing, "run", broken)
    with pytest.raises(ModelError, match=r"another vector in a batch than alone \(cosine 0"):
        preflight(encoder, texts)


@pytest.mark.parametrize("kind", ["mpnet", "modernbert"])
def test_padding_that_leaks_is_noticed(folders, monkeypatch, kind):
    encoder = loaded(folders, kind)
    original = Encoder._padded_batch

    def unmasked(self, ids):
        batch = original(self, ids)
        return batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}

    monkeypatch.setattr(Encoder, "_padded_batch", unmasked)
    with pytest.raises(ModelError, match="another vector in a batch than alone"):
        preflight(encoder, TEXTS)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_rows_that_change_places_are_noticed(folders, monkeypatch, kind):
    encoder = loaded(folders, kind)
    original = Encoder._forward

    def turned(self, ids):
        return original(self, ids)[::-1]

    monkeypatch.setattr(Encoder, "_forward", turned)
    with pytest.raises(ModelError, match="another vector in a batch than alone"):
        preflight(encoder, TEXTS)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_weights_that_are_not_numbers_are_noticed(folders, kind):
    encoder = loaded(folders, kind)
    with torch.no_grad():
        encoder._model.embed_tokens.weight[:] = torch.nan
    with pytest.raises(ModelError, match="no finite, non-zero vector"):
        preflight(encoder, TEXTS)


def test_a_tokenizer_that_cuts_the_end_off_is_noticed(folders):
    encoder = loaded(folders, "bert")
    encoder._reader._tokenizer.truncation_side = "right"
    with pytest.raises(ModelError, match="does not cut long texts at their start"):
        preflight(encoder, TEXTS)


CUTS = {  # of a text that is too long, by its ids
    "nothing": lambda ids: ids,
    "both ends": lambda ids: ids[40:104],
    "all that differs": lambda ids: [5] * 64,
    "too little": lambda ids: ids[-65:],
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_tokenizer_that_cuts_otherwise_is_noticed(folders, monkeypatch, cut):
    encoder = loaded(folders, "bert")

    def tokenize(self, texts):
        return [CUTS[cut](ids) for ids in self._reader._tokenizer(texts)["input_ids"]], len(texts)

    monkeypatch.setattr(Encoder, "tokenize", tokenize)
    with pytest.raises(ModelError, match="does not cut long texts at their start"):
        preflight(encoder, ["red green blue", *TEXTS])


def test_a_tokenizer_that_does_not_say_what_it_cut_is_noticed(folders, monkeypatch):
    encoder = loaded(folders, "bert")
    original = Encoder.tokenize
    monkeypatch.setattr(Encoder, "tokenize", lambda self, texts: (original(self, texts)[0], 0))
    with pytest.raises(ModelError, match="does not cut long texts at their start"):
        preflight(encoder, TEXTS)
