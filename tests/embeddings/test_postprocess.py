"""All-but-the-top finds the directions that were planted, and removes those and the mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isodense.embeddings.postprocess import FILE, Transform, fit, load_transform
from isodense.pipeline.artifact import sha256_file, write_manifest
from isodense.pipeline.errors import ModelError
from isodense.pipeline.runtime import one_thread

DIM, PLANTED = 24, 3


def planted(count, seed=0):
    """Return unit rows about one direction, with strong components and weak isotropic noise.

    Also the directions themselves, the strongest first, all at right angles.
    """
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(np.random.default_rng(99).normal(size=(DIM, DIM)))[0].T
    mean, directions = axes[0], axes[1 : PLANTED + 1]
    strengths = np.array([0.3, 0.2, 0.13])
    rows = mean + (rng.normal(size=(count, PLANTED)) * strengths) @ directions
    rows += 0.02 * rng.normal(size=(count, DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), mean, directions


def blocks(rows, size=100):
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@pytest.fixture(scope="module")
def fitted():
    rows, mean, directions = planted(4000)
    return fit(blocks(rows), PLANTED), rows, mean, directions


def test_the_planted_directions_are_found_strongest_first(fitted):
    found, _, mean, directions = fitted
    assert (found.mean @ mean) / np.linalg.norm(found.mean) > 0.9999
    cosines = np.abs(found.components.astype(np.float64) @ directions.T)
    assert (cosines.diagonal() > 0.99).all()
    np.testing.assert_allclose(found.components @ found.components.T, np.eye(PLANTED), atol=1e-6)
    assert (np.take_along_axis(found.components, largest(found), axis=1) > 0).all()


def largest(found):
    return np.abs(found.components).argmax(axis=1)[:, None]


def test_what_is_left_is_unit_centred_and_isotropic(fitted):
    found, rows, _, directions = fitted
    out = found.apply(rows)
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(out.astype(float), axis=1), 1, atol=1e-6)
    assert np.linalg.norm(rows.mean(axis=0)) > 0.9
    assert np.linalg.norm(out.mean(axis=0)) < 0.05
    before, after = (variances(found) for found in (rows, out))
    assert before[0] > 0.5  # of all variance, in one of 24 directions
    assert after[0] < 0.25
    assert after[-PLANTED:].max() < 1e-6  # no row points where a component was
    assert np.abs(out @ directions.T).mean() < 0.1 < np.abs(rows @ directions.T).mean()


def variances(rows):
    """Return the share of the variance of each principal direction, the largest first."""
    squares = np.linalg.svd(rows.astype(float) - rows.mean(axis=0), compute_uv=False) ** 2
    return squares / squares.sum()


def test_new_rows_lose_the_same_directions(fitted):
    found, *_, directions = fitted
    fresh = planted(500, seed=5)[0]
    out = found.apply(fresh)
    assert np.abs(out @ found.components.T).max() < 1e-6
    assert (out[:50] == found.apply(fresh[:50])).all()
    assert np.abs(out @ directions.T).mean() < 0.1


def test_fewer_components_leave_the_weaker_ones(fitted):
    _, rows, _, directions = fitted
    out = fit(blocks(rows), 1).apply(rows)
    seen = np.abs(out @ directions.T).mean(axis=0)
    assert seen[0] < 0.1
    assert seen[1] > 0.5


def test_no_components_only_centre(fitted):
    _, rows, *_ = fitted
    found = fit(blocks(rows), 0)
    assert found.components.shape == (0, DIM)
    out = found.apply(rows).astype(np.float64)
    centred = rows - rows.astype(np.float64).mean(axis=0)
    cosines = (out * centred).sum(axis=1) / np.linalg.norm(centred, axis=1)
    np.testing.assert_allclose(cosines, 1, atol=1e-6)


def test_blocks_do_not_matter(fitted):
    whole, rows, *_ = fitted
    for size in (1, 333, 4000):
        other = fit(blocks(rows, size), PLANTED)
        np.testing.assert_allclose(other.mean, whole.mean, atol=1e-6)
        np.testing.assert_allclose(other.components, whole.components, atol=1e-5)
    turned = fit(blocks(rows[::-1]), PLANTED)
    np.testing.assert_allclose(turned.components, whole.components, atol=1e-5)


@pytest.mark.parametrize(("components", "needed"), [(0, 10), (3, 40)])
def test_too_few_rows_are_refused(components, needed):
    rows = planted(needed)[0]
    fit([rows], components)
    with pytest.raises(ModelError, match=f"{needed - 1} training prompts are too few to fit"):
        fit([rows[1:]], components)
    with pytest.raises(ModelError, match="0 training prompts are too few"):
        fit([], components)


def test_a_row_of_which_nothing_is_left_is_named(fitted):
    found, rows, *_ = fitted
    gone = np.concatenate([rows[:2], found.mean[None], (found.mean + found.components[1])[None]])
    with pytest.raises(ModelError, match=r"nothing of 2 vectors, first 2(?s:.)*postprocess: none"):
        found.apply(gone)


@pytest.mark.parametrize("components", [0, 1, 3])
def test_a_transform_is_read_back_as_it_was_written(fitted, tmp_path, components):
    found = fit(blocks(fitted[1]), components)
    found.save(tmp_path)
    read = load_transform(tmp_path, write_manifest(tmp_path, "embeddings"))
    assert read.components.shape == (components, DIM)
    assert (read.mean == found.mean).all()
    assert (read.components == found.components).all()
    assert (read.apply(fitted[1]) == found.apply(fitted[1])).all()


def test_bytes_are_the_same_at_any_thread_count(tmp_path):
    rows = np.random.default_rng(0).normal(size=(3000, 160)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            with one_thread():
                fit(blocks(rows, 700), 4).save(tmp_path)
            found.append(sha256_file(tmp_path / FILE))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]


def test_rows_that_need_no_transform_are_left_as_they_are():
    rows = np.eye(4, dtype=np.float32)
    nothing = Transform(np.zeros(4, np.float32), np.zeros((0, 4), np.float32))
    assert (nothing.apply(rows) == rows).all()
