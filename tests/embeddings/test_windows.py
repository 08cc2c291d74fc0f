"""Windows: all of a long prompt is read, and its vector is the mean of what was read."""

from __future__ import annotations

import shutil
from itertools import chain

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from isodense.embeddings import build
from isodense.embeddings.build import embed
from isodense.embeddings.encoder import load_encoder
from isodense.embeddings.preflight import preflight
from isodense.embeddings.reader import load_vectors
from isodense.embeddings.windows import split
from isodense.inspect.query import nearest_to
from isodense.pipeline.artifact import read_manifest
from isodense.pipeline.errors import ModelError
from isodense.prompts.reader import load_prompts
from tests import tiny
from tests.architectures import checkpoint
from tests.damage import reseal
from tests.embeddings.test_build import PARAMS, content
from tests.tables import publish_prompts

ANSWERS = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
LONG = " ".join(f"{word} {number}" for number in range(9) for word in tiny.WORDS)
TEXTS = [*tiny.texts(12), LONG, " ".join(tiny.WORDS * 4), f"{LONG} {LONG} cat"]
CASES = {
    "mean": ("sentence", {}),
    "cls": ("sentence", {"pooling": "cls"}),
    "prefix": ("sentence", {"prefix": "query: "}),
    "decoder": ("decoder", {}),
    "last": ("decoder", {"pooling": "last", "layer": 2}),
    "logits": ("decoder", {"space": "logits"}),
    "projected": ("decoder", {"space": "logits_projected", "projection": 16}),
    "full": ("decoder", {"space": "logits_full"}),
    "bfloat16": ("decoder", {"precision": "bfloat16"}),
    "padded": ("windowed", {}),
}


def framed(folder):
    """Let a folder's tokenizer put a token before and one after each text, as BERT's does."""
    made = AutoTokenizer.from_pretrained(folder)
    first, last = "<|im_start|>", "<|im_end|>"
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {last}",
        special_tokens=[(one, made.convert_tokens_to_ids(one)) for one in (first, last)],
    )
    made.save_pretrained(folder)
    reseal(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "sentence": framed(tiny.encoder(root / "sentence")),
        "decoder": tiny.policy(root / "decoder"),
        "windowed": checkpoint(root / "windowed", "mistral"),
    }


def load(folders, case, **kwargs):
    kind, settings = CASES[case]
    return load_encoder(folders[kind], **{"max_tokens": 32, "long": "windows"} | settings | kwargs)


def publish(folder, texts):
    rows = ({"prompt": tiny.user(text), **ANSWERS, "source": "test"} for text in texts)
    publish_prompts(rows, folder, 0.2)


def run(tmp_path, folder, out="out", **changes):
    changes = {"max_tokens": 32, "rows_per_shard": 8, "long": "windows"} | changes
    params = PARAMS.model_copy(update=changes)
    return embed(tmp_path / "prompts", folder, params, "cpu", tmp_path / "cache", tmp_path / out)


# --- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [9, 10, 27, 28, 29, 1000])
def test_windows_are_few_even_and_hold_every_token_once(tokens):
    ids = [-1, -2, *range(tokens), -3]
    windows = split(ids, first=2, end=1, longest=12)
    assert len(windows) == -(-tokens // 9)
    bodies = [window[2:-1] for window, _ in windows]
    assert list(chain(*bodies)) == list(range(tokens))
    assert {(*window[:2], window[-1]) for window, _ in windows} == {(-1, -2, -3)}
    sizes = [len(body) for body in bodies]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= 9
    np.testing.assert_allclose([share for _, share in windows], np.divide(sizes, tokens))


@pytest.mark.parametrize("prefix", ["", "query: "])
def test_every_window_reads_like_a_text(folders, prefix):
    encoder = load(folders, "mean", prefix=prefix)
    tokenizer = AutoTokenizer.from_pretrained(folders["sentence"])
    windows = encoder.windows(encoder.tokenize([LONG])[0]).ids
    assert len(windows) > 5
    assert all(len(ids) <= 32 for ids in windows)
    texts = [tokenizer.decode(ids[1:-1]) for ids in windows]
    start = "query:" if prefix else ""
    assert all(text.startswith(start) for text in texts)
    assert "".join(text.removeprefix(start) for text in texts).strip() == LONG
    assert [tokenizer(text)["input_ids"] for text in texts] == windows
    preflight(encoder, TEXTS)


# --- vectors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_short_texts_get_the_bytes_of_cut_and_long_ones_do_not(folders, case):
    windows, cut = load(folders, case), load(folders, case, long="cut")
    assert windows.packed == (case != "padded")
    rows, before = windows.encode(TEXTS), cut.encode(TEXTS)
    long = np.array([len(ids) > 32 for ids in windows.tokenize(TEXTS)[0]])
    assert 3 <= long.sum() < len(TEXTS)
    assert (rows[~long] == before[~long]).all()
    assert (rows[long] != before[long]).any(axis=1).all()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("case", ["mean", "cls", "decoder", "last", "full"])
def test_a_long_text_is_the_weighted_mean_of_its_windows(folders, case):
    """The oracle: each window alone through transformers."""
    encoder, (kind, settings) = load(folders, case), CASES[case]
    kinds = {"full": AutoModelForCausalLM}
    model = kinds.get(case, AutoModel).from_pretrained(folders[kind]).eval()
    ends = 2 if kind == "sentence" else 0
    total, tokens = 0.0, 0
    for ids in encoder.windows(encoder.tokenize([LONG])[0]).ids:
        with torch.no_grad():
            found = model(torch.tensor([ids]), output_hidden_states=True)
        if case == "full":
            states = found.logits[0]
        elif "layer" in settings:
            states = found.hidden_states[settings["layer"]][0]
        else:
            states = found.last_hidden_state[0]
        pooled = {"cls": states[0], "last": states[-1], "decoder": states[1:].mean(dim=0)}
        total += (len(ids) - ends) * pooled.get(case, states.mean(dim=0)).double().numpy()
        tokens += len(ids) - ends
    assert tokens == len(encoder.tokenize([LONG])[0][0]) - ends
    np.testing.assert_allclose(encoder.encode([LONG])[0], total / np.linalg.norm(total), atol=3e-6)


@pytest.mark.parametrize("case", ["mean", "decoder", "full", "padded"])
def test_bytes_depend_on_neither_batch_nor_company(folders, case):
    whole = load(folders, case).encode(TEXTS)
    for budget in (64, 200, 4096):
        encoder = load(folders, case, batch_tokens=budget)
        sizes = []
        forward = encoder._forward

        def watched(ids, forward=forward, sizes=sizes):
            sizes.append(sum(map(len, ids)))
            return forward(ids)

        encoder._forward = watched
        assert (encoder.encode(TEXTS) == whole).all()
        assert max(sizes) <= max(budget, 4 * 32)  # also where one text has more tokens
        order = np.random.default_rng(budget).permutation(len(TEXTS))
        assert (encoder.encode([TEXTS[row] for row in order]) == whole[order]).all()
    assert (np.concatenate([encoder.encode([text]) for text in TEXTS]) == whole).all()


def test_memory_that_runs_out_halves_the_batch_and_changes_no_byte(folders):
    whole, encoder = load(folders, "mean").encode(TEXTS), load(folders, "mean")
    forward, asked = encoder._forward, []

    def limited(ids):
        asked.append(sum(map(len, ids)))
        if asked[-1] > 200:
            raise RuntimeError("can't allocate memory")
        return forward(ids)

    encoder._forward = limited
    assert (encoder.encode(TEXTS) == whole).all()
    assert max(asked) > 200


# --- the stage ------------------------------------------------------------------------------------


def test_problems_with_one_long_suffix_are_told_apart(tmp_path, folders):
    folder = folders["sentence"]
    suffix = " ".join(tiny.WORDS * 12)
    assert len(load(folders, "mean").tokenize([suffix])[0][0]) > 300
    publish(tmp_path / "prompts", [f"problem {number} {suffix}" for number in range(500)])
    with pytest.raises(ModelError, match=r"500 of 500 .* equal") as caught:
        run(tmp_path, folder, long="cut")
    assert "embeddings.long: windows" in caught.value.hint
    report = run(tmp_path, folder)
    vectors = load_vectors(tmp_path / "out")[0]
    assert len(np.unique(vectors, axis=0)) == 500
    assert report["windows"]["prompts"] == 500
    assert report["windows"]["most"] > 10
    assert "equal_after_cutting" not in report
    assert report["truncated_share"] == 0


def test_the_stage_counts_windows_and_writes_what_the_encoder_gives(tmp_path, folders):
    folder = folders["sentence"]
    publish(tmp_path / "prompts", TEXTS)
    report = run(tmp_path, folder)
    counts = load(folders, "mean").windows(load(folders, "mean").tokenize(TEXTS)[0]).counts
    assert report["windows"] == {"prompts": (counts > 1).sum(), "most": counts.max()}
    first = content(tmp_path / "out")
    assert run(tmp_path, folder, "again") == report  # from finished shards
    assert content(tmp_path / "again") == first
    prompts = load_prompts(tmp_path / "prompts")
    rows = load(folders, "mean").encode(prompts.texts)
    assert (load_vectors(tmp_path / "out")[0] == rows).all()
    run(tmp_path, folder, "other", rows_per_shard=3, batch_tokens=64)
    assert (load_vectors(tmp_path / "other")[0] == rows).all()
    run(tmp_path, folder, "half", dtype="float16")
    np.testing.assert_allclose(load_vectors(tmp_path / "half")[0], rows, atol=1e-3)


def test_a_conversation_longer_than_a_window(tmp_path, folders):
    turns = [
        {"role": role, "content": f"{role} {LONG}"} for role in ("system", "user", "assistant")
    ]
    rows = [{"prompt": [*turns, *tiny.user(text)], **ANSWERS, "source": "t"} for text in TEXTS]
    publish_prompts(rows, tmp_path / "prompts", 0.2)
    report = run(tmp_path, folders["decoder"], postprocess="none")
    assert report["windows"]["prompts"] == len(TEXTS)
    texts = load_prompts(tmp_path / "prompts").texts
    assert all(LONG in text for text in texts)
    assert (load_vectors(tmp_path / "out")[0] == load(folders, "decoder").encode(texts)).all()


def test_explain_embeds_a_new_text_in_windows_too(tmp_path, folders):
    folder = folders["sentence"]
    publish(tmp_path / "prompts", [f"{word} {LONG}" for word in tiny.WORDS])
    run(tmp_path, folder)
    prompts = load_prompts(tmp_path / "prompts")
    row = prompts.positions("train")[3]
    found = nearest_to(prompts.texts[row], 2, tmp_path / "prompts", tmp_path / "out", folder)
    assert found.indices[0, 0] == 3
    assert found.distances[0, 0] < 1e-3 < found.distances[0, 1]


@pytest.mark.slow
def test_processes_and_small_parts_give_the_bytes_of_one(tmp_path, folders, monkeypatch):
    publish(tmp_path / "prompts", TEXTS)
    report = run(tmp_path, folders["sentence"], "alone", rows_per_shard=8)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv("ISODENSE_WORKERS", "2")
    monkeypatch.setattr("isodense.embeddings.build.PART", 3)
    assert run(tmp_path, folders["sentence"], rows_per_shard=8) == report
    assert content(tmp_path / "out") == content(tmp_path / "alone")


def test_a_crash_between_shards_changes_no_byte(tmp_path, folders, monkeypatch):
    folder = folders["sentence"]
    publish(tmp_path / "prompts", TEXTS)
    run(tmp_path, folder, "alone")
    whole = content(tmp_path / "alone")
    for path in (tmp_path / "cache/embeddings").glob("*/rows.npy"):
        path.unlink()
    original, shards = build._counted, []

    def dying(*args):
        shards.append(args)
        if len(shards) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(build, "_counted", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, folder)
    monkeypatch.setattr(build, "_counted", original)
    run(tmp_path, folder)
    assert content(tmp_path / "out") == whole


# --- what stays -----------------------------------------------------------------------------------


def test_cut_keeps_the_keys_and_manifests_of_before(tmp_path, folders):
    publish(tmp_path / "prompts", tiny.texts(12))
    run(tmp_path, folders["sentence"], long="cut")
    manifest = read_manifest(tmp_path / "out", "embeddings")
    assert manifest["params"] == {
        "space": "hidden",
        "pooling": "auto",
        "layer": None,
        "prefix": None,
        "max_tokens": 32,
        "precision": "float32",
        "dtype": "float32",
    }
    keys = {path.name for path in (tmp_path / "cache/embeddings").iterdir()}
    run(tmp_path, folders["sentence"], "windows")
    both = {path.name for path in (tmp_path / "cache/embeddings").iterdir()}
    assert len(both) == 2 * len(keys)
    assert read_manifest(tmp_path / "windows", "embeddings")["params"]["long"] == "windows"


def test_the_key_of_a_shard_is_that_before_the_param(monkeypatch):
    """Recorded at the commit before `embeddings.long`."""
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "1")
    monkeypatch.setattr("isodense.pipeline.cache.FORMAT_VERSION", 1)
    monkeypatch.setattr(build, "RECIPE", 1)
    assert (
        build._key(["a", "b"], {"model": "m"}, PARAMS, "cpu")
        == "d8a1a35ba4beb013fb86210b39314ca6326fa0de"
    )


# --- what is refused ------------------------------------------------------------------------------


def test_windows_without_the_tokens_around_a_text_are_refused(folders, monkeypatch):
    monkeypatch.setattr("isodense.embeddings.texts._special_tokens", lambda _tokenizer: ([], 0))
    with pytest.raises(ModelError, match="windows of a long text lack tokens"):
        preflight(load(folders, "mean"), TEXTS)
    preflight(load(folders, "decoder"), TEXTS)  # which has none
