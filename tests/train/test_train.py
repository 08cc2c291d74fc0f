from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from isodense.pipeline.errors import ArtifactError, TrainingError
from isodense.prompts.reader import PromptSet
from isodense.sampling.schemes import prompt_weights
from isodense.sampling.weights import load_weights
from isodense.train.train import (
    OWN_FIELDS,
    TrainParams,
    check_reward,
    draws_needed,
    input_hashes,
    live_folder,
    make_config,
    make_plan,
    train,
)
from tests.rl import snapshot, write_density, write_inputs, write_reward

SECTION = {
    "sampling": "density",
    "replacement": True,
    "uniform_share": 0.0,
    "seed": 0,
    "max_steps": 12,
    "prompts_per_step": 4,
    "num_generations": 4,
    "completions_per_pass": 8,
    "max_prompt_tokens": 64,
    "max_completion_tokens": 6,
    "learning_rate": 3e-2,
    "beta": 0.0,
    "temperature": 1.0,
    "save_steps": 100,
    "on_weak_reward": "error",
    "lora": None,
    "grpo": {"lr_scheduler_type": "constant"},
}


def section(**changes: object) -> TrainParams:
    return TrainParams(**(SECTION | changes))  # type: ignore[arg-type]


def test_wrong_fields_of_grpo_are_named_all_at_once():
    found = section(grpo={"num_iteration": 2, "beta": 1.0, "optim": "sgd", "zzz": 0}).faults()
    assert found == [
        "grpo.num_iteration is not a field of GRPOConfig (did you mean 'num_iterations'?)",
        "grpo.beta is set by train.beta",
        "grpo.zzz is not a field of GRPOConfig",
    ]
    assert section().faults() == []


def test_every_own_field_is_one_of_trl():
    from dataclasses import fields

    from trl import GRPOConfig

    assert len(OWN_FIELDS) > 20
    assert set(OWN_FIELDS) <= {field.name for field in fields(GRPOConfig)}


def test_a_plan_follows_the_weights():
    weights = np.array([0.5, 0.25, 0.125, 0.125])
    plan = make_plan(weights, 40_000, seed=3)
    shares = np.bincount(plan.rows, minlength=4) / 40_000
    np.testing.assert_allclose(shares, weights, atol=0.01)
    assert plan.skipped == 0


def test_a_plan_without_replacement_repeats_no_prompt_and_a_mix_reaches_all():
    weights = np.array([0.5, 0.25, 0.25, 0.0])
    once = make_plan(weights, 300, seed=3, replacement=False)
    assert [set(part) for part in np.split(once.rows, 100)] == [{0, 1, 2}] * 100
    mixed = make_plan(weights, 40_000, seed=3, uniform=0.4)
    shares = np.bincount(mixed.rows, minlength=4) / 40_000
    np.testing.assert_allclose(shares, [0.4, 0.25, 0.25, 0.1], atol=0.01)


def test_passing_over_a_prompt_leaves_the_odds_of_the_others():
    weights = np.array([0.5, 0.3, 0.2])
    asked: list[int] = []

    def fits(row: int) -> bool:
        asked.append(row)
        return row != 0

    plan = make_plan(weights, 20_000, seed=3, fits=fits)
    shares = np.bincount(plan.rows, minlength=3) / 20_000
    np.testing.assert_allclose(shares, [0, 0.6, 0.4], atol=0.02)
    assert plan.skipped == pytest.approx(20_000, rel=0.1)
    assert sorted(asked) == [0, 1, 2]


def test_a_longer_plan_begins_with_the_shorter_one():
    weights = np.random.default_rng(0).random(100)
    one = make_plan(weights, 64, seed=1, fits=lambda row: row % 3 > 0)
    two = make_plan(weights, 160, seed=1, fits=lambda row: row % 3 > 0)
    assert np.array_equal(one.rows, two.rows[:64])


def test_prompts_that_are_all_too_long_end_the_search():
    with pytest.raises(TrainingError, match=r"raise train\.max_prompt_tokens"):
        make_plan(np.ones(5), 10, seed=0, fits=lambda row: False)


def test_weights_of_other_prompts_are_refused(tmp_path: Path):
    prompts = write_inputs(tmp_path).split("train")
    weights = load_weights(tmp_path / "data/density")
    assert np.array_equal(prompt_weights(prompts, weights, "density"), weights.weights)
    assert set(prompt_weights(prompts, weights, "uniform").tolist()) == {1.0}
    asked = [row | {"count": number} for number, row in enumerate(prompts.rows, start=1)]
    assert prompt_weights(PromptSet(asked), weights, "count").tolist() == [
        *range(1, len(prompts) + 1)
    ]
    other = PromptSet(prompts.rows[::-1])
    for sampling in ("density", "uniform"):
        with pytest.raises(ArtifactError, match=r"other prompts(.|\n)*dvc repro density"):
            prompt_weights(other, weights, sampling)
    with pytest.raises(TrainingError, match="no prompt is left"):
        prompt_weights(PromptSet([]), weights, "density")


def test_a_reward_no_better_than_length_is_refused_or_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    reward = tmp_path / "models/reward"
    write_reward(tmp_path, write_inputs(tmp_path))
    manifest = json.loads((reward / "manifest.json").read_text())
    check_reward(reward, "error")
    manifest["check"]["length_only"] = manifest["check"]["heldout"]
    (reward / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TrainingError, match=r"on_weak_reward: warn"):
        check_reward(reward, "error")
    check_reward(reward, "warn")
    assert "length alone" in caplog.text


def test_metrics_and_plots_must_be_where_dvclive_writes():
    assert live_folder(Path("r/metrics.json"), Path("r/plots/metrics")) == Path("r")
    with pytest.raises(TrainingError, match=r"DIR/metrics\.json"):
        live_folder(Path("r/train.json"), Path("r/plots/metrics"))


def test_completions_must_divide_over_processes_and_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(TrainingError, match="completions_per_pass 5"):
        make_config(section(completions_per_pass=5), 0, "cpu", tmp_path)
    whole = make_config(section(completions_per_pass=64), 0, "cpu", tmp_path)
    assert (whole.per_device_train_batch_size, whole.gradient_accumulation_steps) == (16, 1)
    half = make_config(section(), 0, "cpu", tmp_path)
    assert (half.per_device_train_batch_size, half.gradient_accumulation_steps) == (8, 2)
    assert half.generation_batch_size == whole.generation_batch_size == 16
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(TrainingError, match="over 3 processes"):
        make_config(section(), 0, "cpu", tmp_path)


@pytest.mark.parametrize(
    "grpo",
    [{"lr_scheduler_type": "nonsense"}, {"num_iterations": 0}, {"num_iterations": "two"}],
)
def test_a_value_that_trl_refuses_is_an_error(tmp_path: Path, grpo: dict[str, object]):
    with pytest.raises(TrainingError, match="TRL refuses"):
        make_config(section(grpo=grpo), 0, "cpu", tmp_path)


@pytest.mark.parametrize(
    ("grpo", "expected"),
    [({}, 48), ({"num_iterations": 2}, 24), ({"num_iterations": 5}, 12)],
)
def test_a_plan_is_as_long_as_the_run(tmp_path: Path, grpo: dict[str, int], expected: int):
    assert draws_needed(make_config(section(grpo=grpo), 0, "cpu", tmp_path)) == expected


class Length:
    """A reward that anything can learn: the number of characters."""

    def __init__(self) -> None:
        self.prompts: list[list[str]] = []

    def __call__(self, device: str) -> Callable[..., np.ndarray]:
        return self.score

    def score(self, prompts, completions) -> np.ndarray:
        self.prompts.append([prompt[-1]["content"] for prompt in prompts])
        return np.array([len(text) for text in completions], dtype=np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("train")
    return folder, write_inputs(folder).split("train")


def run(world, name: str, reward, seed: int = 1, **changes: object):
    folder, prompts = world
    weights = load_weights(folder / "data/density").weights
    return train(
        prompts,
        weights,
        reward,
        folder / "models/policy",
        section(**changes),
        seed=seed,
        device="cpu",
        cache=folder / "cache",
        inputs={"policy": "p"},
        out=folder / name / "models/grpo",
        live=folder / name / "reports/train",
    )


@pytest.fixture(scope="module")
def trained(world):
    reward = Length()
    return reward, run(world, "one", reward), run(world, "two", Length())


def test_the_reward_rises(world, trained):
    _, report, _ = trained
    assert report["reward_last_quarter"] > report["reward_first_quarter"] + 3


def test_each_group_holds_one_prompt_and_the_plan_is_followed(world, trained):
    folder, prompts = world
    reward, *_ = trained
    assert len(reward.prompts) == 12
    groups = [step[start : start + 4] for step in reward.prompts for start in range(0, 16, 4)]
    assert all(len(set(group)) == 1 for group in groups)
    plan = make_plan(load_weights(folder / "data/density").weights, 48, seed=1)
    expected = [prompts.rows[row]["prompt"][-1]["content"] for row in plan.rows]
    assert [group[0] for group in groups] == expected


def test_the_same_run_gives_the_same_bytes(world, trained):
    folder, _ = world
    assert trained[1] == trained[2]
    assert snapshot(folder / "one") == snapshot(folder / "two")


def test_the_output_is_a_model_and_the_record_and_nothing_else(world, trained):
    folder, prompts = world
    files = snapshot(folder / "one")
    models = {name.removeprefix("models/grpo/") for name in files if name.startswith("models")}
    assert models == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert not any(str(folder).encode() in content for content in files.values())
    manifest = json.loads(files["models/grpo/manifest.json"])
    assert manifest["plan"] == {
        "draws": 48,
        "distinct_prompts": trained[1]["distinct_prompts"],
        "skipped_draws": 0,
    }
    assert manifest["ids_sha256"] == prompts.ids_sha256
    assert not list((folder / "cache/train").iterdir())


def test_the_record_has_one_point_per_step(world, trained):
    folder, _ = world
    series = folder / "one/reports/train/plots/metrics/train"
    names = {path.stem for path in series.iterdir()}
    assert {"reward", "reward_std", "completion_tokens", "loss", "grad_norm"} <= names
    with (series / "reward.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    metrics = json.loads((folder / "one/reports/train/metrics.json").read_text())
    assert metrics["train"]["draws"] == 48
    assert metrics["train"]["reward"] == float(rows[-1]["reward"])


def test_the_policy_moved_and_loads(world, trained):
    from isodense.models.policy import load_policy, load_tokenizer

    folder, _ = world
    load_tokenizer(folder / "one/models/grpo")
    before, after = (
        load_policy(path).model.norm.weight
        for path in (folder / "models/policy", folder / "one/models/grpo")
    )
    assert (before - after).abs().max() > 1e-3


def test_beta_reports_the_divergence(world):
    run(world, "beta", Length(), max_steps=2, beta=0.1)
    folder, _ = world
    assert (folder / "beta/reports/train/plots/metrics/train/kl.tsv").is_file()


@pytest.mark.parametrize(
    "bad",
    [
        lambda prompts, completions: np.full(len(completions), np.nan),
        lambda prompts, completions: np.zeros(len(completions) - 1),
    ],
)
def test_a_bad_reward_stops_training_and_leaves_nothing(world, bad):
    with pytest.raises(TrainingError, match="one finite number per completion"):
        run(world, "bad", lambda device: bad, max_steps=1)
    folder, _ = world
    assert not (folder / "bad/models").exists()


def test_an_interrupt_leaves_no_policy(world):
    def interrupt(prompts, completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(world, "stopped", lambda device: interrupt, max_steps=1)
    folder, _ = world
    assert not (folder / "stopped/models").exists()


def test_long_prompts_are_passed_over_and_counted(world):
    _, prompts = world
    reward = Length()
    report = run(world, "short", reward, max_steps=2, max_prompt_tokens=30)
    lengths = {len(text) for step in reward.prompts for text in step}
    assert report["skipped_draws"] > 0
    assert max(lengths) < max(len(row["text"]) for row in prompts.rows)


def test_prompts_longer_than_the_context_are_refused(world):
    with pytest.raises(TrainingError, match="sum to 256 at most"):
        run(world, "long", Length(), max_prompt_tokens=251)


def test_hashes_of_the_inputs_follow_their_content(tmp_path: Path):
    prompts = write_inputs(tmp_path, count=40)
    write_reward(tmp_path, prompts, 40, layer=1, pooling="last", l2=0.1)
    policy, reward = tmp_path / "models/policy", tmp_path / "models/reward"
    paths = (tmp_path / "data/prompts", tmp_path / "data/density", policy, reward)
    before = input_hashes(*paths)
    assert set(before) == {"prompts", "density", "policy", "reward"}
    flat = PromptSet(prompts.rows[1:])
    write_density(tmp_path / "data/density", flat)
    after = input_hashes(*paths)
    assert {name for name in before if before[name] != after[name]} == {"density"}
