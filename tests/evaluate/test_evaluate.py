from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from isodense.evaluate.evaluate import evaluate, open_encoder
from isodense.evaluate.heldout import load_heldout
from isodense.evaluate.metrics import Comparison
from isodense.evaluate.params import EvaluateParams
from isodense.models.inference import completions
from isodense.models.inference.policy import load_policy
from isodense.pipeline import params
from isodense.pipeline.artifact import content_sha256, read_manifest, write_manifest
from isodense.pipeline.errors import ArtifactError, DataError, ParamsError
from isodense.prompts.reader import load_prompts
from tests import tiny
from tests.rl import SECTIONS, write_inputs, write_reward

SAMPLED = EvaluateParams(
    max_prompts=12,
    answer=None,
    num_generations=3,
    max_completion_tokens=8,
    temperature=1.0,
    batch_tokens=512,
)
GREEDY = EvaluateParams(
    max_prompts=12,
    answer=None,
    num_generations=1,
    max_completion_tokens=8,
    temperature=0.0,
    batch_tokens=512,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give all inputs of the stage; the trained policy is the base policy or another one."""
    folder = tmp_path_factory.mktemp("evaluate")
    prompts = write_inputs(folder)
    write_reward(folder, prompts)
    tiny.encoder(folder / "models/encoder")
    source = content_sha256(read_manifest(folder / "models/policy", "models"))
    for name in ("same", "other"):
        tiny.policy(folder / name)
    contrary = load_policy(folder / "other")
    contrary.model.norm.weight.data.neg_()  # the likeliest token becomes the least likely
    contrary.save_pretrained(folder / "other")
    for name in ("same", "other"):
        write_manifest(folder / name, "train", inputs={"policy": source})
    return folder


def compare(
    world: Path, trained: str, settings: EvaluateParams, seed: int = 0, cache: str = "cache"
) -> Comparison:
    found = load_heldout(load_prompts(world / "data/prompts"), world / "data/density")
    policy, reward, encoder = (world / "models" / name for name in ("policy", "reward", "encoder"))
    paths = policy, world / trained, reward, encoder
    return evaluate(found, *paths, settings, seed, "cpu", world / cache)


def test_answers_of_the_untrained_policy_are_drawn_once(
    world: Path, monkeypatch: pytest.MonkeyPatch
):
    first = compare(world, "other", SAMPLED, cache="kept")
    asked = []
    draw = completions.completions_of
    monkeypatch.setattr(
        completions,
        "completions_of",
        lambda policy, *rest: asked.append(policy.name) or draw(policy, *rest),
    )
    assert compare(world, "other", SAMPLED, cache="kept").metrics() == first.metrics()
    assert asked == ["other"]
    assert compare(world, "other", SAMPLED, cache="fresh").metrics() == first.metrics()
    compare(world, "other", SAMPLED, seed=1, cache="kept")
    assert asked == ["other", "policy", "other", "policy", "other"]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED])
def test_a_policy_gains_nothing_over_itself_and_does_not_diverge(
    world: Path, settings: EvaluateParams
):
    comparison = compare(world, "same", settings)
    assert comparison.gains["reward"].tolist() == [0.0] * 12
    assert comparison.base.completions == comparison.trained.completions
    metrics = comparison.metrics()
    kl = {name: metrics["trained"].pop(name, 0) for name in ("kl", "kl_low", "kl_high")}
    assert set(kl.values()) == {0}
    metrics["trained"].pop("kl_per_token", 0)
    assert metrics["base"] == metrics["trained"]


def test_another_policy_answers_otherwise_diverges_and_the_result_repeats(world: Path):
    one, two = (compare(world, "other", SAMPLED) for _ in range(2))
    assert one.metrics() == two.metrics()
    assert one.completions() == two.completions()
    metrics = one.metrics()
    assert metrics["gain"]["reward"] != 0
    assert metrics["trained"]["kl"] > 0
    assert metrics["trained"]["kl_per_token"] * 8 >= metrics["trained"]["kl"]
    assert compare(world, "other", SAMPLED, seed=1).completions() != one.completions()


def test_the_divergence_is_of_the_policies_as_drawn_from(world: Path):
    metrics = compare(world, "other", GREEDY).metrics()
    assert "kl" not in metrics["trained"]
    cold = compare(world, "other", GREEDY.model_copy(update={"temperature": 0.2})).metrics()
    hot = compare(world, "other", GREEDY.model_copy(update={"temperature": 5.0})).metrics()
    assert hot["trained"]["kl_high"] < cold["trained"]["kl_low"]


def test_batches_do_not_change_what_greedy_policies_measure(world: Path):
    one, other = (
        compare(
            world,
            "other",
            GREEDY.model_copy(update={"batch_tokens": batch}),
        )
        for batch in (64, 4096)
    )
    assert one.base.completions == other.base.completions
    assert one.trained.completions == other.trained.completions
    assert one.metrics() == other.metrics()


def test_rewards_are_those_of_the_completions_one_by_one(world: Path):
    from isodense.reward.scoring.load import load_reward

    comparison = compare(world, "other", SAMPLED)
    prompts = comparison.heldout.prompts
    reward = load_reward(world / "models/reward", world / "models/policy", "cpu")
    for row in (0, 7):
        for place, made in enumerate(comparison.trained.completions[row]):
            (alone,) = reward.score([prompts.rows[row]], [made.text])
            assert comparison.trained.rewards[row, place] == pytest.approx(alone, abs=1e-5)


def test_vectors_are_of_the_completions_in_order_and_empty_ones_have_one(world: Path):
    comparison = compare(world, "other", SAMPLED)
    encoder = open_encoder(world / "models/encoder", "cpu")
    made, vectors = comparison.base.completions, comparison.base.vectors
    for row, place in ((0, 0), (5, 2), (11, 1)):
        (alone,) = encoder.encode([made[row][place].text or "."])
        np.testing.assert_allclose(vectors[row, place], alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=2), 1, atol=1e-5)


REWARD = """
def even(completions, level, **kwargs):
    return [float(len(one[-1]["content"]) % 2 == 0) for one in completions]


def long(completions, **kwargs):
    return [None if not one[-1]["content"] else 0.25 for one in completions]
"""


def test_verifiable_rewards_are_measured_by_solved_prompts_labels_and_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "graders").mkdir()  # not rewards, which another test's module is called
    (tmp_path / "graders/parity_of_length.py").write_text(REWARD)
    columns = {"level": lambda row: row, "label": lambda row: f"kind {row % 3}"}
    prompts = write_inputs(tmp_path, pairs=0, **columns)
    functions = ["graders.parity_of_length:even", "graders.parity_of_length:long"]
    check = {"prompts": 4, "num_generations": 2, "max_completion_tokens": 4, "temperature": 1.0}
    write_reward(tmp_path, prompts, 0, kind="function", functions=functions, check=check)
    tiny.encoder(tmp_path / "models/encoder")
    source = content_sha256(read_manifest(tmp_path / "models/policy", "models"))
    made = tiny.policy(tmp_path / "other", seed=5)
    write_manifest(made, "train", inputs={"policy": source}, changed=False)
    found = compare(tmp_path, "other", SAMPLED)
    metrics = found.metrics()
    assert not found.changed
    even = [[len(one.text) % 2 == 0 for one in group] for group in found.base.completions]
    share = np.mean(even)
    assert metrics["base"]["pass_at_1"] == pytest.approx(share, abs=1e-6)
    assert metrics["base"]["pass_at_3"] == pytest.approx(np.any(even, axis=1).mean(), abs=1e-6)
    assert metrics["base"]["functions"]["even"] == pytest.approx(share, abs=1e-6)
    assert metrics["base"]["functions"]["long"] == 0.25
    gain = metrics["trained"]["pass_at_1"] - metrics["base"]["pass_at_1"]
    assert metrics["gain"]["pass_at_1"] == pytest.approx(gain, abs=1e-5)
    labels = [row["label"] for row in found.heldout.prompts.rows]
    kinds = sorted(set(labels))
    means = [
        np.mean([e for e, label in zip(even, labels, strict=True) if label == kind])
        for kind in kinds
    ]
    assert metrics["labels"] == len(kinds)
    assert metrics["base"]["pass_at_1_over_labels"] == pytest.approx(np.mean(means), abs=1e-6)
    table = found.by_label()
    assert [row["pass_at_1"] for row in table[::2]] == pytest.approx(means, abs=1e-6)
    assert sum(row["prompts"] for row in table[::2]) == 12
    (first, *_) = found.completions()
    assert set(first["base_functions"]) == {"even", "long"}
    assert "answer_probability" not in metrics["base"]


def test_how_likely_the_answer_is_is_measured_beside_the_reward(world: Path, tmp_path: Path):
    prompts = load_prompts(world / "data/prompts")
    rows = prompts.split("heldout").rows
    for row in rows[1:]:
        row["truth"] = "red"
    answer = GREEDY.model_copy(update={"answer": "truth", "max_prompts": None})
    found = load_heldout(prompts, world / "data/density")
    paths = [world / name for name in ("models/policy", "other", "models/reward", "models/encoder")]
    both = evaluate(found, *paths, answer, 0, "cpu", tmp_path)
    metrics = both.metrics()
    for policy, answers in both.policies.items():
        log_probs = answers.answer_log_probs
        assert np.isnan(log_probs[0])  # the prompt without an answer
        mean = np.exp(log_probs[1:]).mean()
        assert metrics[policy]["answer_probability"] == pytest.approx(mean, abs=1e-6)
        assert "answer_probability" in metrics["clean"][policy]
    assert (both.trained.answer_log_probs[1:] != both.base.answer_log_probs[1:]).all()
    assert "answer_probability_low" in metrics["gain"]
    assert set(metrics["gain"]["answer_probability_by_decile"]) == set(metrics["gain"]["by_decile"])
    assert "answer_probability_low" in both.deciles()[0]
    with pytest.raises(DataError, match="names 'thruth', which no held-out prompt has"):
        evaluate(found, *paths, answer.model_copy(update={"answer": "thruth"}), 0, "cpu", tmp_path)


def test_greedy_completions_of_a_prompt_would_all_be_equal(tmp_path: Path):
    path = tmp_path / "params.yaml"
    section = SECTIONS["evaluate"] | {"num_generations": 4, "temperature": 0}
    path.write_text(yaml.safe_dump({"evaluate": section}))
    with pytest.raises(ParamsError, match="num_generations = 4 at temperature = 0"):
        params.load(path, "evaluate", EvaluateParams)


def test_a_policy_trained_from_another_base_is_refused(world: Path, tmp_path: Path):
    made = tiny.policy(tmp_path / "stray")
    write_manifest(made, "train", inputs={"policy": "0" * 64})
    with pytest.raises(ArtifactError, match="trained from another policy"):
        compare(world, str(made), GREEDY)
