"""The runs of a comparison: which there are, what they set, and what cannot be compared."""

from __future__ import annotations

import pytest

from isodense.experiments.arms import ARMS
from isodense.experiments.plan import effective, plan_runs, require_different
from isodense.pipeline.errors import IsodenseError


def test_runs_are_all_arms_of_a_seed_before_the_next_seed():
    runs = plan_runs(["uniform", "density-both"], 2, ["train.max_steps=3"])
    assert [(run.arm, run.seed) for run in runs] == [
        ("uniform", 0),
        ("density-both", 0),
        ("uniform", 1),
        ("density-both", 1),
    ]
    assert runs[3].settings == (
        "train.max_steps=3",
        "reward.sampling=density",
        "train.sampling=density",
        "train.seed=1",
    )
    assert len({run.name for run in runs}) == 4
    assert len({run.common for run in runs}) == 1


def test_a_setting_can_name_the_seed():
    settings = ["base.seed={seed}", "train.lora={r: 4}"]
    runs = plan_runs(["uniform", "oracle"], 2, settings)
    assert runs[2].settings[:2] == ("base.seed=1", "train.lora={r: 4}")
    assert [run.common == runs[0].common for run in runs] == [True, True, False, False]


def test_arms_set_what_their_names_say():
    assert ARMS["oracle"] == ("reward.sampling=uniform", "train.sampling=label")
    assert ARMS["density-0.7"][1:] == ("train.sampling=density", "density.ess=0.7")
    assert ARMS["clusters"][1:] == ("train.sampling=density", "density.method=clusters")
    assert len(set(ARMS.values())) == len(ARMS)


def test_names_tell_settings_apart():
    one, other = (
        plan_runs(["uniform", "density"], 2, [f"train.max_steps={steps}"])[0] for steps in (3, 4)
    )
    assert one.name.startswith("uniform-0-")
    assert one.name != other.name


@pytest.mark.parametrize(
    ("arms", "seeds"),
    [(["uniform"], 3), (["uniform", "uniform"], 3), (["uniform", "dense"], 3), (list(ARMS), 1)],
)
def test_nothing_to_compare_is_refused(arms: list[str], seeds: int):
    with pytest.raises(IsodenseError, match="two or more of uniform, density"):
        plan_runs(arms, seeds)


@pytest.mark.parametrize(
    ("arms", "setting"),
    [
        (["uniform", "density"], "train.seed=5"),
        (["uniform", "density"], "+train.sampling=uniform"),
        (["uniform", "density-0.9"], "density.ess=0.8"),
    ],
)
def test_what_the_arms_differ_in_cannot_be_set(arms: list[str], setting: str):
    with pytest.raises(IsodenseError, match="choose among --arms"):
        plan_runs(arms, 2, [setting])


def test_what_the_named_arms_do_not_set_can_be_set():
    assert plan_runs(["uniform", "density"], 2, ["density.ess=0.9"])


@pytest.mark.parametrize(
    "setting",
    ["params.yaml:train.sampling=uniform", "train={sampling: uniform}", "~train.sampling",
     " train.sampling=uniform", "train.sampling =uniform", "train.beta", "beta=1"],
)  # fmt: skip
def test_a_setting_of_which_it_is_not_clear_what_it_sets_is_refused(setting: str):
    with pytest.raises(IsodenseError, match=r"no setting of one param\n.*section.key=value"):
        plan_runs(["uniform", "density"], 2, [setting])


PARAMS = {
    "reward": {"kind": "head"},
    "train": {"redraw": None},
    "density": {"ess": 0.8, "method": "soft_count"},
}


def test_arms_that_a_reward_cannot_tell_apart_are_refused():
    both = ["uniform", "density-both"]
    require_different(both, PARAMS, [])
    require_different(["uniform", "density"], PARAMS, ["reward.kind=function"])
    with pytest.raises(IsodenseError, match="leave out density-both"):
        require_different(both, PARAMS, ["reward.kind=function"])


def test_arms_that_the_params_make_the_same_are_refused():
    require_different(list(ARMS), PARAMS, [])
    redrawn = PARAMS | {"train": {"redraw": "decile"}}
    with pytest.raises(IsodenseError, match=r"density and density\+redraw are .* train.redraw"):
        require_different(["uniform", "density", "density+redraw"], redrawn, [])
    require_different(["uniform", "density+redraw"], redrawn, [])
    with pytest.raises(IsodenseError, match=r"density-0.9 and density are .* density.ess only"):
        require_different(["density-0.9", "density"], PARAMS, ["density.ess=0.90"])


def test_the_last_setting_of_a_param_counts():
    params = {"reward": {"kind": "head"}, "train": {"lora": None}}
    assert effective(params, "reward.kind", ["train.seed=1"]) == "head"
    assert effective(params, "reward.kind", ["reward.kind=full", "reward.kind=model"]) == "model"
    assert effective(params, "evaluate.answer", []) is None


def test_a_value_that_is_no_yaml_is_named():
    with pytest.raises(IsodenseError, match=r"'reward.kind=\[a' cannot be read"):
        effective({}, "reward.kind", ["reward.kind=[a"])
