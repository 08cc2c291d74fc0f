from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from isodense.pipeline.errors import TrainingError
from isodense.prompts.reader import PromptSet
from isodense.sampling.weights import load_weights
from isodense.train.params import TrainParams
from isodense.train.plan import make_plan
from isodense.train.train import check_reward, live_folder, read_manifests, train
from tests.rl import snapshot, write_density, write_inputs, write_reward

SECTION = {
    "sampling": "density",
    "replacement": True,
    "uniform_share": 0.0,
    "difficulty_floor": 0.0,
    "redraw": None,
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
    "report_to": ["dvclive"],
    "lora": None,
    "grpo": {"lr_scheduler_type": "constant"},
}


SILENT = {"prompts": 8, "frac_reward_zero_std": 1.0, "never_solved": 1.0, "always_solved": 0.0}


def section(**changes: object) -> TrainParams:
    return TrainParams(**(SECTION | changes))  # type: ignore[arg-type]


def test_a_reward_no_better_than_length_is_refused_or_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    reward = tmp_path / "models/reward"
    write_reward(tmp_path, write_inputs(tmp_path))
    manifest = json.loads((reward / "manifest.json").read_text())
    check_reward(reward, "error")
    manifest["check"] |= {"heldout_high": 0.9, "over_length_low": -0.1}
    (reward / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TrainingError, match=r"on_weak_reward: warn"):
        check_reward(reward, "error")
    check_reward(reward, "warn")
    assert "length alone" in caplog.text
    manifest["check"] = {"sampled": SILENT}
    (reward / "manifest.json").write_text(json.dumps(manifest))
    check_reward(reward, "error")
    assert "no group of 8 prompts had two different rewards" in caplog.text


def test_metrics_and_plots_must_be_where_dvclive_writes():
    assert live_folder(Path("r/metrics.json"), Path("r/plots/metrics")) == Path("r")
    with pytest.raises(TrainingError, match=r"DIR/metrics\.json"):
        live_folder(Path("r/train.json"), Path("r/plots/metrics"))


class Length:
    """A reward that anything can learn: the number of characters."""

    def __init__(self) -> None:
        self.prompts: list[list[str]] = []

    def __call__(self, device: str) -> Length:
        return self

    def score(self, rows, completions) -> np.ndarray:
        self.prompts.append([row["prompt"][-1]["content"] for row in rows])
        return np.array([len(text) for text in completions], dtype=np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("train")
    return folder, write_inputs(folder).split("train")


def run(world, name: str, reward, seed: int = 1, **changes: object):
    folder, prompts = world
    weights = load_weights(folder / "data/density")
    return train(
        prompts,
        weights.weights,
        weights.density,
        reward,
        folder / "models/policy",
        section(**changes),
        seed=seed,
        device="cpu",
        cache=folder / "cache",
        inputs={"policy": {"kind": "models", "files": {}}},
        out=folder / name / "models/grpo",
        live=folder / name / "reports/train",
        table=folder / name / "reports/train" / "realised.csv",
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
    (kept,) = (folder / "cache/train").iterdir()  # until the next run: DVC has not noted it yet
    assert {path.name for path in kept.iterdir()} >= {"checkpoint-12", "published"}
    assert not (kept / "policy").exists()


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
    from isodense.models.inference.policy import load_policy, load_tokenizer

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
        run(world, "bad", lambda device: SimpleNamespace(score=bad), max_steps=1)
    folder, _ = world
    assert not (folder / "bad/models").exists()


def test_an_interrupt_leaves_no_policy(world):
    def interrupt(prompts, completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(world, "stopped", lambda device: SimpleNamespace(score=interrupt), max_steps=1)
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
    before = read_manifests(*paths)
    assert set(before) == {"prompts", "density", "policy", "reward"}
    flat = PromptSet(prompts.rows[1:])
    write_density(tmp_path / "data/density", flat)
    after = read_manifests(*paths)
    assert {name for name in before if before[name] != after[name]} == {"density"}
