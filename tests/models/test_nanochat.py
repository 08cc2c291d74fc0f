"""nanochat checkpoints arrive with their own tokens and hidden states, and never run code."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from isodense.models import nanochat, nanochat_tokenizer
from isodense.models.params import ModelParams
from isodense.models.publish import publish
from isodense.pipeline.artifact import read_manifest
from isodense.pipeline.errors import ModelError
from tests.nanochat_files import Encoding, encoding, importable, store, trained, weights

pytestmark = pytest.mark.usefixtures("one_thread")
DEVELOPMENT = Path(__file__).parents[3] / "shared" / "data" / "nanochat-d2"


class Shell:
    """Touches a file where it is unpickled by an unpickler that runs what it reads."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture(autouse=True)
def tiktoken():
    """Give a stand-in for the package."""
    with importable():
        yield


def lm_head(model):
    return model.lm_head.weight.detach()


# --- choosing a checkpoint ------------------------------------------------------------------------


def test_the_deepest_tag_and_its_last_step_are_the_default(tmp_path):
    seeds = {("d9", 300): 1, ("d10", 20): 2, ("d10", 100): 3, ("other", 999): 4}
    for (tag, step), seed in seeds.items():
        state = weights(store(tmp_path, tag=tag, step=step)[1], seed=seed)
        store(tmp_path, tag=tag, step=step, state=state)
    for tag, step, seed in [
        (None, None, 3),
        ("d9", None, 1),
        ("d10", 20, 2),
        (None, 20, 2),
        ("other", None, 4),
    ]:
        model, tokenizer = nanochat.load(str(tmp_path), "base", tag, step)
        assert torch.equal(lm_head(model), weights(len(tokenizer), seed=seed)["lm_head.weight"])


@pytest.mark.parametrize(
    ("source", "stage"), [("mid", "mid"), ("sft", "chatsft"), ("rl", "chatrl")]
)
def test_each_source_has_its_folder(tmp_path, source, stage):
    store(tmp_path, stage)
    assert nanochat.load(tmp_path, source)[0].config.num_hidden_layers == 2


def test_what_is_missing_is_named_with_what_exists(tmp_path):
    with pytest.raises(ModelError, match="it has: none"):
        nanochat.load(tmp_path / "nowhere", "base")
    store(tmp_path, "mid", "d3", 70)
    store(tmp_path, "mid", "d3", 80)
    with pytest.raises(ModelError, match=r"source 'base'(?s:.)*it has: mid"):
        nanochat.load(tmp_path, "base")
    with pytest.raises(ModelError, match=r"'nonsense'(?s:.)*it has: mid"):
        nanochat.load(tmp_path, "nonsense")
    with pytest.raises(ModelError, match=r"tag 'd4'(?s:.)*it has: d3"):
        nanochat.load(tmp_path, "mid", "d4")
    with pytest.raises(ModelError, match=r"tag '\.\./d3'"):
        nanochat.load(tmp_path, "mid", "../d3")
    with pytest.raises(ModelError, match=r"step 75(?s:.)*it has: 70, 80"):
        nanochat.load(tmp_path, "mid", "d3", 75)
    (tmp_path / "mid_checkpoints" / "d3").rename(tmp_path / "mid_checkpoints" / "mine")
    with pytest.raises(ModelError, match=r"tag 'd<N>'(?s:.)*it has: mine"):
        nanochat.load(tmp_path, "mid")


# --- weights --------------------------------------------------------------------------------------


def test_weights_arrive_in_float32_under_the_names_of_transformers(tmp_path):
    path, vocabulary = store(tmp_path)
    state = weights(vocabulary)
    state["transformer.wte.weight"] = state["transformer.wte.weight"].bfloat16()
    torch.save({f"_orig_mod.{name}": tensor for name, tensor in state.items()}, path)
    random_state = torch.get_rng_state()
    model, tokenizer = nanochat.load(tmp_path, "base")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not model.training
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    block = model.model.layers[1]
    for found, name in [
        (model.model.embed_tokens, "transformer.wte"),
        (model.lm_head, "lm_head"),
        (block.self_attn.q_proj, "transformer.h.1.attn.c_q"),
        (block.self_attn.k_proj, "transformer.h.1.attn.c_k"),
        (block.self_attn.v_proj, "transformer.h.1.attn.c_v"),
        (block.self_attn.o_proj, "transformer.h.1.attn.c_proj"),
        (block.mlp.fc1, "transformer.h.1.mlp.c_fc"),
        (block.mlp.fc2, "transformer.h.1.mlp.c_proj"),
    ]:
        assert torch.equal(found.weight.detach(), state[f"{name}.weight"].float()), name
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert (config.intermediate_size, config.max_position_embeddings) == (64, 32)
    ids = tokenizer.convert_tokens_to_ids(["<|bos|>", "<|assistant_end|>"])
    assert [config.bos_token_id, config.eos_token_id, config.pad_token_id] == [*ids, ids[1]]


def test_padded_rows_of_the_vocabulary_are_trimmed(tmp_path):
    path, vocabulary = store(tmp_path)
    padded = -(-vocabulary // 64) * 64
    assert padded > vocabulary
    state = weights(vocabulary, rows=padded)
    torch.save(state, path)
    model, _ = nanochat.load(tmp_path, "base")
    assert torch.equal(lm_head(model), state["lm_head.weight"][:vocabulary])
    assert model.get_input_embeddings().weight.shape == (vocabulary, 16)
    torch.save(weights(vocabulary, rows=padded + 1), path)
    with pytest.raises(ModelError, match=rf"wte\.weight has shape \({padded + 1}, 16\)"):
        nanochat.load(tmp_path, "base")


def test_keys_of_another_architecture_are_refused_by_name(tmp_path):
    path, vocabulary = store(tmp_path)
    state = weights(vocabulary)
    torch.save({**state, "resid_lambdas": torch.ones(2), "x0_lambdas": torch.ones(2)}, path)
    with pytest.raises(ModelError, match=r"2 unknown \(resid_lambdas, x0_lambdas\)"):
        nanochat.load(tmp_path, "base")
    del state["transformer.h.1.attn.c_v.weight"]
    torch.save(state, path)
    with pytest.raises(ModelError, match=r"1 missing \(transformer\.h\.1\.attn\.c_v\.weight\)"):
        nanochat.load(tmp_path, "base")
    store(tmp_path, window_pattern="SSSL")
    with pytest.raises(ModelError, match=r"model_config keys: 1 unknown \(window_pattern\)"):
        nanochat.load(tmp_path, "base")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_head": 2}, "c_k.weight has shape"),
        ({"n_embd": 32}, "wte.weight has shape"),
        ({"n_layer": 3}, "6 missing"),
        ({"n_layer": 1}, "6 unknown"),
        ({"n_head": "4"}, "n_head = '4'"),
        ({"n_kv_head": 0}, "n_kv_head = 0"),
        ({"vocab_size": 999}, "counts 999 tokens"),
    ],
)
def test_sizes_that_are_not_the_weights_are_refused(tmp_path, sizes, message):
    store(tmp_path, **sizes)
    with pytest.raises(ModelError, match=message):
        nanochat.load(tmp_path, "base")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model_config": 3}', '{"model_config": {}}', None]
)
def test_a_meta_file_that_says_nothing_is_refused(tmp_path, text):
    path, _ = store(tmp_path)
    meta = path.with_name("meta_000010.json")
    meta.unlink() if text is None else meta.write_text(text)
    with pytest.raises(ModelError, match=r"meta_000010\.json(?s:.)*(model_config|is missing)"):
        nanochat.load(tmp_path, "base")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_the_weights_never_runs(tmp_path, zipped):
    path, vocabulary = store(tmp_path)
    marker = tmp_path / "marker"
    hostile = {**weights(vocabulary), "more": Shell(marker)}
    torch.save(hostile, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"unsupported GLOBAL \S+\.system") as error:
        nanochat.load(tmp_path, "base")
    assert not marker.exists()
    assert "weights_only" not in str(error.value)
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file of this test is not hostile"


@pytest.mark.parametrize(
    "damage", ["empty", "text", "cut", "zip", "pickle", "list", "integers", "keys"]
)
def test_damaged_weights_are_refused(tmp_path, damage):
    path, vocabulary = store(tmp_path)
    state, whole = weights(vocabulary), path.read_bytes()
    if damage == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/version", "3")
    elif damage == "list":
        torch.save(list(state.values()), path)
    elif damage == "integers":
        torch.save({**state, "lm_head.weight": torch.ones(vocabulary, 16, dtype=torch.long)}, path)
    elif damage == "keys":
        torch.save(dict(enumerate(state.values())), path)
    else:
        pickled = pickle.dumps({"lm_head.weight": [1.0]})
        content = {"empty": b"", "text": b"hello", "cut": whole[:999], "pickle": pickled}
        path.write_bytes(content[damage])
    with pytest.raises(ModelError, match=r"model_000010\.pt"):
        nanochat.load(tmp_path, "base")


# --- tokenizer ------------------------------------------------------------------------------------


def joined(ranks, piece):
    """Return the tokens of one piece by the definition of byte-pair encoding."""
    parts = [bytes([byte]) for byte in piece]
    while True:
        pairs = [left + right for left, right in itertools.pairwise(parts)]
        known = [(ranks[pair], at) for at, pair in enumerate(pairs) if pair in ranks]
        if not known:
            return [ranks[part] for part in parts]
        at = min(known)[1]
        parts[at : at + 2] = [pairs[at]]


def test_tokens_are_those_of_byte_pair_encoding(tmp_path):
    store(tmp_path)
    _, tokenizer = nanochat.load(tmp_path, "base")
    ranks, chance = trained(), random.Random(0)
    alphabet = [*"abtheMms", "an", "é", "日", "🌍"]
    for _ in range(500):
        word = "".join(chance.choices(alphabet, k=chance.randrange(1, 30)))
        letters = "".join(letter for letter in word if letter.isalpha())
        assert tokenizer(letters)["input_ids"] == joined(ranks, letters.encode())
        assert tokenizer.decode(tokenizer(word)["input_ids"]) == word


def test_a_whole_piece_that_is_a_token_is_that_token(tmp_path):
    store(tmp_path)
    state = encoding()
    state["mergeable_ranks"][b"zqxyz"] = len(state["mergeable_ranks"])
    specials = {name: number + 1 for name, number in state["special_tokens"].items()}
    state["special_tokens"] = specials
    (tmp_path / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(Encoding(state)))
    vocabulary = max(specials.values()) + 1
    store(tmp_path, state=weights(vocabulary), vocab_size=vocabulary)
    nanochat.convert(tmp_path, "base", None, None, tmp_path / "out")
    for tokenizer in (
        nanochat.load(tmp_path, "base")[1],
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    ):
        assert len(tokenizer("zqxyz")["input_ids"]) == 1  # no merge leads there
        assert len(tokenizer("zqxyza")["input_ids"]) == 6


def test_special_tokens_in_a_text_stay_text(tmp_path):
    store(tmp_path)
    nanochat.convert(tmp_path, "base", None, None, tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    for tokenizer in (nanochat.load(tmp_path, "base")[1], loaded):
        ids = tokenizer("a <|bos|> b")["input_ids"]
        assert not set(ids) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(ids) == "a <|bos|> b"
        tokenizer.add_bos_token = True
        assert tokenizer("a <|bos|> b")["input_ids"] == [tokenizer.bos_token_id, *ids]


def test_a_chat_keeps_its_special_tokens_and_no_others(tmp_path):
    store(tmp_path)
    _, tokenizer = nanochat.load(tmp_path, "base")
    tokenizer.split_special_tokens = False
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a<|user_end|>b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|bos|><|user_start|>S\n\na<|user_end|>b<|user_end|><|assistant_start|>c<|assistant_end|>"
        "<|user_start|>d<|user_end|><|assistant_start|>"
    )
    ids = tokenizer.apply_chat_template(messages, sanitize_control_tokens=True)["input_ids"]
    assert ids.count(tokenizer.convert_tokens_to_ids("<|user_end|>")) == 2
    with pytest.raises(Exception, match="by turns"):
        tokenizer.apply_chat_template(messages[2:])


class Raw:
    """Assembles pickles that ``pickle.dumps`` would not write."""

    HEAD = b"\x80\x04ctiktoken.core\nEncoding\n"
    MADE = HEAD + b")\x81"


def hostile_pickles(marker):
    """Yield what a tokenizer file may hold that is not a tokenizer."""
    command = pickle.dumps(f"touch {marker}", protocol=0)[:-1]
    yield "reduce", pickle.dumps(Shell(marker))
    yield "nested", pickle.dumps(Encoding({**encoding(), "name": Shell(marker)}))
    yield "state", pickle.dumps(Encoding(Shell(marker)))
    yield "key", pickle.dumps(Encoding({(Shell(marker),): 1}))
    yield "string state", pickle.dumps(Encoding("cl100k_base"))
    yield "no state", Raw.MADE + b"."
    yield "class alone", Raw.HEAD + b"."
    yield "state on the class", Raw.HEAD + b"}b."
    yield "slots on the class", Raw.HEAD + b"N}V__setstate__\nK\x01s\x86b."
    yield "arguments", Raw.HEAD + b"(K\x01tR."
    yield "old-style instance", b"(" + command + b"ios\nsystem\n."
    yield "global by attribute", b"\x80\x04\x8c\x0dtiktoken.core\x8c\x11Encoding.__init__\x93."
    yield "neighbour", b"ctiktoken.core\nos\n."
    yield "builtin", b"cbuiltins\neval\n(" + command + b"tR."
    yield "extension", b"\x80\x02\x82\x01."
    yield "persistent", b"P1\n."
    yield "empty", b""
    yield "text", b"hello"
    yield "cut", pickle.dumps(Encoding(encoding()))[:-50]


NAMES = [name for name, _ in hostile_pickles("marker")]


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_or_damaged_tokenizer_is_refused(tmp_path, name):
    store(tmp_path)
    marker = tmp_path / "marker"
    content = dict(hostile_pickles(marker))[name]
    (tmp_path / "tokenizer" / "tokenizer.pkl").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.pkl(?s:.)*nothing in it was run"):
        nanochat.load(tmp_path, "base")
    assert not marker.exists()
    assert nanochat_tokenizer._Encoding.state is None
    if name in {"reduce", "nested", "state", "key", "old-style instance"}:
        with contextlib.suppress(AssertionError):
            pickle.loads(content)  # noqa: S301 - an ordinary unpickler runs it
        assert marker.exists()


def change(key, value):
    return lambda state: state.__setitem__(key, value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("name"), "not an encoding"),
        (change("explicit_n_vocab", 3), "not an encoding"),
        (change("pat_str", b"x"), "not an encoding"),
        (change("pat_str", "("), "not a regular expression"),
        (change("special_tokens", {"<|bos|>": len(trained())}), r"lacks <\|user_start\|>"),
        (lambda state: state["mergeable_ranks"].update({"x": 9}), "not bytes"),
        (lambda state: state["mergeable_ranks"].update({b"zz": True}), "not whole numbers"),
        (lambda state: state["mergeable_ranks"].update({b"zz": 5}), "ids are not"),
        (lambda state: state["special_tokens"].update({"<|x|>": 10**9}), "ids are not"),
        (lambda state: state["special_tokens"].update({"\ud800": 302}), "not text"),
        (
            lambda state: state["mergeable_ranks"].update(
                {b"zz": state["mergeable_ranks"].pop(b"z")}
            ),
            "byte 122",
        ),
    ],
)
def test_a_tokenizer_that_is_not_nanochats_is_refused(tmp_path, spoil, message):
    store(tmp_path)
    state = encoding()
    spoil(state)
    (tmp_path / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(Encoding(state)))
    with pytest.raises(ModelError, match=message):
        nanochat.load(tmp_path, "base")


def test_a_missing_tokenizer_is_named(tmp_path):
    store(tmp_path)
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(ModelError, match=r"tokenizer\.pkl is missing"):
        nanochat.load(tmp_path, "base")


# --- saving ---------------------------------------------------------------------------------------


def test_a_converted_checkpoint_is_a_folder_that_the_models_stage_publishes(tmp_path):
    store(tmp_path)
    model, tokenizer = nanochat.load(tmp_path, "base")
    nanochat.convert(tmp_path, "base", "d2", 10, tmp_path / "out")
    nanochat.convert(tmp_path, "base", None, None, tmp_path / "again")
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        assert content == (tmp_path / "again" / path.name).read_bytes()
        assert str(tmp_path).encode() not in content
    params = ModelParams(
        source="folder", name=str(tmp_path / "out"), version=None, sha256=None, path=None
    )
    publish("encoder", params, tmp_path / "published", tmp_path / "cache")
    assert "chat_template.jinja" in read_manifest(tmp_path / "published", "models")["files"]
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "published")
    assert type(whole) is type(model)
    assert whole.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert torch.equal(whole.state_dict()[name], tensor), name
    ids = torch.tensor([tokenizer("the bananas")["input_ids"]])
    with torch.inference_mode():
        body = AutoModel.from_pretrained(tmp_path / "published")(ids).last_hidden_state
        assert torch.equal(body, model.model(ids).last_hidden_state)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "published")
    assert loaded("the bananas")["input_ids"] == ids[0].tolist()
    assert loaded.split_special_tokens
    assert json.loads(loaded.backend_tokenizer.to_str())["model"]["ignore_merges"]


# --- against nanochat itself ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    if not DEVELOPMENT.is_dir():
        pytest.skip("the development checkpoints are not at hand")
    prompts = json.loads((DEVELOPMENT / "prompts.json").read_text(encoding="utf-8"))["prompts"]
    assert len(prompts) == 22
    return prompts, np.load(DEVELOPMENT / "reference.npz")


def outputs(model, rows):
    """Return the hidden states and logits of each row of ids, one at a time."""
    with torch.inference_mode():
        for ids in rows:
            states = model.model(torch.tensor([ids])).last_hidden_state
            logits = model(torch.tensor([ids])).logits
            yield states[0].numpy(), logits[0].numpy()


def means(pairs):
    hidden, logits = zip(*[(h.mean(axis=0), x.mean(axis=0)) for h, x in pairs], strict=True)
    return np.stack(hidden), np.stack(logits)


def agree(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("source", ["base", "mid", "sft"])
def test_means_are_nanochats(reference, source):
    prompts, arrays = reference
    model, _ = nanochat.load(DEVELOPMENT, source)
    hidden, logits = means(outputs(model, [prompt["ids"] for prompt in prompts]))
    agree(hidden, arrays[f"{source}_f32_mean_hidden"])
    agree(logits, arrays[f"{source}_f32_mean_logits"])


def test_means_without_bos_are_nanochats(reference):
    prompts, arrays = reference
    model, tokenizer = nanochat.load(DEVELOPMENT, "base")
    texts = [prompts[at]["text"] for at in arrays["nobos_prompts"]]
    assert len(texts) == 19
    hidden, logits = means(outputs(model, tokenizer(texts)["input_ids"]))
    agree(hidden, arrays["base_f32_nobos_mean_hidden"])
    agree(logits, arrays["base_f32_nobos_mean_logits"])


def test_every_position_is_nanochats(reference):
    prompts, arrays = reference
    model, _ = nanochat.load(DEVELOPMENT, "base", "d2", 80)
    pairs = list(outputs(model, [prompt["ids"] for prompt in prompts]))
    agree(np.concatenate([hidden for hidden, _ in pairs]), arrays["base_f32_hidden"])
    agree(np.stack([logits[-1] for _, logits in pairs]), arrays["base_f32_last_logits"])
    full = [pairs[at][1] for at in arrays["full_logits_prompts"]]
    agree(np.concatenate(full), arrays["base_f32_full_logits"])


def test_tokens_are_nanochats(reference, tmp_path):
    prompts, _ = reference
    nanochat.convert(DEVELOPMENT, "sft", None, None, tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    for tokenizer in (nanochat.load(DEVELOPMENT, "sft")[1], loaded):
        for prompt in prompts:
            if prompt["kind"] == "plain":
                assert tokenizer(prompt["text"])["input_ids"] == prompt["ids_nobos"], prompt["id"]
        tokenizer.add_bos_token = True
        for prompt in prompts:
            if prompt["kind"] == "plain":
                assert tokenizer(prompt["text"])["input_ids"] == prompt["ids"], prompt["id"]
        tokenizer.add_bos_token = tokenizer.split_special_tokens = False
        for prompt in prompts:
            if prompt["kind"] == "chat":
                chat = {"add_generation_prompt": True, "sanitize_control_tokens": True}
                ids = tokenizer.apply_chat_template(prompt["messages"], **chat)["input_ids"]
                assert ids == prompt["ids"], prompt["id"]
