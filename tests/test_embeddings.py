"""Shards: pure functions of their prompts, resumed and appended to, never shifted."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from isodense.embeddings import EmbeddingsParams, embed
from isodense.encoders import load_encoder
from isodense.errors import ArtifactError
from isodense.prompts import unique_prompts
from isodense.vectors import load_vectors
from tests import tiny
from tests.test_prompts import pair

PARAMS = EmbeddingsParams("auto", None, 64, 512, 16, "float32")


def prompts(count):
    return unique_prompts([pair(tiny.user(f"red {i} cat")) for i in range(count)], 0.2)


class Counting:
    """The real encoder, and how many texts it was given."""

    def __init__(self, folder):
        self._encoder, self.texts = load_encoder(folder, max_tokens=64), 0
        self.dim, self.device = self._encoder.dim, self._encoder.device
        self.tokenize = self._encoder.tokenize

    def encode(self, texts, on_batch=None):
        self.texts += len(texts)
        return self._encoder.encode(texts, on_batch)


@pytest.fixture
def folder(tmp_path):
    return tiny.encoder(tmp_path / "encoder")


def run(tmp_path, folder, count, params=PARAMS, out="out"):
    encoder = Counting(folder)
    report = embed(prompts(count), encoder, folder, params, "0", tmp_path / "cache", tmp_path / out)
    return encoder, report


def test_rows_are_the_encoders_own_in_prompt_order(tmp_path, folder):
    _, report = run(tmp_path, folder, 40)
    vectors, manifest = load_vectors(tmp_path / "out")
    expected = load_encoder(folder, max_tokens=64).encode(prompts(40).texts)
    assert (vectors == expected).all()
    assert report == {"prompts": 40, "dim": 32, "shards": 3, "truncated_share": 0.0}
    assert manifest["ids_sha256"] == prompts(40).ids_sha256


def test_a_second_run_computes_nothing_and_repeats_the_bytes(tmp_path, folder):
    run(tmp_path, folder, 40)
    encoder, _ = run(tmp_path, folder, 40, out="again")
    assert encoder.texts == 0
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_appending_computes_only_the_shards_that_changed(tmp_path, folder):
    run(tmp_path, folder, 40)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.npy")}
    encoder, _ = run(tmp_path, folder, 50)
    assert encoder.texts == 18  # rows 32..49: the third shard, now full, and the new fourth
    for name in ("shard-00000.npy", "shard-00001.npy"):
        assert (tmp_path / "out" / name).read_bytes() == before[name]
    assert load_vectors(tmp_path / "out")[0].shape == (50, 32)


def test_another_model_or_setting_shares_no_shard(tmp_path, folder):
    run(tmp_path, folder, 20)
    shutil.rmtree(folder)
    tiny.encoder(folder, seed=1)
    assert run(tmp_path, folder, 20)[0].texts == 20
    params = EmbeddingsParams("cls", None, 64, 512, 16, "float32")
    assert run(tmp_path, folder, 20, params)[0].texts == 20


def test_a_crash_loses_only_the_shard_in_flight(tmp_path, folder, monkeypatch):
    original = Counting.encode

    def dying(self, texts, on_batch=None):
        if self.texts:
            raise KeyboardInterrupt
        return original(self, texts, on_batch)

    monkeypatch.setattr(Counting, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, folder, 40)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Counting, "encode", original)
    assert run(tmp_path, folder, 40)[0].texts == 24


@pytest.mark.parametrize("stump", [b"", b"\x93NUMPY noise"])
def test_a_damaged_finished_shard_is_computed_again(tmp_path, folder, stump):
    run(tmp_path, folder, 40)
    whole = load_vectors(tmp_path / "out")[0]
    spoilt = sorted((tmp_path / "cache" / "embeddings").iterdir())[0]
    spoilt.write_bytes(stump)
    encoder, _ = run(tmp_path, folder, 40)
    assert 0 < encoder.texts <= 16
    assert (load_vectors(tmp_path / "out")[0] == whole).all()


def test_two_workspaces_may_compute_the_same_shard(tmp_path, folder):
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(run, tmp_path, folder, 20, PARAMS, f"out{i}") for i in range(4)]
        assert all(job.result() for job in jobs)
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_float16_halves_the_file_and_stays_close(tmp_path, folder):
    run(tmp_path, folder, 20, EmbeddingsParams("auto", None, 64, 512, 16, "float16"))
    vectors, _ = load_vectors(tmp_path / "out")
    exact = load_encoder(folder, max_tokens=64).encode(prompts(20).texts)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, exact, atol=1e-3)
    assert np.load(tmp_path / "out" / "shard-00000.npy").dtype == np.float16


def test_a_shard_of_another_shape_is_refused(tmp_path, folder):
    run(tmp_path, folder, 20)
    path = tmp_path / "out" / "shard-00001.npy"
    size = path.stat().st_size
    np.save(path, np.zeros((8, 16), dtype=np.float32))  # as many bytes, another shape
    assert path.stat().st_size == size
    with pytest.raises(ArtifactError, match=r"shard-00001\.npy has shape \(8, 16\)"):
        load_vectors(tmp_path / "out")
