from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from isodense.pipeline.artifact import read_manifest
from isodense.pipeline.errors import DataError, ModelError, TrainingError
from isodense.prompts.conversations import prompt_id
from isodense.prompts.reader import PromptSet
from isodense.reward.scoring.classifier import Classifier, conversation_tokens
from isodense.reward.scoring.load import load_reward
from tests import tiny
from tests.rl import make_pairs, snapshot, write_inputs, write_reward

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny reward model."""
    root = tmp_path_factory.mktemp("classifier")
    policy, made = tiny.policy(root / "policy"), root / "model"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
        model.score.weight.data.normal_()
    model.save_pretrained(made)
    AutoTokenizer.from_pretrained(policy).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PromptSet]:
    root = tmp_path_factory.mktemp("inputs")
    return root, write_inputs(root)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None deletes one."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: v for key, v in values.items() if v is not None}))


def test_batched_scores_are_those_of_the_whole_model_one_by_one(folder: Path):
    prompts = [tiny.user(" ".join(tiny.WORDS[: number % 9 + 1])) for number in range(20)]
    answers = [" ".join(tiny.WORDS[: number % 5]) for number in range(20)]
    scores = Classifier(folder, 128, 200, "cpu").score(
        [{"prompt": prompt} for prompt in prompts], answers
    )
    assert scores.dtype == np.float32
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for prompt, answer, score in zip(prompts, answers, scores, strict=True):
        messages = [*prompt, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            assert score == pytest.approx(model(**ids).logits.item(), abs=1e-5)
    assert len(set(scores.round(4))) > 10


def test_no_answers_no_scores(folder: Path):
    assert Classifier(folder, 128, 200, "cpu").score([], []).shape == (0,)


def decoded(tokenizer, prompt, answer, limit):
    (ids,), (cut,) = conversation_tokens(tokenizer, [prompt], [answer], limit)
    assert len(ids) <= limit
    return tokenizer.decode(ids), cut


def test_a_long_conversation_loses_whole_turns_then_the_start_of_the_question():
    tokenizer = tiny.tokenizer()
    turns = [
        SYSTEM,
        {"role": "user", "content": "red " * 20},
        {"role": "assistant", "content": "green " * 20},
        {"role": "user", "content": "blue cat joke"},
    ]
    whole, cut = decoded(tokenizer, turns, "egg.", 400)
    assert not cut
    assert whole.count("<|im_start|>") == 5
    without, cut = decoded(tokenizer, turns, "egg.", 80)
    assert cut
    expected = tokenizer.apply_chat_template(
        [SYSTEM, turns[-1], {"role": "assistant", "content": "egg."}], tokenize=False
    )
    assert without == expected
    tight = len(tokenizer(expected)["input_ids"]) - 4
    shorter, cut = decoded(tokenizer, turns, "egg.", tight)
    assert cut
    assert shorter.startswith(
        f"<|im_start|>system\n{SYSTEM['content']}<|im_end|>\n<|im_start|>user"
    )
    assert shorter.endswith("joke<|im_end|>\n<|im_start|>assistant\negg.<|im_end|>\n")
    assert "blue" not in shorter


def test_an_answer_that_is_too_long_loses_its_end():
    tokenizer = tiny.tokenizer()
    text, cut = decoded(tokenizer, tiny.user("cat?"), "egg joke " + "mouse " * 200, 60)
    assert cut
    assert text.startswith("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\negg joke mouse")
    assert text.endswith("<|im_end|>\n")
    with pytest.raises(ModelError, match=r"raise reward\.max_tokens"):
        conversation_tokens(tokenizer, [tiny.user("cat?")], ["egg " * 50], 9)


def test_a_text_of_many_bytes_per_character_is_cut_between_characters():
    text, _ = decoded(tiny.tokenizer(), tiny.user("日本語" * 40), "egg.", 60)
    assert "\ufffd" not in text
    assert text.count("語") == 5


def test_a_tokenizer_without_chat_template_is_refused(copy: Path):
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"no chat template(.|\n)*chat_template\.jinja"):
        Classifier(copy, 128, 512, "cpu")


def test_a_model_without_pad_token_is_refused(copy: Path):
    edit(copy / "config.json", pad_token_id=None)
    with pytest.raises(ModelError, match="no pad_token_id"):
        Classifier(copy, 128, 512, "cpu")


def test_more_tokens_than_the_context_are_refused(folder: Path):
    with pytest.raises(ModelError, match="at most 256"):
        Classifier(folder, 257, 512, "cpu")


def test_other_models_are_refused(folder: Path, copy: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="2 outputs, not one"):
        Classifier(tiny.policy(tmp_path / "policy"), 128, 512, "cpu")
    weights = load_file(copy / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, first score\.weight"):
        Classifier(copy, 128, 512, "cpu")
    (copy / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match="cannot be loaded"):
        Classifier(copy, 128, 512, "cpu")


def test_a_folder_becomes_the_reward_without_its_path(folder: Path, inputs):
    root, prompts = inputs
    source = {"source": "folder", "name": str(folder), "version": None}
    write_reward(root, prompts, kind="model", model=source)
    manifest = read_manifest(root / "models/reward", "reward")
    assert manifest["reward_kind"] == "model"
    assert manifest["params"]["model"]["name"] == "model"
    files = snapshot(root / "models/reward")
    assert str(folder).encode() not in b"".join(files.values())
    assert "model/model.safetensors" in files
    loaded = load_reward(root / "models/reward", root / "models/policy")
    asked, answers = [{"prompt": tiny.user("cat?")}] * 2, ["egg", "mouse and cat"]
    expected = Classifier(folder, 128, 64, "cpu").score(asked, answers)
    np.testing.assert_allclose(loaded.score(asked, answers), expected, atol=1e-6)
    write_reward(root, prompts, kind="model", model=source)
    assert snapshot(root / "models/reward") == files


def test_the_check_counts_the_pairs_that_the_model_gets_right(folder: Path, inputs):
    root, prompts = inputs
    source = {"source": "folder", "name": str(folder), "version": None}
    write_reward(root, prompts, kind="model", model=source)
    found = read_manifest(root / "models/reward", "reward")["check"]["heldout"]
    heldout = {row["id"] for row in prompts.split("heldout").rows}
    pairs = [pair for pair in make_pairs(60) if prompt_id(pair["prompt"]) in heldout]
    classifier = Classifier(folder, 128, 512, "cpu")
    wins = [
        classifier.score([pair], [pair["chosen"][0]["content"]])
        > classifier.score([pair], [pair["rejected"][0]["content"]])
        for pair in pairs
    ]
    assert found == pytest.approx(np.mean(wins))


def test_a_reward_model_comes_from_the_hub_at_its_revision(folder: Path, inputs, hub):
    root, prompts = inputs
    revision = hub.add("owner/reward", folder, kind="model", revision="a" * 40)
    source = {"source": "hub", "name": "owner/reward", "version": revision}
    write_reward(root, prompts, kind="model", model=source)
    assert read_manifest(root / "models/reward", "reward")["params"]["model"] == source
    name = "model.safetensors"
    assert (root / "models/reward/model" / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(DataError, match="check the revision"):
        write_reward(root, prompts, kind="model", model=source | {"version": "b" * 40})


class Loud:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_pickled_weights_are_neither_copied_nor_read(copy: Path, inputs):
    root, prompts = inputs
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Loud()))
    source = {"source": "folder", "name": str(copy), "version": None}
    write_reward(root, prompts, kind="model", model=source)
    assert not list((root / "models/reward").rglob("*.bin"))
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors only"):
        write_reward(root, prompts, kind="model", model=source)


def test_a_folder_that_is_not_there_is_named(inputs, tmp_path: Path):
    root, prompts = inputs
    source = {"source": "folder", "name": str(tmp_path / "no"), "version": None}
    with pytest.raises(ModelError, match=r"no such folder(.|\n)*reward\.model\.name"):
        write_reward(root, prompts, kind="model", model=source)


def test_scores_that_are_not_finite_are_not_published(copy: Path, inputs):
    root, prompts = inputs
    shutil.rmtree(root / "models/reward", ignore_errors=True)
    weights = load_file(copy / "model.safetensors")
    weights["score.weight"][:] = np.finfo(np.float32).max  # finite, and their sums are not
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    source = {"source": "folder", "name": str(copy), "version": None}
    with pytest.raises(TrainingError, match="not all finite"):
        write_reward(root, prompts, kind="model", model=source)
    assert not (root / "models/reward").exists()
