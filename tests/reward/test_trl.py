from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from isodense.models.inference.policy import load_tokenizer
from isodense.pipeline.artifact import read_manifest
from isodense.pipeline.errors import IsodenseError, ModelError, TrainingError
from isodense.pipeline.params import build
from isodense.prompts.reader import PromptSet, load_prompts
from isodense.reward.fit import fit
from isodense.reward.pairs import sides
from isodense.reward.params import FullParams
from isodense.reward.scoring.classifier import Classifier, conversation_tokens
from isodense.reward.scoring.load import load_reward
from isodense.reward.trl import make_config, plan_pairs, start
from isodense.sampling.weights import load_weights
from tests import tiny
from tests.cached import CHANGES, change
from tests.damage import reseal
from tests.rl import make_pairs, reward_params, snapshot, write_inputs

PAIRS = 80
FULL = {"epochs": 3.0, "batch_size": 8, "learning_rate": 0.003, "trainer": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("full")
    write_inputs(root, count=PAIRS)
    return root


@pytest.fixture(scope="module")
def prompts(folder: Path) -> PromptSet:
    return load_prompts(folder / "data/prompts")


def make(folder: Path, prompts: PromptSet, name: str, weights=None, **changes):
    params = reward_params(kind="full", full=FULL | changes)
    if weights is not None:
        params = params.model_copy(update={"sampling": "density"})
    return fit(
        make_pairs(PAIRS),
        prompts,
        folder / "models/policy",
        params,
        7,
        "cpu",
        folder / f"cache-{name}",
        {},
        folder / name,
        weights,
    )


@pytest.fixture(scope="module")
def report(folder: Path, prompts: PromptSet):
    return make(folder, prompts, "one")


def test_a_learnable_preference_is_learnt(report):
    assert report["heldout"]["accuracy"] > 0.9
    assert report["train"]["accuracy"] > 0.9
    assert report["heldout"]["log_loss"] < np.log(2)


def test_the_artifact_is_a_plain_folder_that_repeats_to_the_byte(folder: Path, prompts, report):
    make(folder, prompts, "two")
    files = snapshot(folder / "one")
    assert files == snapshot(folder / "two")
    assert {"model/config.json", "model/model.safetensors", "model/tokenizer.json"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".md")) or "checkpoint" in name]
    everything = b"".join(files.values())
    assert str(folder).encode() not in everything
    assert b"/tmp" not in everything
    params = read_manifest(folder / "one", "reward")["params"]
    assert set(params) == {"kind", "sampling", "max_tokens", "batch_tokens", "full"}


def test_what_was_trained_once_is_taken_again(folder: Path, prompts, report, monkeypatch):
    def never(*_):
        raise AssertionError("trained again")

    files = snapshot(folder / "one")
    with monkeypatch.context() as patch:
        patch.setattr(RewardTrainer, "train", never)
        assert make(folder, prompts, "one") == report
        with pytest.raises(AssertionError, match="trained again"):
            make(folder, prompts, "one", epochs=2.0)
    assert snapshot(folder / "one") == files
    assert len(list((folder / "cache-one/reward-full").glob("*/model"))) == 1


@pytest.mark.parametrize("what", [*CHANGES, "seed", "policy", "pairs"])
def test_a_kept_model_is_that_of_all_that_shapes_it(
    folder: Path, prompts, report, what: str, monkeypatch: pytest.MonkeyPatch
):
    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(RewardTrainer, "train", never)
    policy, pairs, seed = folder / "models/policy", make_pairs(PAIRS), 7
    if what in CHANGES:
        change(what, "isodense.reward.trl", "trl", monkeypatch)
    elif what == "policy":
        policy = tiny.policy(folder / "other-policy", seed=1)
    elif what == "pairs":
        pairs[0]["chosen"] = [{"role": "assistant", "content": "cat."}]
    else:
        seed = 8
    params = reward_params(kind="full", full=FULL)
    with pytest.raises(AssertionError, match="trained again"):
        fit(pairs, prompts, policy, params, seed, "cpu", folder / "cache-one", {}, folder / "x")


def test_scores_are_those_of_the_trained_model_on_tokens_that_trl_makes(folder, report):
    """TRL's own trainer tokenises the pairs and its collator pads them."""
    pairs = make_pairs(8, seed=3)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "one/model").eval()
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            str(folder / "trl"),
            use_cpu=True,
            bf16=False,
            report_to="none",
            activation_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(
            [{name: pair[name] for name in ("prompt", "chosen", "rejected")} for pair in pairs]
        ),
        processing_class=load_tokenizer(folder / "models/policy"),
    )
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(8)])
    with torch.inference_mode():
        expected = model(**batch).logits[:, 0].numpy()
    scores = load_reward(folder / "one", folder / "models/policy").score(pairs * 2, sides(pairs)[1])
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.ptp(expected) > 0.1


def test_no_step_leaves_the_policys_own_weights(folder: Path, prompts):
    make(folder, prompts, "still", learning_rate=0.0)
    policy = folder / "models/policy"
    model = AutoModelForSequenceClassification.from_pretrained(folder / "still/model")
    for name, value in start(policy, 7).state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert not torch.equal(start(policy, 8).score.weight, model.score.weight)


def test_density_draws_pairs_by_weight_and_is_another_reward(folder: Path, prompts, report):
    weights = load_weights(folder / "data/density")
    make(folder, prompts, "dense", weights)
    one, other = (snapshot(folder / name)["model/model.safetensors"] for name in ("one", "dense"))
    assert one != other


def test_the_plan_takes_every_pair_once_per_epoch():
    params = reward_params(full=FULL | {"epochs": 2.5})
    plan = plan_pairs(np.ones(10), params, seed=1)
    assert [sorted(part.tolist()) for part in (plan[:10], plan[10:20])] == [list(range(10))] * 2
    assert len(set(plan[20:])) == len(plan[20:]) == 5
    assert not np.array_equal(plan[:10], plan[10:20])
    assert np.array_equal(plan, plan_pairs(np.ones(10), params, seed=1))
    assert len(plan_pairs(np.ones(3), reward_params(full=FULL | {"epochs": 0.01}), 1)) == 1


def test_a_density_plan_follows_the_weights():
    params = reward_params(sampling="density", full=FULL | {"epochs": 1000.0})
    plan = plan_pairs(np.array([0.4, 1.6, 1.0]), params, seed=0)
    np.testing.assert_allclose(np.bincount(plan) / len(plan), [0.4 / 3, 1.6 / 3, 1 / 3], atol=0.02)


def test_long_pairs_are_cut_and_counted_not_left_out(folder: Path, prompts):
    policy, cache, pairs = folder / "models/policy", folder / "cache", make_pairs(PAIRS)
    ids, _ = conversation_tokens(load_tokenizer(policy), *sides(pairs), 1000)
    limit = int(np.median([len(row) for row in ids]))
    params = reward_params(kind="full", max_tokens=limit, full=FULL | {"epochs": 0.05})
    report = fit(pairs, prompts, policy, params, 0, "cpu", cache, {}, folder / "short")
    assert 0 < report["truncated_pairs"] < PAIRS
    assert report["train_pairs"] + report["heldout_pairs"] == PAIRS


def test_settings_reach_trl(tmp_path: Path):
    trainer = {"gradient_accumulation_steps": 4, "center_rewards_coefficient": 0.01}
    params = reward_params(kind="full", full=FULL | {"trainer": trainer})
    config = make_config(params, 5, "cpu", str(tmp_path))
    assert config.per_device_train_batch_size == 2
    assert config.center_rewards_coefficient == 0.01
    assert (config.seed, config.learning_rate) == (5, 0.003)
    bad = reward_params(kind="full", full=FULL | {"trainer": {"lr_scheduler_type": "wrong"}})
    with pytest.raises(TrainingError, match=r"reward\.full"):
        make_config(bad, 5, "cpu", str(tmp_path))


def test_wrong_names_are_told_with_the_nearest():
    trainer = {"weight_decy": 0.1, "learning_rate": 1, "gradient_accumulation_steps": 3}
    with pytest.raises(IsodenseError) as caught:
        build(FullParams, FULL | {"trainer": trainer}, "full")
    faults = caught.value.message.split("\n  ")[1:]
    assert len(faults) == 3
    assert "did you mean 'weight_decay'" in faults[0]
    assert faults[1] == "trainer.learning_rate is set by reward.full.learning_rate"
    assert "3 does not divide batch_size 8" in faults[2]
    assert build(FullParams, FULL | {"trainer": {"weight_decay": 0.1}}, "full")


def test_a_policy_that_is_no_language_model_is_told(tmp_path: Path):
    tiny.policy(tmp_path / "policy")
    (tmp_path / "policy/model.safetensors").write_bytes(b"short")
    reseal(tmp_path / "policy")
    with pytest.raises(ModelError, match="cannot be loaded as a sequence classifier"):
        start(tmp_path / "policy", 0)


def test_the_classifier_reads_what_was_trained(folder: Path, report):
    classifier = Classifier(folder / "one/model", 128, 512, "cpu")
    assert classifier.pad == load_tokenizer(folder / "models/policy").pad_token_id
