from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from isodense.conversations import prompt_id
from isodense.errors import TrainingError
from isodense.promptset import PromptSet
from isodense.reward import RewardParams, accuracy, fit, fit_head, split_pairs, wilson
from isodense.reward_model import load_reward
from tests.rl import make_pairs, snapshot, write_inputs

PARAMS = RewardParams(layer=2, pooling="both", max_tokens=128, l2=0.01, batch_tokens=2048)


def preferences(count: int, dim: int = 8, seed: int = 0):
    """Return features of pairs drawn from a known Bradley-Terry model, and its weight."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=dim)
    first, second = rng.normal(size=(2, count, dim))
    wins = rng.random(count) < 1 / (1 + np.exp(-(first - second) @ weight))
    chosen = np.where(wins[:, None], first, second)
    return chosen, np.where(wins[:, None], second, first), weight


def test_the_head_finds_the_direction_and_size_that_made_the_preferences():
    chosen, rejected, weight = preferences(20_000)
    head = fit_head(chosen, rejected, l2=1e-6)
    np.testing.assert_allclose(head.weight, weight, atol=0.1)


def test_the_head_agrees_with_scikit_learn():
    chosen, rejected, _ = preferences(300)
    l2 = 0.05
    scale = np.concatenate([chosen, rejected]).std(axis=0)
    difference = (chosen - rejected) / scale
    both_ways = np.concatenate([difference, -difference])
    labels = np.repeat([1, 0], len(difference))
    peer = LogisticRegression(C=1 / (l2 * len(both_ways)), fit_intercept=False, tol=1e-10)
    peer.fit(both_ways, labels)
    head = fit_head(chosen, rejected, l2)
    np.testing.assert_allclose(head.weight * scale, peer.coef_[0], rtol=1e-4)


def test_rewards_do_not_depend_on_the_features_units_and_average_zero():
    chosen, rejected, _ = preferences(500)
    units = np.array([1e-3, 1, 5, 100, 2, 0.1, 7, 1e4])
    one = fit_head(chosen, rejected, 0.1)
    other = fit_head(chosen * units + 3, rejected * units + 3, 0.1)
    rewards = chosen @ one.weight + one.bias
    np.testing.assert_allclose(rewards, (chosen * units + 3) @ other.weight + other.bias, atol=1e-4)
    everything = np.concatenate([chosen, rejected]) @ one.weight + one.bias
    assert everything.mean() == pytest.approx(0, abs=1e-9)


def test_a_constant_feature_gets_no_weight():
    chosen, rejected, _ = preferences(100)
    chosen[:, 3] = rejected[:, 3] = 7
    assert fit_head(chosen, rejected, 0.1).weight[3] == 0


def test_separable_pairs_still_converge():
    chosen = np.ones((50, 3))
    head = fit_head(chosen, -chosen, 1e-4)
    assert (chosen @ head.weight > 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_an_error(value: float):
    chosen, rejected, _ = preferences(10)
    chosen[0, 0] = value
    with pytest.raises(TrainingError, match="not all finite"):
        fit_head(chosen, rejected, 0.1)


def test_wilson_gives_the_textbook_interval():
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == pytest.approx(1)


def test_a_tie_counts_one_half():
    assert accuracy(np.array([1.0, -2.0, 0.0, 0.0]))["accuracy"] == 0.5
    assert accuracy(np.array([1.0, 0.0]))["accuracy"] == 0.75


def test_pairs_go_with_their_prompts_split():
    pairs = make_pairs(3)
    splits = [(pairs[0], "train"), (pairs[1], "heldout")]
    rows = [{"id": prompt_id(pair["prompt"]), "split": split} for pair, split in splits]
    parts = split_pairs(pairs, PromptSet(rows))
    assert parts == {"train": [pairs[0]], "heldout": [pairs[1]], "unknown": [pairs[2]]}
    with pytest.raises(TrainingError, match=r"raise prompts\.heldout"):
        split_pairs(pairs, PromptSet(rows[:1]))
    with pytest.raises(TrainingError, match="dvc repro prompts"):
        split_pairs(pairs, PromptSet(rows[1:]))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory):
    """Fit the reward of the tiny policy twice."""
    folder = tmp_path_factory.mktemp("reward")
    prompts = write_inputs(folder, count=150)
    pairs = make_pairs(150)
    reports = [
        fit(pairs, prompts, folder / "models/policy", PARAMS, "cpu", {"pairs": "p"}, folder / name)
        for name in ("one", "two")
    ]
    return folder, pairs, prompts, reports


def test_a_learnable_preference_is_learnt_and_counted(fitted):
    _, pairs, prompts, (report, _) = fitted
    assert report["train_pairs"] + report["heldout_pairs"] == len(pairs)
    assert report["heldout_pairs"] == len(prompts.split("heldout"))
    assert report["unknown_pairs"] == report["truncated_pairs"] == 0
    heldout = report["heldout"]
    assert heldout["accuracy"] > 0.95
    assert heldout["low"] < heldout["accuracy"] <= heldout["high"]
    assert report["length_only"]["prefers"] == "longer"
    assert report["length_only"]["accuracy"] < heldout["accuracy"]


def test_the_same_input_gives_the_same_bytes(fitted):
    folder, *_, (one, two) = fitted
    assert one == two
    assert snapshot(folder / "one") == snapshot(folder / "two")
    assert str(folder).encode() not in b"".join(snapshot(folder / "one").values())


def test_the_saved_reward_prefers_what_the_pairs_prefer(fitted):
    folder, pairs, *_ = fitted
    model = load_reward(folder / "one", folder / "models/policy")
    prompts = [pair["prompt"] for pair in pairs]
    chosen = model.score(prompts, [pair["chosen"][0]["content"] for pair in pairs])
    rejected = model.score(prompts, [pair["rejected"][0]["content"] for pair in pairs])
    assert (chosen > rejected).mean() > 0.95
    assert np.concatenate([chosen, rejected]).mean() == pytest.approx(0, abs=0.5)
