from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from isodense.pipeline.errors import TrainingError
from isodense.reward import features, linear_probe
from isodense.reward.base import Task
from isodense.reward.linear_probe import Head, cross_validate, fit_head, make, margins_of
from tests.rl import reward_params


def preferences(count: int, dim: int = 8, seed: int = 0):
    """Return features of pairs drawn from a known Bradley-Terry model, and its weight."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=dim)
    first, second = rng.normal(size=(2, count, dim))
    wins = rng.random(count) < 1 / (1 + np.exp(-(first - second) @ weight))
    chosen = np.where(wins[:, None], first, second)
    return chosen, np.where(wins[:, None], second, first), weight


def even(chosen: np.ndarray, rejected: np.ndarray, l2: float) -> Head:
    return fit_head(chosen, rejected, l2, np.ones(len(chosen)))


def test_the_head_finds_the_direction_and_size_that_made_the_preferences():
    chosen, rejected, weight = preferences(20_000)
    np.testing.assert_allclose(even(chosen, rejected, 1e-6).weight, weight, atol=0.1)


def test_the_head_agrees_with_scikit_learn():
    chosen, rejected, _ = preferences(300)
    l2 = 0.05
    scale = np.concatenate([chosen, rejected]).std(axis=0)
    difference = (chosen - rejected) / scale
    both_ways = np.concatenate([difference, -difference])
    labels = np.repeat([1, 0], len(difference))
    peer = LogisticRegression(C=1 / (l2 * len(both_ways)), fit_intercept=False, tol=1e-10)
    peer.fit(both_ways, labels)
    head = even(chosen, rejected, l2)
    np.testing.assert_allclose(head.weight * scale, peer.coef_[0], rtol=1e-4)


def test_a_pair_that_weighs_k_is_a_pair_that_stands_there_k_times():
    chosen, rejected, _ = preferences(120)
    times = np.random.default_rng(1).integers(1, 5, len(chosen))
    weighted = fit_head(chosen, rejected, 0.05, times / times.mean())
    repeated = even(np.repeat(chosen, times, axis=0), np.repeat(rejected, times, axis=0), 0.05)
    np.testing.assert_allclose(weighted.weight, repeated.weight, rtol=1e-4, atol=1e-5)
    assert weighted.bias == pytest.approx(repeated.bias, abs=1e-5)
    plain = even(chosen, rejected, 0.05)
    assert np.abs(plain.weight - weighted.weight).max() > 0.01


def test_rewards_do_not_depend_on_the_features_units_and_average_zero():
    chosen, rejected, _ = preferences(500)
    units = np.array([1e-3, 1, 5, 100, 2, 0.1, 7, 1e4])
    one = even(chosen, rejected, 0.1)
    other = even(chosen * units + 3, rejected * units + 3, 0.1)
    rewards = chosen @ one.weight + one.bias
    np.testing.assert_allclose(rewards, (chosen * units + 3) @ other.weight + other.bias, atol=1e-4)
    everything = np.concatenate([chosen, rejected]) @ one.weight + one.bias
    assert everything.mean() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("value", [7.0, 0.1])
def test_a_constant_feature_gets_no_weight(value: float):
    chosen, rejected, _ = preferences(101)
    chosen[:, 3] = rejected[:, 3] = value
    weights = np.random.default_rng(0).random(101)
    for head in (even(chosen, rejected, 0.1), fit_head(chosen, rejected, 0.1, weights)):
        assert head.weight[3] == 0


def test_separable_pairs_still_converge():
    chosen = np.ones((50, 3)) * [1, 2, 3]
    assert (chosen @ even(chosen, -chosen, 1e-4).weight > 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_an_error(value: float):
    chosen, rejected, _ = preferences(10)
    chosen[0, 0] = value
    with pytest.raises(TrainingError, match="not all finite"):
        even(chosen, rejected, 0.1)


@pytest.mark.parametrize("block", [1, 7, 100, 299])
def test_blocks_of_any_size_give_the_same_head(block: int, monkeypatch: pytest.MonkeyPatch):
    chosen, rejected, _ = preferences(300)
    chosen[:, 2] = rejected[:, 2] = 5
    weights = np.random.default_rng(0).random(300) + 0.5
    whole = fit_head(chosen, rejected, 0.05, weights / weights.mean())
    monkeypatch.setattr(linear_probe, "BLOCK", block)
    parts = fit_head(chosen, rejected, 0.05, weights / weights.mean())
    np.testing.assert_allclose(parts.weight, whole.weight, rtol=1e-6, atol=1e-9)
    assert parts.bias == pytest.approx(whole.bias, abs=1e-8)
    assert parts.weight[2] == 0
    rejected[-1, 0] = np.nan
    with pytest.raises(TrainingError, match="300 pairs whose features are not all finite"):
        fit_head(chosen, rejected, 0.05, weights)


def written(out: Path, count: int, dim: int, monkeypatch: pytest.MonkeyPatch):
    """Fit and write a head on made features of pairs, a tenth of them held out."""
    chosen, rejected, _ = preferences(count, dim)
    rows = np.concatenate([chosen, rejected]).astype(np.float32)
    cut = np.zeros(len(rows), dtype=bool)
    monkeypatch.setattr(features, "load_features", lambda *_: (rows, cut))
    pairs = [{"prompt": [], "chosen": [{"content": ""}], "rejected": [{"content": ""}]}] * count
    train = count - count // 10
    folds, shares, params = np.arange(train) // 2 % 5, np.ones(train), reward_params()
    task = Task(pairs[:train], pairs[train:], shares, folds, None, Path(), params, 0, "cpu", out)
    out.mkdir()
    return make(task, out), (out / "head.safetensors").read_bytes()


def test_held_out_pairs_are_those_after_the_training_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, _ = written(tmp_path / "whole", 200, 8, monkeypatch)
    assert (len(whole.train), len(whole.heldout)) == (180, 20)
    monkeypatch.setattr(linear_probe, "BLOCK", 33)
    parts, _ = written(tmp_path / "parts", 200, 8, monkeypatch)
    np.testing.assert_allclose(parts.heldout, whole.heldout, atol=1e-6)
    np.testing.assert_allclose(parts.train, whole.train, atol=1e-6)


def test_cross_validation_measures_what_a_fit_on_other_folds_knows():
    """Pairs without any rule are known by heart where a copy is in another fold, only then."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(2, 60, 200)), 2, axis=1)  # each pair comes twice
    together, apart = np.arange(120) // 2 % 5, np.arange(120) % 5
    shares = np.ones(120)
    accuracy = {
        name: (cross_validate(*rows, 0.01, shares, folds) > 0).mean()
        for name, folds in (("together", together), ("apart", apart))
    }
    assert accuracy["apart"] > 0.95
    assert 0.3 < accuracy["together"] < 0.7
    assert (margins_of(fit_head(*rows, 0.01, shares), *rows) > 0).all()
    assert cross_validate(*rows, 0.01, shares, 0 * together) is None


def test_cross_validation_of_a_rule_finds_it_and_copies_no_more_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(linear_probe, "CROSS", 100)
    made, _ = written(tmp_path / "few", 200, 8, monkeypatch)
    assert len(made.cross_validated) == 100
    assert (made.cross_validated > 0).mean() > 0.7  # the pairs are drawn, not sorted


def test_a_fit_holds_a_few_blocks_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(linear_probe, "BLOCK", 500)
    rows = np.random.default_rng(0).normal(size=(40_000, 64)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    chosen, rejected = np.split(np.load(tmp_path / "rows.npy", mmap_mode="r"), 2)
    even(chosen[:500], rejected[:500], 0.1)  # imports
    tracemalloc.start()
    even(chosen, rejected, 0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < rows.nbytes / 3
