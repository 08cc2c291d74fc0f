from __future__ import annotations

import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from isodense.evaluate.heldout import Heldout
from isodense.evaluate.intervals import interval, named_share
from isodense.evaluate.metrics import Answers, Comparison, bins, write_tables
from isodense.models.inference.generation import Completion
from isodense.prompts.reader import PromptSet


def heldout(count: int) -> Heldout:
    rows = [{"id": f"{number:032x}", "text": f"p{number}", "prompt": []} for number in range(count)]
    return Heldout(PromptSet(rows), np.arange(count, dtype=np.float32)[::-1].copy())


def answers(rewards: np.ndarray, text: str = "a b c d e") -> Answers:
    """Return answers of one text; each prompt's first completion is cut, the others are not."""
    group = [Completion(text, (1, 2, 3, 4), not number) for number in range(rewards.shape[1])]
    vectors = np.zeros((*rewards.shape, 2), np.float32)
    vectors[:, :, 0] = 1
    return Answers([group] * len(rewards), rewards.astype(np.float32), vectors)


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


def test_a_gain_is_paired_by_prompt_and_sorted_by_density():
    rng = np.random.default_rng(0)
    level = rng.normal(scale=10, size=(50, 1))  # prompts differ much more than their completions
    noise = rng.normal(scale=0.1, size=(2, 50, 4))
    gain = np.linspace(1.0, 2.0, 50)[:, None]  # the first rows are the most crowded
    base, trained = answers(level + noise[0]), answers(level + gain + noise[1])
    found = Comparison(heldout(50), base, trained, None).metrics()
    assert found["prompts"] == 50
    assert found["gain"]["reward"] == pytest.approx(1.5, abs=0.05)
    assert found["gain"]["reward_high"] - found["gain"]["reward_low"] < 0.25
    assert found["base"]["reward_high"] - found["base"]["reward_low"] > 4
    by_decile = list(found["gain"]["by_decile"].values())
    assert list(found["gain"]["by_decile"]) == [f"{number:02d}" for number in range(1, 11)]
    assert by_decile == sorted(by_decile, reverse=True)
    assert found["base"]["clipped_ratio"] == 0.25
    assert found["base"]["tokens"] == 4
    assert found["base"]["distinct_1"] == pytest.approx(5 / 1000)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("leaked", [{0, 3}, set(), set(range(6))])
def test_clean_figures_leave_out_what_has_a_near_duplicate_in_training(leaked: set[int]):
    rewards = np.array([9.0, 1, 2, 9, 3, 6])[:, None]
    held = heldout(6)
    held = replace(held, leaked=frozenset(held.prompts.ids[row] for row in leaked))
    found = Comparison(held, answers(0 * rewards), answers(rewards), None).metrics()
    clean, kept = found["clean"], [row for row in range(6) if row not in leaked]
    assert clean["prompts"] == len(kept)
    if not kept:
        assert clean == {"prompts": 0}
        return
    mean = rewards[kept].mean()
    assert clean["trained"]["reward"] == clean["gain"]["reward"] == pytest.approx(mean)
    assert clean["base"]["reward"] == 0
    if leaked:
        assert clean["gain"]["reward"] == 3
    else:
        assert clean["gain"]["reward_high"] == found["gain"]["reward_high"]


def test_order_within_a_group_does_not_matter_to_rewards():
    rewards = np.random.default_rng(0).normal(size=(20, 4))
    one, other = answers(rewards), answers(rewards[:, ::-1])
    assert one.describe() == other.describe()
    assert one.describe()["reward"] == pytest.approx(rewards.mean(), abs=1e-6)


def test_a_constant_reward_gives_no_signal_anywhere():
    found = Comparison(
        heldout(20), answers(np.full((20, 4), 0.1)), answers(np.arange(80.0).reshape(20, 4)), None
    )
    metrics = found.metrics()
    assert metrics["base"]["frac_reward_zero_std"] == 1
    assert set(metrics["base"]["frac_reward_zero_std_by_decile"].values()) == {1.0}
    assert metrics["trained"]["frac_reward_zero_std"] == 0


def test_zero_signal_is_of_whole_groups_and_found_in_its_decile():
    rewards = np.arange(80.0).reshape(20, 4)
    rewards[:5] = 7  # the most crowded quarter
    rewards[10, :3] = 7  # one of four differs
    found = Comparison(heldout(20), answers(rewards), answers(rewards), None)
    assert found.metrics()["base"]["frac_reward_zero_std"] == 0.25
    shares = [row["frac_reward_zero_std"] for row in found.deciles() if row["policy"] == "base"]
    assert shares == [0, 0, 0, 1]


def test_texts_of_one_kind_are_one_text():
    found = answers(np.zeros((10, 4))).describe()
    assert found["self_bleu"] == pytest.approx(100)
    assert found["vendi"] == pytest.approx(1)
    assert found["vendi_within"] == pytest.approx(1)


def test_collapse_over_prompts_differs_from_collapse_within_them():
    eye = np.eye(8, dtype=np.float32)
    rewards, group = np.zeros((8, 4), np.float32), [[Completion("x", (1,), False)] * 4] * 8
    same_within = Answers(group, rewards, np.repeat(eye[:, None], 4, axis=1)).describe()
    assert (same_within["vendi"], same_within["vendi_within"]) == pytest.approx((8, 1))
    same_over = Answers(group, rewards, np.repeat(eye[None, :4], 8, axis=0)).describe()
    assert (same_over["vendi"], same_over["vendi_within"]) == pytest.approx((1, 4))


def test_one_completion_per_prompt_has_nothing_to_compare_within():
    single = answers(np.zeros((10, 1)))
    found = Comparison(heldout(10), single, single, None)
    for absent in ("vendi_within", "frac_reward_zero_std", "frac_reward_zero_std_by_decile", "kl"):
        assert absent not in found.metrics()["trained"]
    assert list(found.deciles()[0]) == ["decile", "density", "policy", "reward", "low", "high"]


def test_the_divergence_is_per_completion_and_per_token():
    same = answers(np.zeros((4, 2)))
    found = Comparison(heldout(4), same, same, np.array([1.0, 2.0, 3.0, 4.0])).metrics()
    assert found["trained"]["kl"] == 2.5
    assert found["trained"]["kl_low"] < 2.5 < found["trained"]["kl_high"]
    assert found["trained"]["kl_per_token"] == 10 / 16
    assert "kl" not in found["base"]
    longer = Completion("a", tuple(range(9)), truncated=False)
    uneven = replace(same, completions=[[longer, group[1]] for group in same.completions])
    found = Comparison(heldout(4), same, uneven, np.ones(4)).metrics()
    assert found["trained"]["kl_per_token"] == round(4 / (4 * 9), 6)


def test_tables_hold_every_prompt_and_both_policies(tmp_path: Path):
    base, trained = answers(np.zeros((20, 2))), answers(np.ones((20, 2)), "x")
    comparison = Comparison(heldout(20), base, trained, None)
    paths = [tmp_path / "plots" / name for name in ("deciles.csv", "labels.csv")]
    write_tables(comparison, *paths, tmp_path / "completions.jsonl")
    assert paths[1].read_text() == "label,prompts,policy,training_prompts,reward,low,high\n"
    with (tmp_path / "plots/deciles.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    columns = ["decile", "density", "policy", "reward", "low", "high", "frac_reward_zero_std"]
    assert list(rows[0]) == columns
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
        "base": ["a b c d e"] * 2,
        "base_reward": [0.0, 0.0],
        "trained": ["x"] * 2,
        "trained_reward": [1.0, 1.0],
    }


def graded(rewards: np.ndarray) -> Answers:
    made = answers(rewards)
    return Answers(made.completions, made.rewards, made.vectors, {"f": made.rewards}, 0.5)


def labelled(labels: list[str | None], kinds: bool = True) -> Heldout:
    plain = heldout(len(labels)).prompts.rows
    rows = [row | {"label": label} for row, label in zip(plain, labels, strict=True)]
    return Heldout(PromptSet(rows), np.arange(len(labels), dtype=np.float32), kinds)


def test_solved_prompts_are_averaged_over_prompts_and_over_labels():
    base = graded(np.array([[0, 0], [0, 1], [1, 1], [0, 0]]))
    trained = graded(np.array([[0, 1], [0, 1], [1, 1], [1, 1]]))
    found = Comparison(labelled(["a", "a", "a", "b"]), base, trained, None).metrics()
    assert found["base"]["pass_at_1"] == pytest.approx(3 / 8)
    assert found["base"]["pass_at_2"] == pytest.approx(2 / 4)
    assert found["trained"]["pass_at_1"] == pytest.approx(6 / 8)
    assert found["gain"]["pass_at_1"] == pytest.approx(3 / 8)
    expected = stats.ttest_1samp([0.5, 0, 0, 1], 0).confidence_interval()
    assert found["gain"]["pass_at_1_low"] == pytest.approx(expected.low, abs=1e-5)
    assert found["labels"] == 2
    assert found["base"]["reward_over_labels"] == pytest.approx((0.5 + 0) / 2)
    assert found["trained"]["pass_at_1_over_labels"] == pytest.approx((2 / 3 + 1) / 2, abs=1e-6)
    assert found["gain"]["pass_at_1_over_labels"] == pytest.approx((1 / 6 + 1) / 2, abs=1e-6)
    json.dumps(found, allow_nan=False)
    table = Comparison(labelled(["a", "a", "a", "b"]), base, trained, None).by_label()
    assert [(row["label"], row["policy"], row["prompts"]) for row in table] == [
        ("a", "base", 3),
        ("a", "trained", 3),
        ("b", "base", 1),
        ("b", "trained", 1),
    ]
    assert table[2]["low"] is None  # one prompt has no interval


def test_labels_that_are_no_kinds_are_not_averaged_over():
    made = graded(np.ones((4, 2)))
    found = Comparison(labelled(["a", "b", "c", "d"], kinds=False), made, made, None).metrics()
    assert "labels" not in found
    assert not [name for name in found["gain"] if "over_labels" in name]


def test_without_labels_crowded_prompts_count_less():
    rewards = np.array([[0.0], [0.0], [1.0], [1.0]])  # the last are the sparsest of `heldout`
    crowded = replace(heldout(4), exponent=np.log(2))  # each half as heavy as the next
    found = Comparison(crowded, answers(0 * rewards), answers(rewards), None).metrics()
    assert found["trained"]["reward"] == 0.5
    assert found["trained"]["reward_evened"] == pytest.approx(12 / 15, abs=1e-6)
    assert found["gain"]["reward_evened"] == pytest.approx(12 / 15, abs=1e-6)
    assert found["base"]["reward_evened"] == 0
    solved = Comparison(crowded, graded(rewards), graded(rewards), None).metrics()
    assert solved["trained"]["pass_at_1_evened_high"] <= 1
    named = Comparison(labelled(["a", "a", "b", "b"]), graded(rewards), graded(rewards), None)
    assert not [name for name in named.metrics()["gain"] if "evened" in name]


def test_completions_without_an_opinion_do_not_count():
    nan = np.nan
    base = graded(np.array([[0, nan], [nan, nan], [1, 1], [nan, 1]]))
    trained = graded(np.array([[1, nan], [1, 1], [1, 1], [nan, nan]]))
    found = Comparison(labelled([None] * 4), base, trained, None)
    assert found.base.reward.tolist()[0::2] == [0, 1]
    metrics = found.metrics()
    assert metrics["base"]["reward"] == pytest.approx(2 / 3, abs=1e-6)
    assert metrics["gain"]["reward"] == pytest.approx(0.5)  # of the two with rewards of both
    assert metrics["base"]["frac_reward_zero_std"] == 1
    assert metrics["base"]["pass_at_1"] == pytest.approx((0 + 0 + 1 + 0.5) / 4)
    json.dumps([metrics, found.completions(), found.deciles()], allow_nan=False)


def test_the_interval_of_a_share_stays_among_shares_and_never_vanishes():
    none = named_share("p", np.zeros(8))
    assert (none["p"], none["p_low"]) == (0, 0)
    assert none["p_high"] == pytest.approx(0.324, abs=1e-3)  # Wilson's of 0 in 8
    half = named_share("p", np.array([0.0, 1.0] * 50))
    assert (half["p_low"], half["p_high"]) == pytest.approx((0.404, 0.596), abs=1e-3)


def test_the_first_function_alone_decides_what_is_solved():
    made = graded(np.array([[0.0, 1.0]]))
    both = {"right": made.rewards, "long": np.full((1, 2), 50, np.float32)}
    total = made.rewards + 0.1 * both["long"]
    found = Answers(made.completions, total, made.vectors, both, 0.5)
    assert found.pass_at["pass_at_1"].tolist() == [0.5]
    silent = Answers(made.completions, total, made.vectors, both, None)
    assert silent.pass_at == {}


def test_texts_are_measured_word_by_word():
    made = answers(np.zeros((2, 1)), "a b a b a b a")
    found = made.describe()
    assert found["distinct_1"] == round(2 / 14, 6)
    assert found["distinct_2"] == round(2 / 12, 6)
    assert found["repetition"] == 0.5  # of four runs of four words in each text
    assert "functions" not in found
    third = graded(np.array([[0.0, 1], [0, 0], [1, np.nan]])).describe()
    assert third["functions"] == {"f": 0.4}


def test_rows_of_the_tables_by_hand(tmp_path: Path):
    labels = ["a"] * 2 + ["é, b"] * 2
    base = graded(np.array([[0, 0], [0, 1], [1, 1], [0, 0]]))
    trained = graded(np.array([[0, 1], [1, 1], [1, 1], [1, 1]]))
    found = Comparison(
        replace(labelled(labels), density=np.array([1 / 3, 1, 2, 3]), training={"a": 7}),
        base,
        trained,
        None,
    )
    paths = [tmp_path / "a/b" / name for name in ("deciles.csv", "labels.csv", "completions.jsonl")]
    write_tables(found, *paths)
    with paths[1].open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["label"] for row in rows] == ["a", "a", "é, b", "é, b"]
    mean, low, high = interval(np.array([0.5, 1.0]))
    expected = {"reward": mean, "low": low, "high": high}
    expected |= named_share("pass_at_1", np.array([0.5, 1.0]))
    row = {"label": "a", "prompts": 2, "policy": "trained", "training_prompts": 7} | expected
    assert rows[1] == {name: str(value) for name, value in row.items()}
    (one, _) = found.deciles()
    assert one["density"] == round(float(np.mean([1 / 3, 1, 2, 3])), 6)
    assert one["frac_reward_zero_std"] == 0.75
    assert one["pass_at_1"] == 3 / 8
    assert found.metrics()["gain"]["pass_at_1_by_decile"] == {"01": 0.5}
    assert found.completions()[0]["density"] == 0.333333
    assert found.completions()[0]["trained_functions"] == {"f": [0, 1]}
    assert rows[2]["training_prompts"] == "0"  # none has the label
    assert b"\r" not in paths[0].read_bytes()
    held = replace(found.heldout, leaked=frozenset(found.heldout.prompts.ids[1:2]))
    marks = [row.get("leaked") for row in replace(found, heldout=held).completions()]
    assert marks == [None, True, None, None]


def test_means_over_labels_are_shares_where_the_values_are():
    base = graded(np.array([[0, 0], [1, 1], [1, 1]]))
    found = Comparison(labelled(["a", "b", "c"]), base, base, None).metrics()["base"]
    assert found["pass_at_1_over_labels_high"] <= 1
    assert found["reward_over_labels_high"] > 1
    lone = Comparison(labelled(["a", "a", "a"]), base, base, None).metrics()["base"]
    assert "reward_over_labels" not in lone
    assert lone["reward_evened"] == pytest.approx(2 / 3)  # one label is none to go by


def test_the_answers_probability_is_measured_as_the_reward_is():
    """Of ten prompts in two deciles, the first five the most isolated; one has no ground truth."""
    known = {"base": np.full(10, 0.25), "trained": np.arange(1, 11) / 10}
    known["trained"][9] = np.nan
    base, trained = (
        replace(graded(np.tile([0, 1], (10, 1))), answer_log_probs=np.log(known[policy]))
        for policy in ("base", "trained")
    )
    held = replace(heldout(10), density=np.arange(10, dtype=np.float32))
    held = replace(held, leaked=frozenset(held.prompts.ids[:4]))
    compared = Comparison(held, base, trained, None)
    found = compared.metrics()
    assert found["gain"]["answer_probability"] == pytest.approx(0.5 - 0.25)
    by_decile = found["gain"]["answer_probability_by_decile"]
    assert by_decile == pytest.approx({"01": 0.3 - 0.25, "02": (0.6 + 0.7 + 0.8 + 0.9) / 4 - 0.25})
    assert [row["answer_probability"] for row in compared.deciles()] == [0.25, 0.3, 0.25, 0.75]
    assert {row["pass_at_1"] for row in compared.deciles()} == {0.5}
    clean = found["clean"]
    assert clean["prompts"] == 6
    assert clean["trained"]["answer_probability"] == pytest.approx(0.7)  # of 0.5 … 0.9
    assert clean["gain"]["answer_probability"] == pytest.approx(0.45)
    assert clean["gain"]["reward"] == clean["gain"]["pass_at_1"] == 0
    assert (clean["base"]["reward"], clean["base"]["pass_at_2"]) == (0.5, 1)
    assert set(found["gain"]) > {"reward", "pass_at_1", "answer_probability_low"}


def test_prompts_of_one_density_are_binned_in_their_order():
    """More than a sort of short arrays handles, so that only a stable one keeps the order."""
    density = np.tile(np.array([1.0, 0.0], np.float32), 100)
    order = [*range(1, 200, 2), *range(0, 200, 2)]
    assert np.concatenate(bins(density)).tolist() == order


def test_one_value_has_no_interval_and_none_no_mean():
    assert interval(np.array([1 / 3, np.nan])) == (0.333333, None, None)
    assert interval(np.array([np.nan])) == (None, None, None)
