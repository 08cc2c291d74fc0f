"""Mean logits in few columns have the geometry of the model's own mean logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaModel,
    NanoChatConfig,
    NanoChatForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from isodense.embeddings import logits as module
from isodense.embeddings.double import computing_in
from isodense.embeddings.encoder import load_encoder
from isodense.pipeline.errors import ModelError
from tests import tiny

TEXTS = tiny.texts(60)
COLUMNS = 400
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 128}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny.policy(tmp_path_factory.mktemp("model") / "policy")


@pytest.fixture(scope="module")
def capped(tmp_path_factory):
    """Give a model whose softcap bends its logits: they are several times as large."""
    made = tiny.tokenizer()
    config = NanoChatConfig(
        vocab_size=len(made),
        **SIZES,
        num_key_value_heads=2,
        final_logit_softcapping=3.0,
        pad_token_id=made.pad_token_id,
        bos_token_id=made.bos_token_id,
        eos_token_id=made.eos_token_id,
    )
    return saved(NanoChatForCausalLM, config, tmp_path_factory.mktemp("model"))


def saved(kind, config, folder):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
        for weight in model.parameters():
            weight.data = 0.4 * torch.randn(weight.shape)
        model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mean_logits():
    """Give a function that runs the whole model on one text at a time."""

    def of(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer, rows = AutoTokenizer.from_pretrained(folder), []
        with torch.inference_mode():
            for text in TEXTS:
                ids = torch.tensor([tokenizer(text)["input_ids"]])
                rows.append(model(input_ids=ids).logits[0].double().mean(dim=0).numpy())
        full = np.stack(rows)
        return full / np.linalg.norm(full, axis=1, keepdims=True)

    return of


def encode(folder, space, **kwargs):
    return load_encoder(folder, max_tokens=64, space=space, **kwargs).encode(TEXTS)


def distances(rows):
    rows = rows.astype(np.float64)
    return np.linalg.norm(rows[:, None] - rows[None], axis=2)


# --- without a softcap ----------------------------------------------------------------------------


def test_few_columns_have_the_neighbours_and_distances_of_all(policy, mean_logits):
    rows, full = encode(policy, "logits"), mean_logits(policy)
    assert rows.shape == (60, 32)
    assert full.shape[1] > 250
    np.testing.assert_allclose(distances(rows), distances(full), atol=2e-6)
    nearest = [np.argsort(distances(found), axis=1)[:, 1:6] for found in (rows, full)]
    assert (nearest[0] == nearest[1]).all()


def test_all_columns_are_the_models_own(policy, mean_logits):
    rows = encode(policy, "logits_full")
    full = mean_logits(policy)
    assert rows.shape == full.shape
    np.testing.assert_allclose(rows, full, atol=1e-6)


def test_another_pooling_is_that_of_the_logits(policy):
    """The last token's logits, by the whole model."""
    encoder = load_encoder(policy, max_tokens=64, space="logits_full", pooling="last")
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    ids = encoder.tokenize(TEXTS[10:11])[0]
    with torch.inference_mode():
        last = model(input_ids=torch.tensor(ids)).logits[0, -1].double()
    assert encoder.encode_tokens(ids)[0] @ (last / last.norm()).numpy() > 1 - 1e-6


@pytest.mark.parametrize("space", ["logits", "logits_full", "logits_projected"])
def test_bytes_ignore_batch_order_and_company(policy, space):
    whole = encode(policy, space)
    encoder = load_encoder(policy, max_tokens=64, space=space, batch_tokens=100)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    assert (encoder.encode([TEXTS[row] for row in order]) == whole[order]).all()
    assert (encoder.encode(TEXTS[33:34]) == whole[33:34]).all()


# --- with a softcap -------------------------------------------------------------------------------


def test_a_softcap_is_refused_with_its_alternatives(capped):
    with pytest.raises(ModelError, match="caps its logits at ±3") as caught:
        encode(capped, "logits")
    for alternative in ("logits_projected", "logits_full", "hidden"):
        assert alternative in caught.value.hint


def test_all_columns_of_a_capped_model_are_its_own(capped, mean_logits):
    full = mean_logits(capped)
    np.testing.assert_allclose(encode(capped, "logits_full"), full, atol=1e-6)
    head = AutoModelForCausalLM.from_pretrained(capped).lm_head.weight.detach().double().numpy()
    rank = np.linalg.matrix_rank(full, tol=1e-3)
    assert rank > head.shape[1], "the cap of this test's model bends nothing"


def cosine_errors(rows, full):
    rows, full = rows.astype(np.float64), full.astype(np.float64)
    return np.abs(rows @ rows.T - full @ full.T)[np.triu_indices(len(rows), 1)]


def test_a_projection_keeps_cosines_and_reports_how_well(capped, mean_logits):
    encoder = load_encoder(capped, max_tokens=64, space="logits_projected", projection=COLUMNS)
    rows = encoder.encode(TEXTS)
    assert rows.shape == (60, COLUMNS)
    errors = cosine_errors(rows, mean_logits(capped))
    assert 0 < np.median(errors) < 1 / np.sqrt(COLUMNS)
    assert errors.max() < 5 / np.sqrt(COLUMNS)
    reported = encoder.projection_error(encoder.tokenize(TEXTS)[0])
    assert reported.keys() == {"median", "max"}
    assert reported["median"] == pytest.approx(np.median(errors), abs=3e-6)
    assert reported["max"] == pytest.approx(errors.max(), abs=3e-6)
    assert (encoder.encode(TEXTS) == rows).all()  # it projects again afterwards


def test_more_columns_are_closer(capped, mean_logits):
    full = mean_logits(capped)
    few, many = (
        cosine_errors(encode(capped, "logits_projected", projection=columns), full)
        for columns in (25, 2500)
    )
    assert np.median(few) > 4 * np.median(many)


def test_the_projection_is_the_same_in_two_loads(capped):
    one, two = (encode(capped, "logits_projected", projection=COLUMNS) for _ in range(2))
    assert (one == two).all()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["logits", "logits_full", "logits_projected"])
def test_a_layer_has_no_logits(policy, space):
    with pytest.raises(ModelError, match=r"embeddings\.layer = 2 has no meaning") as caught:
        encode(policy, space, layer=2)
    assert "null" in caught.value.hint


def test_a_head_with_a_bias_is_refused(tmp_path):
    made = tiny.tokenizer()
    config = PhiConfig(
        **SIZES | {"num_hidden_layers": 1},
        vocab_size=len(made),
    )
    folder = saved(PhiForCausalLM, config, tmp_path)
    with pytest.raises(ModelError, match=r"has a bias(?s:.)*space: hidden"):
        encode(folder, "logits")


def test_a_model_without_a_head_is_refused(tmp_path):
    folder = tiny.encoder(tmp_path / "encoder")
    with pytest.raises(ModelError, match=r"language head(?s:.)*space: hidden"):
        encode(folder, "logits")


def test_hidden_states_have_no_projection_error(policy):
    encoder = load_encoder(policy, max_tokens=64)
    with pytest.raises(ModelError, match="not projected"):
        encoder.projection_error([[5, 6]])


# --- the square root ------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocabulary", "hidden"), [(300, 32), (9000, 48), (20, 32)])
def test_the_square_root_squared_is_the_heads_square(vocabulary, hidden):
    """The last head is wider than its vocabulary, so that its square is singular."""
    weight = torch.randn(vocabulary, hidden, generator=torch.Generator().manual_seed(0))
    root = module._square_root(weight).double().numpy()
    expected = weight.double().numpy().T @ weight.double().numpy()
    assert np.linalg.norm(root.T @ root - expected) < 1e-4 * np.linalg.norm(expected)
    np.testing.assert_allclose(root, root.T, atol=1e-4)
    assert np.linalg.eigvalsh(root).min() > -1e-4


def test_the_square_root_is_exact_in_float64_where_columns_depend_on_each_other():
    """What is off there by 1e-8 differs between processors, and so would the vectors' bytes."""
    weight = torch.randn(5000, 32, generator=torch.Generator().manual_seed(0))
    weight[:, 20:] = weight[:, :12]
    with computing_in("float64"):
        root = module._square_root(weight)
    assert root.dtype == torch.float64
    nothing = torch.eye(32, dtype=torch.float64)[:12] - torch.eye(32, dtype=torch.float64)[20:]
    assert (root @ nothing.T).abs().max() < 1e-12 * root.max()


def test_the_square_root_has_the_same_bytes_at_any_thread_count():
    weight = torch.randn(9000, 96, generator=torch.Generator().manual_seed(0))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(module._square_root(weight))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_a_head_that_is_not_in_the_folder_is_not_made_up(tmp_path):
    made = tiny.tokenizer()
    config = LlamaConfig(**SIZES, vocab_size=len(made), tie_word_embeddings=False)
    LlamaModel(config).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is missing or has a bias"):
        load_encoder(tmp_path, max_tokens=64, space="logits")
