from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from isodense.pipeline.artifact import content_sha256, read_manifest, write_manifest
from isodense.pipeline.errors import ArtifactError, ModelError
from isodense.reward.scoring.hidden_states import Features, packs
from isodense.reward.scoring.load import HEAD, load_reward
from tests import tiny
from tests.architectures import checkpoint

LIMIT = 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.policy(tmp_path_factory.mktemp("models") / "policy")


@pytest.fixture(scope="module")
def texts() -> tuple[list[list[dict[str, str]]], list[str]]:
    """Return 40 answers of many lengths to 12 prompts, several to each."""
    rng = np.random.default_rng(0)
    prompts = [tiny.user(" ".join(rng.choice(tiny.WORDS, size))) for size in range(1, 13)]
    asked = [prompts[number] for number in rng.integers(0, 12, 40)]
    answers = [" ".join(rng.choice(tiny.WORDS, rng.integers(0, 15))) for _ in asked]
    return asked, answers


def features(folder: Path, layer: int = 2, pooling: str = "both", budget: int = 512) -> Features:
    return Features(folder, layer, pooling, LIMIT, budget)


@pytest.mark.parametrize("layer", [1, 2])
def test_features_are_the_full_models_hidden_states(folder: Path, texts, layer: int):
    made = features(folder, layer)
    found = made(*texts)
    asked, answered, cut = made.tokenize(*texts)
    assert not any(cut)
    full = AutoModelForCausalLM.from_pretrained(folder)
    for row, (prompt, answer) in enumerate(zip(asked, answered, strict=True)):
        with torch.inference_mode():
            output = full(input_ids=torch.tensor([prompt + answer]), output_hidden_states=True)
        states = output.hidden_states[layer][0, len(prompt) :].numpy()
        expected = np.concatenate([states[-1], states.mean(axis=0)])
        np.testing.assert_allclose(found[row], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "packed", "shared"),
    [("llama", True, True), ("gptj", False, True), ("mpt", False, False)],
)
def test_a_row_has_the_same_bytes_in_any_batch(
    tmp_path: Path, texts, kind: str, packed: bool, shared: bool
):
    folder = checkpoint(tmp_path / kind, kind)
    many = features(folder)
    assert (many.padded is None, many.shares_prompts) == (packed, shared)
    made = many(*texts)
    small = features(folder, budget=1)(*texts)
    alone = np.concatenate([many([p], [a]) for p, a in list(zip(*texts, strict=True))[:5]])
    backwards = many(texts[0][::-1], texts[1][::-1])[::-1]
    assert np.array_equal(made, small)
    assert np.array_equal(made[:5], alone)
    assert np.array_equal(made, backwards)


def test_a_row_has_the_same_bytes_at_any_number_of_threads(folder: Path, texts):
    made, threads = features(folder), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(made(*texts))
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_a_pack_holds_a_prompt_once_and_no_more_tokens_than_it_may():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 9, size).tolist() for size in (7, 7, 3, 12)]
    asked = [prompts[number] for number in rng.integers(0, 4, 60)]
    answered = [[1] * size for size in rng.integers(1, 9, 60)]
    for most in (1, 20, 50, 10_000):
        made = list(packs(asked, answered, most))
        assert sorted(row for pack in made for row in pack) == list(range(60))
        for pack in made:
            distinct = {tuple(asked[row]) for row in pack}
            tokens = sum(map(len, distinct)) + sum(len(answered[row]) for row in pack)
            assert tokens <= most or len(pack) == 1
    assert len(made) == 1
    assert len(list(packs(asked, answered, 1))) == 60
    assert list(packs([], [], 9)) == []


def test_poolings_are_parts_of_both(folder: Path, texts):
    last, mean, both = (features(folder, pooling=name)(*texts) for name in ("last", "mean", "both"))
    assert np.array_equal(np.concatenate([last, mean], axis=1), both)
    assert both.dtype == np.float32
    assert features(folder)([], []).shape == (0, both.shape[1])


def test_a_long_conversation_loses_the_start_of_its_prompt(folder: Path):
    made = features(folder)
    long = tiny.user("egg " * 200 + "cat")
    asked, answered, cut = made.tokenize([long, tiny.user("cat")], ["mouse", "mouse"])
    assert cut == [True, False]
    assert len(asked[0]) + len(answered[0]) == LIMIT
    assert asked[0][-8:] == asked[1][-8:]
    asked, answered, cut = made.tokenize([tiny.user("cat")], ["egg " * 300])
    assert cut == [True]
    assert (len(asked[0]), len(answered[0])) == (1, LIMIT - 1)


def write_reward(folder: Path, policy: Path, weight: np.ndarray, kind: str = "head") -> Path:
    folder.mkdir()
    save_file(
        {"weight": weight.astype(np.float32), "bias": np.ones(1, dtype=np.float32)}, folder / HEAD
    )
    params = {"layer": 2, "pooling": "last", "max_tokens": LIMIT, "batch_tokens": 512}
    inputs = {"policy": content_sha256(read_manifest(policy, "models"))}
    write_manifest(folder, "reward", reward_kind=kind, params=params, inputs=inputs)
    return folder


def test_the_reward_is_linear_in_the_feature(folder: Path, texts, tmp_path: Path):
    weight = np.arange(32) - 16
    model = load_reward(write_reward(tmp_path / "reward", folder, weight), folder)
    expected = features(folder, pooling="last")(*texts).astype(np.float64) @ weight + 1
    prompts, answers = texts
    scores = model.score([{"prompt": prompt} for prompt in prompts], answers)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_a_reward_of_another_policy_is_refused(folder: Path, tmp_path: Path):
    other = tiny.policy(tmp_path / "other", seed=1)
    reward = write_reward(tmp_path / "reward", other, np.ones(32))
    with pytest.raises(ArtifactError, match=r"another policy(.|\n)*dvc repro reward"):
        load_reward(reward, folder)


@pytest.mark.parametrize("weight", [np.ones(31), np.full(32, np.nan)])
def test_a_head_that_does_not_fit_is_refused(folder: Path, tmp_path: Path, weight: np.ndarray):
    with pytest.raises(ArtifactError, match="does not fit"):
        load_reward(write_reward(tmp_path / "reward", folder, weight), folder)


def test_more_tokens_than_the_context_are_refused(folder: Path):
    with pytest.raises(ModelError, match="at most 256"):
        Features(folder, 1, "last", 257, 512)


def test_a_kind_that_is_not_known_is_refused(folder: Path, tmp_path: Path):
    reward = write_reward(tmp_path / "reward", folder, np.ones(32), kind="oracle")
    with pytest.raises(ArtifactError, match=r"kind 'oracle'(.|\n)*dvc repro reward"):
        load_reward(reward, folder)


def test_loading_a_reward_does_not_import_trl():
    modules = "sys, isodense.reward.scoring.load, isodense.reward.scoring.classifier"
    code = f"import {modules}; print('trl' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
