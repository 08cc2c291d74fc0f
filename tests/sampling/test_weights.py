"""Loading weights: by id, never by position, and nothing unusable gets through."""

from __future__ import annotations

import json

import numpy as np
import pytest

import isodense
from isodense.pipeline.artifact import ids_sha256, publishing, write_manifest
from isodense.pipeline.errors import ArtifactError
from isodense.prompts.conversations import prompt_id

IDS = [f"{i * 7919:032x}" for i in (5, 1, 4, 2, 3)]
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.25, 0.15], dtype=np.float32)


def write(folder, weights=WEIGHTS, ids=IDS, claimed=None, dtype="S32", clusters=None):
    with publishing(folder) as scratch:
        np.save(scratch / "density_weights.npy", weights)
        np.save(scratch / "density.npy", np.zeros(len(ids), np.float32))
        numbers = np.arange(len(ids), dtype=np.int32) if clusters is None else clusters
        np.save(scratch / "duplicate_clusters.npy", numbers)
        np.save(scratch / "prompt_ids.npy", np.array(ids, dtype=dtype))
        write_manifest(scratch, "density", rows=len(ids), ids_sha256=ids_sha256(claimed or ids))
    return folder


def test_weights_read_back(tmp_path):
    loaded = isodense.load_weights(write(tmp_path / "d"))
    np.testing.assert_array_equal(loaded.weights, WEIGHTS)
    assert loaded.prompt_ids[0].decode() == IDS[0]
    assert loaded.clusters.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(loaded.density, np.load(tmp_path / "d/density.npy"))
    assert loaded.metadata["rows"] == 5


def test_the_ids_stay_on_disk(tmp_path):
    loaded = isodense.load_weights(write(tmp_path / "d"))
    assert isinstance(loaded.prompt_ids, np.memmap)
    assert isinstance(loaded.weights, np.memmap)
    assert loaded.prompt_ids.dtype == "S32"


@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 9000])
@pytest.mark.parametrize("length", [32, 7])
def test_the_hash_of_any_number_of_ids_of_any_length_is_checked(tmp_path, count, length):
    ids = [f"{i:0{length}x}" for i in range(count)]
    weights = np.full(count, 1 / count, dtype=np.float32)
    loaded = isodense.load_weights(write(tmp_path / "d", weights, ids))
    assert loaded.prompt_ids[-1].decode() == ids[-1]
    ids[-1] = ids[-1][:-1] + "z"
    with pytest.raises(ArtifactError, match="does not hold the ids of its manifest"):
        isodense.load_weights(write(tmp_path / "d", weights, ids, [*ids[:-1], "0" * length]))


@pytest.mark.parametrize("short", range(5))
def test_one_short_id_among_others_is_hashed_as_it_is(tmp_path, short):
    ids = [*IDS[:short], "abc", *IDS[short + 1 :]]
    loaded = isodense.load_weights(write(tmp_path / "d", ids=ids))
    assert loaded.prompt_ids[short] == b"abc"
    assert loaded.align(["abc"]).tolist() == [1]


def test_alignment_is_by_id(tmp_path):
    loaded = isodense.load_weights(write(tmp_path / "d"))
    aligned = loaded.align([IDS[3], IDS[0]])
    np.testing.assert_allclose(aligned, np.array([0.25, 0.1]) / 0.35, rtol=1e-6)
    assert aligned.dtype == np.float64
    assert len(loaded.align([])) == 0
    repeated = loaded.align([IDS[3], IDS[0], IDS[3]])
    np.testing.assert_allclose(repeated, np.array([0.125, 0.1, 0.125]) / 0.35, rtol=1e-6)


@pytest.mark.parametrize("unknown", ["f" * 32, "0" * 32, IDS[0] + "00", "é"])
def test_an_unknown_prompt_is_an_error_not_a_zero(tmp_path, unknown):
    loaded = isodense.load_weights(write(tmp_path / "d"))
    with pytest.raises(ArtifactError, match="1 of 2 prompts have no weight") as caught:
        loaded.align([IDS[0], unknown])
    assert unknown in str(caught.value)
    assert "held-out prompts have none: leave them out" in caught.value.hint
    assert "if they are new, run `dvc repro density`" in caught.value.hint


def test_alignment_takes_texts_and_conversations_too(tmp_path):
    asked = [[{"role": "user", "content": text}] for text in ("2+2?", "Why?")]
    ids = [prompt_id(asked[0]), *IDS[1:4], prompt_id(asked[1])]
    loaded = isodense.load_weights(write(tmp_path / "d", ids=ids))
    expected = loaded.align([ids[4], ids[2], ids[0]])
    for prompts in (["Why?", ids[2], "2+2?"], [asked[1], ids[2], asked[0]]):
        assert (loaded.align(prompts) == expected).all()
    with pytest.raises(ArtifactError, match=r"2 of 3 prompts have no weight, first 'What\?'"):
        loaded.align(["2+2?", "What?", [{"role": "user", "content": "How?"}]])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.nan, "not finite and positive, first in row 2"),
        (np.inf, "not finite and positive"),
        (0.0, "not finite and positive"),
        (-0.3, "not finite and positive"),
        (0.31, "sum to 1.01"),
    ],
)
def test_unusable_weights_are_refused(tmp_path, value, words):
    weights = WEIGHTS.copy()
    weights[2] = value
    with pytest.raises(ArtifactError, match=words) as caught:
        isodense.load_weights(write(tmp_path / "d", weights))
    assert str(tmp_path / "d/density_weights.npy") in caught.value.message
    assert "dvc repro density" in caught.value.hint


def test_arrays_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"has shape \(4,\), not \(5,\)\n.*dvc repro"):
        isodense.load_weights(write(tmp_path / "a", WEIGHTS[:4]))
    with pytest.raises(ArtifactError, match="does not hold the ids of its manifest"):
        isodense.load_weights(write(tmp_path / "b", claimed=IDS[::-1]))
    with pytest.raises(ArtifactError, match="has dtype <U32, not S32"):
        isodense.load_weights(write(tmp_path / "c", dtype="U32"))
    with pytest.raises(ArtifactError, match=r"has dtype float64, not float32\n.*dvc repro"):
        isodense.load_weights(write(tmp_path / "e", WEIGHTS.astype(np.float64)))
    with pytest.raises(ArtifactError, match="has dtype int64, not int32"):
        isodense.load_weights(write(tmp_path / "f", clusters=np.zeros(5, np.int64)))
    for wrong in (-1, 5):
        clusters = np.array([0, 1, wrong, 2, 3], np.int32)
        with pytest.raises(ArtifactError, match=r"clusters\.npy: 1 .* first row 2\n.*dvc"):
            isodense.load_weights(write(tmp_path / "g", clusters=clusters))
    with pytest.raises(ArtifactError, match="dvc repro density"):
        isodense.load_weights(tmp_path / "none")


def test_an_artifact_of_the_older_format_says_what_to_run(tmp_path):
    folder = write(tmp_path / "d")
    (folder / "duplicate_clusters.npy").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["duplicate_clusters.npy"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1}))
    with pytest.raises(ArtifactError, match="format version 1; this code reads 2") as caught:
        isodense.load_weights(folder)
    assert caught.value.hint == "run `dvc repro --force --single-item density`"


def test_draws_and_the_sampler_take_weights_as_they_are_loaded(tmp_path):
    loaded = isodense.load_weights(write(tmp_path / "d"))
    rows = isodense.draw(loaded.weights, size=50, seed=3)
    assert (isodense.draw(loaded, size=50, seed=3) == rows).all()
    assert list(isodense.DistributedWeightedSampler(loaded, 50, seed=3)) == rows.tolist()
