"""A row's bytes depend on its text and the model, not on its batch; padding never leaks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from isodense.embeddings.encoder import Encoder, load_encoder
from isodense.embeddings.texts import Reading, TextReader
from isodense.pipeline.errors import ArtifactError, IsodenseError, ModelError, TextError
from tests import tiny
from tests.damage import reseal

TEXTS = [" ".join(tiny.WORDS[: i % 11 + 1]) + "?" * (i % 7) + f" {i}" for i in range(90)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"encoder": tiny.encoder(root / "encoder"), "policy": tiny.policy(root / "policy")}


def reference(folder, text, first=0, layer=-1, stop=None):
    """Pool one unpadded text by hand, over its tokens from `first` to `stop`."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    ids = tokenizer([text], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[layer][0]
    row = states[first:stop].mean(dim=0).double().numpy()
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
    with pytest.raises(ModelError, match="asks for the pooling max"):
        load_encoder(tiny.encoder(tmp_path / "max", pooling="max"), max_tokens=64)
    modules = (cls / "modules.json").read_text()
    (cls / "modules.json").write_text(modules.replace("models.Pooling", "models.LayerNorm"))
    reseal(cls)
    with pytest.raises(ModelError, match="module of type LayerNorm"):
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
    with pytest.raises(ArtifactError, match=r"model\.safetensors is damaged"):
        load_encoder(folder, max_tokens=64)
    reseal(folder)
    with pytest.raises(ModelError, match=r"lacks 1 weights, first .*layer\.1\.output"):
        load_encoder(folder, max_tokens=64)
    path.write_bytes(path.read_bytes()[:1000])
    reseal(folder)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(folder, max_tokens=64)
    (folder / "config.json").write_text("{")
    reseal(folder)
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


# --- architectures --------------------------------------------------------------------------------

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 131, "initializer_range": 0.3}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
DISTILLED = {"dim": 32, "hidden_dim": 64, "n_layers": 3, "n_heads": 4, "initializer_range": 0.3}
LOCAL = {"cls_token_id": 1, "sep_token_id": 2, "global_attn_every_n_layers": 3}
EXPERTS = {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 8}
EXPERTS |= {"num_experts": 4, "num_experts_per_tok": 2, "max_window_layers": 0}
EXPERTS |= {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
ARCHITECTURES = {  # name of its classes, settings, and whether it can be packed at 64 tokens
    "bert": ("Bert", SIZES, True),
    "roberta": ("Roberta", SIZES | {"type_vocab_size": 1}, True),
    "xlm-r": ("XLMRoberta", SIZES | {"type_vocab_size": 1}, True),
    "distilbert": ("DistilBert", DISTILLED | {"max_position_embeddings": 131}, True),
    "llama": ("Llama", SIZES | GROUPED, True),
    "qwen3": ("Qwen3", SIZES | GROUPED, True),
    "wide mistral": ("Mistral", SIZES | GROUPED | {"sliding_window": 64}, True),
    "mistral": ("Mistral", SIZES | GROUPED | {"sliding_window": 8}, False),
    "gemma3": ("Gemma3Text", SIZES | GROUPED | {"sliding_window": 8}, False),
    "gemma2": ("Gemma2", SIZES | GROUPED | {"sliding_window": 64}, False),  # caps its attention
    "wide modernbert": ("ModernBert", SIZES | LOCAL | {"local_attention": 128}, True),
    "modernbert": ("ModernBert", SIZES | LOCAL | {"local_attention": 16}, False),
    "mpnet": ("MPNet", SIZES, False),
    "masked window": ("Qwen2Moe", SIZES | EXPERTS, False),  # which attention is not told of
}
BOTH_PATHS = ["llama", "mistral"]  # packs, padded batches


def architecture(folder, name, **changes):
    """Save a tiny model whose attention matters: with small weights no leak would show."""
    stem, settings, _ = ARCHITECTURES[name]
    made = tiny.tokenizer()
    tokens = {f"{kind}_token_id": getattr(made, f"{kind}_token_id") for kind in ("pad", "bos")}
    tokens |= {"eos_token_id": made.eos_token_id, "vocab_size": len(made)}
    config = getattr(transformers, f"{stem}Config")(**tokens | settings | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, f"{stem}Model")(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Give a function that builds an architecture, once."""
    found = {}

    def folder(name):
        if name not in found:
            found[name] = architecture(tmp_path_factory.mktemp("built"), name)
        return found[name]

    return folder


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_or_padded_each_architecture_gives_its_own_states(built, name):
    encoder = load_encoder(built(name), pooling="mean", max_tokens=64)
    assert encoder.packed is ARCHITECTURES[name][2]
    chosen = TEXTS[:22:3]
    assert len({len(row) for row in encoder.tokenize(chosen)[0]}) > 4
    for text, row in zip(chosen, encoder.encode(chosen), strict=True):
        assert row @ reference(built(name), text) > 1 - 1e-6
    alone = encoder.encode_alone(encoder.tokenize(chosen[:1])[0][0])
    assert alone @ reference(built(name), chosen[0]) > 1 - 1e-6


DENSE = [name for name in ARCHITECTURES if name not in ("bert", "masked window")]


@pytest.mark.parametrize("name", DENSE)  # experts get as many tokens as the batch happens to have
def test_bytes_of_each_architecture_ignore_batch_threads_and_company(built, name):
    whole = load_encoder(built(name), max_tokens=64).encode(TEXTS)
    threads = torch.get_num_threads()
    try:
        for count, budget in ((1, 64), (2, 300), (2, 8192)):
            torch.set_num_threads(count)
            encoder = load_encoder(built(name), max_tokens=64, batch_tokens=budget)
            order = np.random.default_rng(budget).permutation(len(TEXTS))
            assert (encoder.encode([TEXTS[index] for index in order]) == whole[order]).all()
            assert (encoder.encode(TEXTS[33:34]) == whole[33:34]).all()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["mistral", "modernbert"])
def test_a_window_as_wide_as_the_longest_text_is_no_window(built, name):
    assert not load_encoder(built(name), max_tokens=16).packed
    assert load_encoder(built(name), max_tokens=8).packed


def test_a_model_that_keeps_its_own_attention_is_not_packed_however_little_would_leak(tmp_path):
    folder = architecture(tmp_path, "mpnet", initializer_range=0.02)
    encoder = load_encoder(folder, max_tokens=64)
    assert not encoder.packed
    assert (encoder.encode(TEXTS[33:34]) == encoder.encode(TEXTS)[33:34]).all()


def test_a_model_that_shares_one_block_is_embedded_whole_and_not_cut(tmp_path):
    made = tiny.tokenizer()
    sizes = {**SIZES, "embedding_size": 16, "vocab_size": len(made), "pad_token_id": 2}
    transformers.AlbertModel(transformers.AlbertConfig(**sizes)).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    assert load_encoder(tmp_path, max_tokens=64).encode(TEXTS[:3]).shape == (3, 32)
    with pytest.raises(ModelError, match="shares its weights among its layers"):
        load_encoder(tmp_path, layer=2, max_tokens=64)


# --- pooling and depth ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH_PATHS)
@pytest.mark.parametrize(
    ("pooling", "first", "stop"),
    [("last", -1, None), ("cls", 0, 1), ("mean_without_first", 1, None), ("mean", 0, None)],
)
def test_each_pooling_takes_its_tokens(built, name, pooling, first, stop):
    encoder = load_encoder(built(name), pooling=pooling, max_tokens=64)
    for text, row in zip(TEXTS[:9], encoder.encode(TEXTS[:9]), strict=True):
        assert row @ reference(built(name), text, first, stop=stop) > 1 - 1e-6


@pytest.mark.parametrize("name", BOTH_PATHS)
def test_a_text_of_one_token_keeps_it_without_the_first(built, name):
    encoder = load_encoder(built(name), pooling="mean_without_first", max_tokens=64)
    assert len(encoder.tokenize(["?"])[0][0]) == 1
    row = encoder.encode(["red green", "?"])[1]
    assert row @ reference(built(name), "?") > 1 - 1e-6


@pytest.mark.parametrize("name", ["bert", "llama", "gemma3"])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_deeper_blocks_are_left_out_and_the_state_is_that_before_any_norm(built, name, layer):
    """The oracle catches what the whole model's block gives out, for the last layer too."""
    full, tokenizer = (kind.from_pretrained(built(name)) for kind in (AutoModel, AutoTokenizer))
    block = (full.encoder.layer if name == "bert" else full.layers)[layer - 1]
    caught = []
    block.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    encoder = load_encoder(built(name), pooling="mean", layer=layer, max_tokens=64)
    for text, row in zip(TEXTS[:6], encoder.encode(TEXTS[:6]), strict=True):
        with torch.inference_mode():
            full(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
        output = caught.pop()
        states = output[0] if isinstance(output, tuple) else output
        expected = states.reshape(-1, 32).mean(dim=0).double().numpy()
        assert row @ expected / np.linalg.norm(expected) > 1 - 1e-6
    model = encoder._model
    assert len(model.encoder.layer if name == "bert" else model.layers) == layer


# --- memory ---------------------------------------------------------------------------------------


def scarce(monkeypatch, encoder, most, error=None):
    """Let the model fail above so many tokens at once; return the sizes of what it was given."""
    original, given = encoder._model.forward, []

    def forward(*args, **kwargs):
        given.append(kwargs["input_ids"].numel())
        if given[-1] > most:
            raise error or torch.OutOfMemoryError("CUDA out of memory")
        return original(*args, **kwargs)

    monkeypatch.setattr(encoder._model, "forward", forward)
    return given


CPU_FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


@pytest.mark.parametrize("error", [None, CPU_FULL])
@pytest.mark.parametrize("name", BOTH_PATHS)
def test_where_memory_runs_out_batches_are_halved_and_no_byte_changes(
    built, monkeypatch, caplog, name, error
):
    whole = load_encoder(built(name), max_tokens=64, batch_tokens=2048).encode(TEXTS)
    encoder = load_encoder(built(name), max_tokens=64, batch_tokens=2048)
    given = scarce(monkeypatch, encoder, 400, error)
    assert (encoder.encode(TEXTS) == whole).all()
    assert [record.args for record in caplog.records] == [(1024,), (512,), (256,)]
    assert sum(size > 400 for size in given) == 3
    given.clear()
    assert (encoder.encode(TEXTS) == whole).all()  # and it stays at what fits
    assert max(given) <= 400


@pytest.mark.parametrize("name", BOTH_PATHS)
def test_a_single_text_that_does_not_fit_names_the_param(built, monkeypatch, name):
    encoder = load_encoder(built(name), max_tokens=64)
    scarce(monkeypatch, encoder, 0)
    with pytest.raises(ModelError, match=r"up to 64 tokens(?s:.)*lower embeddings\.max_tokens"):
        encoder.encode(["red " * 50])


def test_other_errors_of_the_model_pass_through(built, monkeypatch):
    encoder = load_encoder(built("llama"), max_tokens=64)
    scarce(monkeypatch, encoder, 0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        encoder.encode(TEXTS)


def test_the_default_budget_is_the_devices(built):
    encoder = load_encoder(built("llama"), max_tokens=64)
    tokens = []
    forward = encoder._forward
    encoder._forward = lambda ids: tokens.append(sum(map(len, ids))) or forward(ids)
    encoder.encode_tokens([[5] * 60] * 100)
    assert max(tokens) == 17 * 60  # what goes into 1,024
    assert sum(tokens) == 6000
    on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    reader = TextReader(None, Reading(), 64)
    made = Encoder(on_gpu, None, reader, "mean", None, None, padded=None)
    assert made._fitting([64] * 1000) == 512


# --- precision and texts --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", *BOTH_PATHS])
def test_bfloat16_stays_close_and_says_what_it_is(built, name):
    whole = load_encoder(built(name), pooling="mean", max_tokens=64)
    half = load_encoder(built(name), pooling="mean", max_tokens=64, precision="bfloat16")
    assert (whole.precision, half.precision) == ("float32", "bfloat16")
    assert half.packed is whole.packed
    rows = half.encode(TEXTS[:20])
    assert rows.dtype == np.float32
    cosines = (rows * whole.encode(TEXTS[:20])).sum(axis=1)
    assert 0.99 < cosines.min() < 1 - 1e-6  # close, but computed otherwise
    np.testing.assert_allclose(np.linalg.norm(rows.astype(float), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", BOTH_PATHS)
def test_a_text_without_tokens_is_named_by_its_row(built, name):
    encoder = load_encoder(built(name), max_tokens=64)
    with pytest.raises(TextError, match="2 of 4 texts have no tokens") as caught:
        encoder.encode_tokens([[5], [6, 7], [], []])
    assert caught.value.row == 2
