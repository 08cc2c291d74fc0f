"""Shards: pure functions of their prompts, resumed and appended to, never shifted."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from isodense.embeddings import build
from isodense.embeddings.build import embed, load_with
from isodense.embeddings.encoder import load_encoder
from isodense.embeddings.params import EmbeddingsParams
from isodense.embeddings.postprocess import load_transform
from isodense.embeddings.reader import load_vectors, read_shard_ids
from isodense.pipeline.artifact import ids_sha256, read_manifest
from isodense.pipeline.errors import ArtifactError, ModelError
from isodense.prompts.reader import load_prompts
from tests import tiny
from tests.architectures import checkpoint
from tests.cached import CHANGES, change
from tests.tables import tamper

PARAMS = EmbeddingsParams(
    space="hidden",
    pooling="auto",
    layer=None,
    projection=16,
    max_tokens=64,
    long="cut",
    precision="float32",
    batch_tokens=512,
    rows_per_shard=16,
    prefix=None,
    dtype="float32",
    postprocess="auto",
    components=1,
    fit_rows=24,
)


class Counting:
    """The real encoder, and how many texts it was given for good."""

    def __init__(self, encoder):
        self._encoder, self.texts, self._read = encoder, 0, None

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def tokenize_whole(self, texts):
        self._read, cut = self._encoder.tokenize_whole(texts)
        return self._read, cut

    def encode_tokens(self, ids):
        if ids is self._read:  # the preflight has others
            self.texts += len(ids)
        return self._encoder.encode_tokens(ids)


LOADED = threading.local()  # the encoders of a run


@pytest.fixture(autouse=True)
def _counted(monkeypatch):
    def load(*arguments):
        LOADED.encoders.append(Counting(load_with(*arguments)))
        return LOADED.encoders[-1]

    monkeypatch.setattr(build, "load_with", load)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.encoder(tmp_path_factory.mktemp("model") / "encoder")


def run(tmp_path, folder, count, out="out", **changes):
    """Embed and return how many texts were encoded, or None if no encoder was loaded."""
    params = PARAMS.model_copy(update=changes)
    prompts = tmp_path / f"prompts{count}"
    if not prompts.exists():
        tiny.prompts(prompts, count)
    LOADED.encoders = []
    report = embed(prompts, folder, params, "cpu", tmp_path / "cache", tmp_path / out)
    run.report = report
    return LOADED.encoders[0].texts if LOADED.encoders else None


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_rows_are_the_encoders_own_in_prompt_order(tmp_path, folder):
    run(tmp_path, folder, 40)
    vectors, manifest = load_vectors(tmp_path / "out")
    prompts = load_prompts(tmp_path / "prompts40")
    assert (vectors == load_encoder(folder, max_tokens=64).encode(prompts.texts)).all()
    assert manifest["ids_sha256"] == prompts.ids_sha256 == ids_sha256(prompts.ids)
    assert list(chain(*read_shard_ids(tmp_path / "out", manifest))) == prompts.ids
    tokens = [len(row) for row in load_encoder(folder, max_tokens=64).tokenize(prompts.texts)[0]]
    assert run.report == {
        "prompts": 40,
        "dim": 32,
        "shards": 3,
        "tokens_mean": round(sum(tokens) / 40, 2),
        "truncated_share": 0.0,
    }


def test_a_second_run_loads_no_encoder_and_repeats_the_bytes(tmp_path, folder):
    run(tmp_path, folder, 40)
    first = run.report
    assert run(tmp_path, folder, 40, out="again") is None
    assert run.report == first
    assert content(tmp_path / "out") == content(tmp_path / "again")


def test_bytes_do_not_depend_on_batches_or_shards(tmp_path, folder):
    run(tmp_path, folder, 40)
    whole = load_vectors(tmp_path / "out")[0]
    run(tmp_path, folder, 40, out="one", rows_per_shard=100, batch_tokens=64)
    assert (load_vectors(tmp_path / "one")[0] == whole).all()
    before = content(tmp_path / "out")
    shutil.rmtree(tmp_path / "cache")
    assert run(tmp_path, folder, 40, batch_tokens=4096) == 40
    assert content(tmp_path / "out") == before


def test_appending_computes_only_the_shards_that_changed(tmp_path, folder):
    run(tmp_path, folder, 40)
    before = content(tmp_path / "out")
    assert run(tmp_path, folder, 50) == 18  # rows 32..49: the third shard, now full, and the fourth
    after = content(tmp_path / "out")
    same = {name for name, data in before.items() if after[name] == data}
    assert same == {f"{stem}-0000{i}.{end}" for i in (0, 1) for stem, end in
                    (("shard", "npy"), ("ids", "txt"))}  # fmt: skip
    assert load_vectors(tmp_path / "out")[0].shape == (50, 32)


def test_another_model_or_setting_shares_no_shard(tmp_path, folder):
    run(tmp_path, folder, 20)
    other = tiny.encoder(tmp_path / "other", seed=1)
    assert run(tmp_path, other, 20) == 20
    assert run(tmp_path, folder, 20, pooling="cls") == 20
    assert run(tmp_path, folder, 20, dtype="float16") == 20
    assert run(tmp_path, folder, 20) is None


@pytest.mark.parametrize("what", CHANGES)
def test_another_library_device_or_recipe_shares_no_shard(tmp_path, folder, what, monkeypatch):
    run(tmp_path, folder, 20)
    change(what, "isodense.embeddings.build", "transformers", monkeypatch)
    assert run(tmp_path, folder, 20) == 20


def test_shards_are_marked_as_used_and_deleted_a_week_later(tmp_path, folder):
    run(tmp_path, folder, 20)
    entries = sorted((tmp_path / "cache/embeddings").iterdir())
    unused = tmp_path / "cache/embeddings/unused"
    unused.mkdir()
    for entry in (*entries, unused):
        os.utime(entry, (0, 0))
    assert run(tmp_path, folder, 20) is None
    assert sorted((tmp_path / "cache/embeddings").iterdir()) == entries


def test_ctrl_c_loses_only_the_shard_in_flight(tmp_path, folder, monkeypatch):
    original = Counting.encode_tokens

    def dying(self, ids):
        if self.texts:
            raise KeyboardInterrupt
        return original(self, ids)

    monkeypatch.setattr(Counting, "encode_tokens", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, folder, 40)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Counting, "encode_tokens", original)
    assert run(tmp_path, folder, 40) == 24


@pytest.mark.parametrize("spoil", ["empty", "noise", "bit", "note"])
def test_a_damaged_finished_shard_is_computed_again(tmp_path, folder, spoil):
    run(tmp_path, folder, 40)
    whole = content(tmp_path / "out")
    shard = sorted((tmp_path / "cache" / "embeddings").glob("*/rows.npy"))[0]
    data = shard.read_bytes()
    if spoil == "note":
        shard.with_name("counts.json").unlink()
    else:
        changed = data[:-1] + bytes([data[-1] ^ 1])
        shard.write_bytes({"empty": b"", "noise": b"\x93NUMPY noise", "bit": changed}[spoil])
    again = run(tmp_path, folder, 40)
    assert again == 0 if spoil == "note" else 0 < again <= 16  # vectors are not made twice
    assert content(tmp_path / "out") == whole


def test_two_workspaces_may_compute_the_same_shard(tmp_path, folder):
    tiny.prompts(tmp_path / "prompts20", 20)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(run, tmp_path, folder, 20, f"out{i}") for i in range(4)]
        assert all(job.result() is not None for job in jobs)
    found = [content(tmp_path / f"out{i}") for i in range(4)]
    assert all(other == found[0] for other in found)
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_float16_halves_the_file_and_stays_close(tmp_path, folder):
    run(tmp_path, folder, 20, dtype="float16")
    vectors, _ = load_vectors(tmp_path / "out")
    exact = load_encoder(folder, max_tokens=64).encode(load_prompts(tmp_path / "prompts20").texts)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, exact, atol=1e-3)
    assert np.load(tmp_path / "out" / "shard-00000.npy").dtype == np.float16


def test_prompts_that_are_not_their_manifests_are_refused_before_any_work(tmp_path, folder):
    prompts = tiny.prompts(tmp_path / "prompts20", 20)
    tamper(prompts, lambda rows: [rows[1], rows[0], *rows[2:]])
    with pytest.raises(ArtifactError, match="does not hold the prompts of its manifest"):
        run(tmp_path, folder, 20)
    assert not (tmp_path / "cache").exists()


def test_a_prompt_without_a_vector_is_named_by_its_row(tmp_path, folder, monkeypatch):
    original = Counting.encode_tokens
    broken = load_encoder(folder, max_tokens=64).tokenize([tiny.texts(40)[21]])[0][0]

    def forgetting(self, ids):
        return original(self, [[] if row == broken else row for row in ids])

    monkeypatch.setattr(Counting, "encode_tokens", forgetting)
    with pytest.raises(ModelError, match=r"prompts40, row 21 \(id [0-9a-f]{32}\): 1 of 16 texts"):
        run(tmp_path, folder, 40)
    monkeypatch.setattr(Counting, "encode_tokens", original)
    assert run(tmp_path, folder, 40) == 24  # the first shard was kept


def test_a_shard_of_another_shape_is_refused(tmp_path, folder):
    run(tmp_path, folder, 20)
    path = tmp_path / "out" / "shard-00001.npy"
    size = path.stat().st_size
    np.save(path, np.zeros((8, 16), dtype=np.float32))  # as many bytes, another shape
    assert path.stat().st_size == size
    with pytest.raises(ArtifactError, match=r"shard-00001\.npy is damaged"):
        load_vectors(tmp_path / "out")


# --- post-processing ------------------------------------------------------------------------------


def test_a_decoder_is_centred_and_keeps_its_transform_when_prompts_are_appended(tmp_path):
    policy = tiny.policy(tmp_path / "policy")
    run(tmp_path, policy, 60, layer=2)
    shards = content(tmp_path / "out")
    transform = load_transform(tmp_path / "out", read_manifest(tmp_path / "out", "embeddings"))
    prompts = load_prompts(tmp_path / "prompts60")
    raw = load_encoder(policy, layer=2, max_tokens=64).encode(prompts.texts).astype(float)
    fitted = raw[prompts.positions("train")[:24]]  # the oracle: scikit-learn's PCA of those rows
    from sklearn.decomposition import PCA

    pca = PCA(1).fit(fitted)
    rest = raw - pca.mean_
    rest -= np.outer(rest @ pca.components_[0], pca.components_[0])
    expected = rest / np.linalg.norm(rest, axis=1, keepdims=True)
    np.testing.assert_allclose(load_vectors(tmp_path / "out")[0], expected, atol=1e-5)
    stored = np.concatenate([np.load(p) for p in sorted((tmp_path / "out").glob("shard-*.npy"))])
    assert (stored == raw.astype(np.float32)).all()  # shards hold the encoder's own vectors
    run(tmp_path, policy, 80, layer=2)
    appended = content(tmp_path / "out")
    assert appended["transform.safetensors"] == shards["transform.safetensors"]
    assert transform.components.shape == (1, 32)
    run(tmp_path, policy, 80, layer=2, fit_rows=30)  # a refit is asked for
    assert content(tmp_path / "out")["transform.safetensors"] != shards["transform.safetensors"]


def test_post_processing_is_for_decoders_unless_told_otherwise(tmp_path, folder):
    run(tmp_path, folder, 60)
    assert read_manifest(tmp_path / "out", "embeddings")["transform"] is None
    assert run(tmp_path, folder, 60, postprocess="all_but_the_top") is None  # shards are the same
    assert read_manifest(tmp_path / "out", "embeddings")["transform"]["components"] == 1
    policy = tiny.policy(tmp_path / "policy")
    run(tmp_path, policy, 60, postprocess="none")
    assert read_manifest(tmp_path / "out", "embeddings")["transform"] is None
    with pytest.raises(ModelError, match="too few to fit 5 components"):
        run(tmp_path, policy, 60, components=5)


def test_the_error_of_a_projection_is_in_the_report_also_from_finished_shards(tmp_path):
    policy = tiny.policy(tmp_path / "policy")
    run(tmp_path, policy, 20, space="logits_projected", projection=64)
    error = run.report["projection_error"]
    assert 0 < error["median"] < error["max"] < 0.5
    assert run(tmp_path, policy, 20, space="logits_projected", projection=64) is None
    assert run.report["projection_error"] == error


# --- workers --------------------------------------------------------------------------------------


def test_why_texts_ran_in_padded_batches_is_reported_also_of_finished_shards(
    tmp_path, folder, caplog
):
    windowed = checkpoint(tmp_path / "mistral", "mistral")
    with caplog.at_level("INFO", logger="isodense"):
        run(tmp_path, windowed, 60)
    reason = "its attention has a window shorter than max_tokens, 64"
    assert run.report["padded"] == reason
    assert f"texts run in padded batches, not in packs: {reason}" in caplog.messages
    assert run(tmp_path, windowed, 60, out="again") is None
    assert run.report["padded"] == reason
    run(tmp_path, folder, 60, out="packed")
    assert "padded" not in run.report


def test_parts_of_shards_give_the_same_bytes_and_reports(tmp_path, folder, monkeypatch):
    for case in ({"space": "logits_projected"}, {"max_tokens": 16}):
        name = next(iter(case))
        model = tiny.policy(tmp_path / "policy") if name == "space" else folder
        run(tmp_path, model, 40, out=f"{name}-whole", **case)
        report = run.report
        shutil.rmtree(tmp_path / "cache")
        with monkeypatch.context() as patch:
            patch.setattr(build, "PART", 7)
            run(tmp_path, model, 40, out=f"{name}-parts", **case)
        assert content(tmp_path / f"{name}-parts") == content(tmp_path / f"{name}-whole")
        if name != "space":  # the error of a projection is that of the first part
            assert run.report == report
        shutil.rmtree(tmp_path / "cache")


@pytest.mark.slow
def test_processes_give_the_bytes_of_one(tmp_path, folder):
    alone = stage(tmp_path, folder, "alone")
    assert alone.returncode == 0, alone.stderr
    done = stage(tmp_path, folder, "both", ISODENSE_WORKERS="2", ISODENSE_CACHE="fresh")
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "both") == content(tmp_path / "alone")
    for name, value in (("ISODENSE_WORKERS", "two"), ("ISODENSE_EXECUTOR", "spark")):
        wrong = stage(tmp_path, folder, "none", **{name: value, "ISODENSE_CACHE": value})
        assert wrong.returncode == 1
        assert f"{name} is {value!r}" in wrong.stderr


def stage(tmp_path, folder, out, count=100, **environ):
    """Run the stage's script as DVC does."""
    if not (tmp_path / "prompts").exists():
        tiny.prompts(tmp_path / "prompts", count)
    write_params(tmp_path)
    words = ["--prompts", "prompts", "--encoder", folder, "--out", out, "--metrics", f"{out}.json"]
    return subprocess.run(
        [sys.executable, STAGE, *words],
        cwd=tmp_path,
        env={**os.environ, "CI": "1", "ISODENSE_CACHE": "cache", **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )


def write_params(folder):
    section = PARAMS.model_dump()
    text = json.dumps({"base": {"seed": 0, "device": "cpu"}, "embeddings": section})
    (folder / "params.yaml").write_text(text)


STAGE = Path(__file__).parents[2] / "stages" / "embeddings.py"
CHILD = """
import os, runpy, sys
sys.path.insert(0, {src!r})
import torch
import isodense.embeddings.encoder  # once, so that a run takes no seconds to start
torch.set_num_threads(1)
for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.argv = [{stage!r}, *line.split()]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            os._exit(stop.code or 0)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def finished(folder):
    return len(list((folder / "cache").glob("embeddings/*/rows.npy")))


def test_kill_9_at_any_moment_costs_at_most_the_shard_in_flight(tmp_path, folder):
    tiny.prompts(tmp_path / "prompts", 600)
    write_params(tmp_path)
    source = CHILD.format(src=str(STAGE.parents[1] / "src"), stage=str(STAGE))
    environ = {**os.environ, "CI": "1", "ISODENSE_CACHE": "cache"}
    server = subprocess.Popen(
        [sys.executable, "-c", source],
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    words = f"--prompts prompts --encoder {folder} --out {{0}} --metrics {{0}}.json\n"

    def start(out):
        server.stdin.write(words.format(out))
        server.stdin.flush()
        return int(server.stdout.readline())

    def ended():
        return int(server.stdout.readline())

    moments = random.Random(0)
    with server:
        start("alone")
        began = time.monotonic()
        assert ended() == 0
        takes = time.monotonic() - began
        shutil.rmtree(tmp_path / "cache")
        kills, kept = 0, []
        for _ in range(200):
            before = finished(tmp_path)
            child, wanted, began = start("out"), moments.choice([0, 1, 1, 2]), time.monotonic()
            while finished(tmp_path) < before + wanted and time.monotonic() - began < 10:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.01 if wanted else takes / 3))
            with contextlib.suppress(ProcessLookupError):  # it may just have ended by itself
                os.kill(child, 9)
            kills += ended() == -9
            kept.append(finished(tmp_path))
            if kills == 16:
                break
        start("out")
        assert ended() == 0
        server.stdin.close()
    assert kills >= 12
    assert kept == sorted(kept)  # no finished shard is ever lost
    assert 10 < kept[-1] < 38
    assert content(tmp_path / "out") == content(tmp_path / "alone")
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "alone.json").read_bytes()
