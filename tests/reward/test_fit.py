from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from isodense.pipeline.artifact import read_manifest
from isodense.pipeline.errors import ParamsError
from isodense.pipeline.params import load
from isodense.prompts.conversations import id_of
from isodense.prompts.reader import PromptSet
from isodense.reward.fit import fit
from isodense.reward.pairs import margins, sides
from isodense.reward.params import RewardParams
from isodense.reward.scoring.check import over_labels
from isodense.reward.scoring.load import load_reward
from isodense.sampling.weights import load_weights
from tests.rl import SECTIONS, make_pairs, reward_params, snapshot, write_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reward")


@pytest.fixture(scope="module")
def prompts(folder: Path) -> PromptSet:
    return write_inputs(folder, count=150)


def make(folder: Path, prompts: PromptSet, name: str, weights=None, leaked=(), **changes):
    """Fit a head into the folder `name`, with the cache of that name."""
    params = reward_params(**changes)
    policy, pairs = folder / "models/policy", make_pairs(150)
    cache = folder / f"cache-{name}"
    inputs = {"pairs": "p"}
    out = folder / name
    return fit(pairs, prompts, policy, params, 0, "cpu", cache, inputs, out, weights, leaked)


@pytest.fixture(scope="module")
def report(folder: Path, prompts: PromptSet):
    return make(folder, prompts, "one")


def test_a_learnable_preference_is_learnt_and_counted(prompts: PromptSet, report):
    assert report["train_pairs"] + report["heldout_pairs"] == 150
    assert report["heldout_pairs"] == len(prompts.split("heldout"))
    assert report["unknown_pairs"] == report["truncated_pairs"] == 0
    heldout, length = report["heldout"], report["length_only"]
    assert heldout["accuracy"] > 0.95
    assert heldout["low"] < heldout["accuracy"] <= heldout["high"]
    assert length["prefers"] == "longer"
    gain = heldout["accuracy"] - length["accuracy"]
    assert report["over_length"]["difference"] == pytest.approx(gain)
    assert 0 < report["over_length"]["low"] < gain < report["over_length"]["high"]
    assert report["beats_chance"] is True


def test_the_same_input_gives_the_same_bytes(folder: Path, prompts: PromptSet, report):
    assert make(folder, prompts, "two", batch_tokens=2048) == report
    files = snapshot(folder / "one")
    assert files == snapshot(folder / "two")
    assert str(folder).encode() not in b"".join(files.values())


def test_the_clean_accuracy_leaves_out_pairs_of_leaked_prompts(folder: Path, prompts, report):
    """Half of the pairs are turned round, so the reward is wrong in these; they are left out."""
    whole = {key: report["heldout"][key] for key in ("accuracy", "low", "high")}
    assert report["clean"] == {"pairs": report["heldout_pairs"], **whole}
    held = prompts.split("heldout").ids
    wrong, pairs = frozenset(held[::2]), make_pairs(150)
    for pair in pairs:
        if id_of(pair) in wrong:
            pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
    params, inputs, policy = reward_params(), {"pairs": "p"}, folder / "models/policy"
    cache, out = folder / "cache-wrong", folder / "wrong"
    found = fit(pairs, prompts, policy, params, 0, "cpu", cache, inputs, out, None, wrong)
    assert found["heldout"]["accuracy"] == pytest.approx(0.5, abs=0.1)
    assert found["clean"]["accuracy"] > 0.95
    assert found["clean"]["pairs"] == len(held) - len(wrong)
    check = read_manifest(out, "reward")["check"]
    assert check["heldout"] == found["heldout"]["accuracy"]
    assert make(folder, prompts, "none", leaked=held)["clean"] == {"pairs": 0}


def test_the_manifest_holds_what_the_kind_reads_and_the_check(folder: Path, report):
    manifest = read_manifest(folder / "one", "reward")
    assert manifest["reward_kind"] == "head"
    assert set(SECTIONS["reward"]) - set(manifest["params"]) == {
        "full", "model", "functions", "solved_above", "check",
    }  # fmt: skip
    assert manifest["check"] == {
        "heldout": report["heldout"]["accuracy"],
        "heldout_low": report["heldout"]["low"],
        "heldout_high": report["heldout"]["high"],
        "length_only": report["length_only"]["accuracy"],
        "over_length_low": report["over_length"]["low"],
    }
    assert "solved_above" not in manifest  # a head's rewards have no natural threshold
    assert set(manifest["inputs"]) == {"pairs", "policy"}


def test_the_saved_reward_prefers_what_the_pairs_prefer(folder: Path, report):
    model = load_reward(folder / "one", folder / "models/policy")
    pairs = make_pairs(150)
    scores = model.score(pairs * 2, sides(pairs)[1])
    assert (margins(scores) > 0).mean() > 0.95
    assert scores.mean() == pytest.approx(0, abs=0.5)


def test_weights_change_the_head(folder: Path, prompts: PromptSet, report):
    make(folder, prompts, "dense", load_weights(folder / "data/density"), sampling="density")
    one, dense = (snapshot(folder / name)["head.safetensors"] for name in ("one", "dense"))
    assert one != dense


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "model"}, "needs model.source: hub or folder"),
        ({"kind": "model", "model": {"source": "hub", "name": "a/b", "version": None}},
         "'hub' needs model.version"),
        ({"kind": "model", "model": {"source": "folder", "name": None, "version": None}},
         "'folder' needs model.name"),
        ({"kind": "model", "model": {"source": "folder", "name": "a", "version": "b"}},
         "model.version has no meaning"),
        ({"kind": "function"}, "needs functions: [module:function, …]"),
        ({"kind": "function", "functions": ["rewards.py"]},
         "reward.functions[0]: 'rewards.py' is not module:function"),
        ({"functions": [{"name": "a:b", "weigth": 2.0}]},
         "reward.functions[0].weigth: unknown key (did you mean 'weight'?)"),
        ({"functions": [{"name": "a:b", "weight": float("inf")}]}, "is not finite"),
        ({"function": "a:b"}, "reward.function: unknown key (did you mean 'functions'?)"),
        ({"check": SECTIONS["reward"]["check"] | {"prompts": 1}}, "below the minimum, 2"),
        ({"full": SECTIONS["reward"]["full"] | {"trainer": {"max_length": 9}}},
         "trainer.max_length is set by reward.max_tokens"),
        ({"kind": "heads"}, "'heads' is not one of 'head', 'full', 'model', 'function'"),
    ],
)  # fmt: skip
def test_what_a_kind_lacks_is_told_at_once(tmp_path: Path, changes: dict, told: str):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"reward": SECTIONS["reward"] | changes}))
    with pytest.raises(ParamsError) as caught:
        load(path, "reward", RewardParams)
    assert told in str(caught.value)
    assert len(caught.value.faults) == 1


def test_every_label_counts_alike_in_the_accuracy_over_labels():
    margin = np.array([1.0, 1.0, 1.0, -1.0, 0.0, 5.0])
    found = over_labels(margin, ["common", "common", "common", "rare", "rare", None])
    assert found["labels"] == 2
    assert found["accuracy"] == pytest.approx((1 + 0.25) / 2)
    assert found["low"] < found["accuracy"] < found["high"]
    assert over_labels(margin, ["one"] * 6) == {"labels": 1}
