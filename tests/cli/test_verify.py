"""Embedding a sample again tells the same vectors from drifted ones and from another model's."""

from __future__ import annotations

import numpy as np
import pytest

from isodense.cli.verify import recompute
from isodense.embeddings.build import embed
from isodense.pipeline.artifact import read_manifest, write_manifest
from isodense.pipeline.errors import ArtifactError
from tests import tiny
from tests.embeddings.test_build import PARAMS


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny.encoder(tmp_path_factory.mktemp("model") / "encoder")


def embedded(root, encoder, count=40, **changes):
    """Embed so many prompts under a folder; return where prompts and embeddings are."""
    prompts = root / "prompts"
    if not prompts.exists():
        tiny.prompts(prompts, count)
    params = PARAMS.model_copy(update=changes)
    embed(prompts, encoder, params, "cpu", root / "cache", root / "embeddings")
    return root / "embeddings", prompts


def rewritten(folder, change, **fields):
    """Apply a function to every shard and describe the artifact anew; return what was there."""
    manifest = read_manifest(folder, "embeddings")
    before = {path: np.load(path) for path in sorted(folder.glob("shard-*.npy"))}
    for path, rows in before.items():
        np.save(path, change(rows))
    kept = {name: value for name, value in manifest.items() if name not in FIXED}
    write_manifest(folder, "embeddings", **kept | fields)
    return before


FIXED = ("format_version", "kind", "files")


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "float16"},
        {"precision": "bfloat16"},
        {"pooling": "cls", "max_tokens": 16},
        {"batch_tokens": 64, "rows_per_shard": 7},
        {"postprocess": "all_but_the_top"},  # shards hold the encoder's own vectors
    ],
)
def test_what_the_encoder_made_is_the_same_however_it_was_batched(tmp_path, encoder, changes):
    folder, prompts = embedded(tmp_path, encoder, **changes)
    for count in (1, 7, 40, 1000):
        assert recompute(folder, prompts, encoder, count, "cpu") == "same"


@pytest.mark.parametrize("space", ["logits", "logits_projected"])
def test_logits_are_computed_again_as_they_were(tmp_path, space):
    policy = tiny.policy(tmp_path / "policy")
    folder, prompts = embedded(tmp_path, policy, space=space)
    assert recompute(folder, prompts, policy, 9, "cpu") == "same"


def test_rounding_is_drift_and_its_largest_difference_is_named(tmp_path, encoder):
    folder, prompts = embedded(tmp_path, encoder)
    before = rewritten(folder, lambda rows: (rows * (1 + 1e-6)).astype(np.float32))
    largest = max(np.abs(np.load(path) - rows).max() for path, rows in before.items())
    assert 1e-8 < largest < 1e-6
    verdict = recompute(folder, prompts, encoder, 40, "cpu")
    assert verdict == f"drifted (largest difference {largest:.1e})"


def test_one_entry_that_differs_is_found_in_whichever_shard(tmp_path, encoder):
    folder, prompts = embedded(tmp_path, encoder)
    last = folder / "shard-00002.npy"
    rows = np.load(last)
    rows[-1, 5] += 2e-3
    np.save(last, rows)
    rewritten(folder, lambda rows: rows)
    assert recompute(folder, prompts, encoder, 40, "cpu") == "drifted (largest difference 2.0e-03)"
    assert recompute(folder, prompts, encoder, 2, "cpu").startswith("drifted")  # first and last
    assert recompute(folder, prompts, encoder, 1, "cpu") == "same"  # the first alone


def test_another_model_is_told_by_its_hash_without_embedding(tmp_path, encoder, monkeypatch):
    folder, prompts = embedded(tmp_path, encoder)
    other = tiny.encoder(tmp_path / "other", seed=1)
    monkeypatch.setattr("isodense.cli.verify.load_with", None)
    verdict = recompute(folder, prompts, other, 5, "cpu")
    wanted = read_manifest(folder, "embeddings")["inputs"]["encoder"]
    assert verdict.startswith("different model (the hash of ")
    assert str(other) in verdict
    assert wanted[:12] in verdict


def test_another_model_is_told_by_its_vectors(tmp_path, encoder):
    folder, prompts = embedded(tmp_path, encoder)
    rng = np.random.default_rng(0)
    rewritten(folder, lambda rows: unit(rng.normal(size=rows.shape)))
    verdict = recompute(folder, prompts, encoder, 5, "cpu")
    assert verdict.startswith("different model (smallest cosine ")


def test_rows_in_another_order_are_not_the_models(tmp_path, encoder):
    folder, prompts = embedded(tmp_path, encoder)
    rewritten(folder, lambda rows: rows[::-1])
    assert recompute(folder, prompts, encoder, 5, "cpu").startswith("different model")


def test_another_number_of_columns_is_another_model(tmp_path, encoder):
    folder, prompts = embedded(tmp_path, encoder)
    rewritten(folder, lambda rows: unit(rows[:, :16]), dim=16)
    verdict = recompute(folder, prompts, encoder, 5, "cpu")
    assert verdict == "different model (it gives 32 columns, not 16)"


def test_other_prompts_are_refused(tmp_path, encoder):
    folder, _ = embedded(tmp_path, encoder)
    other = tiny.prompts(tmp_path / "other", 39)
    with pytest.raises(ArtifactError, match="belong to other prompts"):
        recompute(folder, other, encoder, 5, "cpu")


@pytest.mark.parametrize("factor", [0, 3, np.nan])
def test_rows_that_are_not_unit_are_not_drift(tmp_path, encoder, factor):
    folder, prompts = embedded(tmp_path, encoder)
    rewritten(folder, lambda rows: rows * np.float32(factor))
    assert recompute(folder, prompts, encoder, 5, "cpu").startswith("different model")
