from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from isodense.artifacts import content_sha256, read_manifest, write_manifest
from isodense.errors import ArtifactError, TrainingError
from isodense.evaluate import (
    Answers,
    Comparison,
    EvaluateParams,
    Heldout,
    bins,
    evaluate,
    interval,
    load_heldout,
    sample,
    write_tables,
)
from isodense.generation import Completion
from isodense.policy import load_policy
from isodense.promptset import PromptSet, load_prompts
from isodense.reward import RewardParams, fit
from tests import tiny
from tests.rl import make_pairs, write_density, write_inputs

PARAMS = EvaluateParams(max_prompts=12, max_completion_tokens=8, temperature=0.0, batch_tokens=512)


def heldout(count: int) -> Heldout:
    rows = [{"id": f"{number:032x}", "text": f"p{number}", "prompt": []} for number in range(count)]
    return Heldout(PromptSet(rows), np.arange(count, dtype=np.float32)[::-1].copy())


def answers(rewards: np.ndarray, text: str = "a b c d e") -> Answers:
    completions = [Completion(text, 4, number % 2 == 0) for number in range(len(rewards))]
    return Answers(completions, rewards.astype(np.float32))


def test_the_interval_is_students():
    values = np.random.default_rng(0).normal(size=30)
    mean, low, high = interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-5)
    assert mean == pytest.approx(values.mean(), abs=1e-5)


@pytest.mark.parametrize(("count", "expected"), [(100, 10), (49, 9), (12, 2), (4, 1), (2, 1)])
def test_bins_are_fewer_where_prompts_are_few(count: int, expected: int):
    density = np.random.default_rng(0).normal(size=count)
    parts = bins(density)
    assert len(parts) == expected
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert min(map(len, parts)) >= min(5, count)
    for sparse, crowded in itertools.pairwise(parts):
        assert density[sparse].max() <= density[crowded].min()


def test_a_gain_is_paired_and_sorted_by_density():
    spread = np.random.default_rng(0).normal(scale=10, size=50)
    gain = np.linspace(1.0, 2.0, 50)  # the first rows are the most crowded
    found = Comparison(heldout(50), answers(spread), answers(spread + gain)).metrics()
    assert found["prompts"] == 50
    assert found["gain"]["reward"] == pytest.approx(1.5, abs=1e-3)
    assert found["gain"]["reward_high"] - found["gain"]["reward_low"] < 0.25
    assert found["base"]["reward_high"] - found["base"]["reward_low"] > 4
    by_decile = list(found["gain"]["by_decile"].values())
    assert list(found["gain"]["by_decile"]) == [f"{number:02d}" for number in range(1, 11)]
    assert by_decile == sorted(by_decile, reverse=True)
    assert found["base"]["truncated"] == 0.5
    assert found["base"]["tokens"] == 4
    assert found["base"]["distinct_1"] == pytest.approx(5 / 250)
    json.dumps(found, allow_nan=False)


def test_tables_hold_every_prompt_and_both_policies(tmp_path: Path):
    base, trained = answers(np.zeros(20)), answers(np.ones(20), "x")
    comparison = Comparison(heldout(20), base, trained)
    write_tables(comparison, tmp_path / "plots/deciles.csv", tmp_path / "completions.jsonl")
    with (tmp_path / "plots/deciles.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["decile", "density", "policy", "reward", "low", "high"]
    assert [(row["decile"], row["policy"]) for row in rows[:3]] == [
        ("1", "base"),
        ("1", "trained"),
        ("2", "base"),
    ]
    assert {float(row["reward"]) for row in rows if row["policy"] == "trained"} == {1.0}
    lines = (tmp_path / "completions.jsonl").read_text().splitlines()
    assert len(lines) == 20
    assert json.loads(lines[3]) == {
        "id": f"{3:032x}",
        "text": "p3",
        "density": 16.0,
        "base": "a b c d e",
        "base_reward": 0.0,
        "trained": "x",
        "trained_reward": 1.0,
    }


def test_a_sample_keeps_order_and_changes_little_when_prompts_are_added():
    rng = np.random.default_rng(0)
    ids = [f"{int(value):032x}" for value in rng.integers(0, 2**62, 300)]
    rows = [{"id": identifier} for identifier in ids]
    many = Heldout(PromptSet(rows), np.arange(300, dtype=np.float32))
    few = Heldout(PromptSet(rows[:250]), np.arange(250, dtype=np.float32))
    one, other = sample(few, 50), sample(many, 50)
    assert len(set(one.prompts.ids) & set(other.prompts.ids)) > 35
    assert one.density.tolist() == [ids.index(identifier) for identifier in one.prompts.ids]
    assert np.all(np.diff(one.density) > 0)
    assert sample(few, 1000).prompts.ids == few.prompts.ids


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give all inputs of the stage; the trained policy is the base policy or another one."""
    folder = tmp_path_factory.mktemp("evaluate")
    prompts = write_inputs(folder)
    settings = RewardParams(layer=1, pooling="last", max_tokens=128, l2=0.1, batch_tokens=2048)
    policy = folder / "models/policy"
    fit(make_pairs(60), prompts, policy, settings, "cpu", {}, folder / "models/reward")
    source = content_sha256(read_manifest(policy, "models"))
    for name in ("same", "other"):
        made = tiny.policy(folder / name)
        write_manifest(made, "train", inputs={"policy": source})
    contrary = load_policy(folder / "other")
    contrary.model.norm.weight.data.neg_()  # the likeliest token becomes the least likely
    contrary.save_pretrained(folder / "other")
    write_manifest(folder / "other", "train", inputs={"policy": source})
    return folder


def compare(world: Path, trained: str, params: EvaluateParams = PARAMS, seed: int = 0):
    found = load_heldout(load_prompts(world / "data/prompts"), world / "data/density")
    policy, reward = world / "models/policy", world / "models/reward"
    return evaluate(found, policy, world / trained, reward, params, seed, "cpu")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_policy_gains_nothing_over_itself(world: Path, temperature: float):
    params = EvaluateParams(12, 8, temperature, 512)
    comparison = compare(world, "same", params)
    assert comparison.gain.tolist() == [0.0] * 12
    assert [row.text for row in comparison.base.completions] == [
        row.text for row in comparison.trained.completions
    ]


def test_another_policy_answers_otherwise_and_the_result_repeats(world: Path):
    one, two = (compare(world, "other").metrics() for _ in range(2))
    assert one == two
    assert one["gain"]["reward"] != 0


def test_a_policy_trained_from_another_base_is_refused(world: Path, tmp_path: Path):
    made = tiny.policy(tmp_path / "stray")
    write_manifest(made, "train", inputs={"policy": "0" * 64})
    with pytest.raises(ArtifactError, match="trained from another policy"):
        compare(world, str(made))


def test_an_empty_heldout_split_says_what_to_raise(tmp_path: Path):
    prompts = write_inputs(tmp_path, count=10, heldout=0.0)
    with pytest.raises(TrainingError, match=r"0 of 10(.|\n)*raise prompts\.heldout"):
        load_heldout(prompts, tmp_path / "data/density")


def test_densities_of_other_prompts_are_refused(world: Path, tmp_path: Path):
    prompts = load_prompts(world / "data/prompts")
    fewer = PromptSet(prompts.rows[:-3])
    with pytest.raises(ArtifactError, match=r"other prompts|one finite number"):
        load_heldout(fewer, world / "data/density")
    write_density(tmp_path / "density", prompts)
    values = np.full(len(prompts.split("heldout")), np.nan, dtype=np.float32)
    np.save(tmp_path / "density/heldout_density.npy", values)
    with pytest.raises(ArtifactError, match="one finite number"):
        load_heldout(prompts, tmp_path / "density")
