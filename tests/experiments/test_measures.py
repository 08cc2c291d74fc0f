"""The measure that decides follows from the params, and is noted before the runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from isodense.experiments.measures import chosen, deciding, note
from isodense.experiments.plan import plan_runs
from isodense.pipeline.errors import IsodenseError

HEAD = {"reward": {"kind": "head", "solved_above": 0.5}, "evaluate": {"answer": None}}
FUNCTION = {"reward": {"kind": "function", "solved_above": 0.5}, "evaluate": {}}


def test_the_mean_over_labels_decides_by_default():
    probability = "eval.trained.answer_probability"
    solved = "eval.trained.pass_at_1"
    assert deciding(None, HEAD, []) == ("judge.over_labels", "judge.all")
    assert deciding(None, FUNCTION, []) == (f"{solved}_over_labels", solved)
    assert deciding(None, FUNCTION, ["evaluate.answer=answer"])[0] == f"{probability}_over_labels"
    assert deciding(None, FUNCTION, ["reward.solved_above=null"])[0] == "judge.over_labels"


def test_a_measure_can_be_named_in_short():
    assert deciding("pass_at_1_rarer_half", HEAD, []) == ("eval.trained.pass_at_1_rarer_half",)
    assert deciding("judge.all", FUNCTION, []) == ("judge.all",)
    with pytest.raises(IsodenseError, match=r"no measure 'pass'\n.*judge.all.*pass_at_1,"):
        deciding("pass", HEAD, [])


def test_without_labels_the_plain_mean_decides():
    assert chosen(("judge.over_labels", "judge.all"), ["judge.all", "other"]) == "judge.all"


def test_what_decides_cannot_be_changed_after_the_runs(tmp_path: Path):
    plan = tmp_path / "plan.json"
    two, three = (plan_runs(["uniform", "density"], seeds) for seeds in (2, 3))
    note(("judge.all",), two, plan)
    note(("judge.all",), three, plan)
    with pytest.raises(IsodenseError, match=r"judge.all decides about 4 of these runs(.|\n)*--out"):
        note(("eval.trained.vendi",), two, plan)
    note(("eval.trained.vendi",), plan_runs(["uniform", "density"], 2, ["train.beta=1"]), plan)


def test_the_measure_that_was_noted_can_be_named(tmp_path: Path):
    plan, runs = tmp_path / "plan.json", plan_runs(["uniform", "density"], 2)
    note(("judge.over_labels", "judge.all"), runs, plan)
    before = plan.read_text()
    note(("judge.over_labels",), runs, plan)
    assert plan.read_text() == before
    with pytest.raises(IsodenseError, match=r"--measure judge\.over_labels"):
        note(("judge.all",), runs, plan)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"measure": null, "runs": null}', '{"measure": [], "runs": ["a"]}',
     '{"measure": ["all"], "runs": ["a"]}', '{"measure": ["judge.all"], "runs": 3}'],
)  # fmt: skip
def test_a_damaged_note_is_an_error_and_stays(tmp_path: Path, text: str):
    plan = tmp_path / "plan.json"
    plan.write_text(text)
    with pytest.raises(IsodenseError, match=r"plan.json does not say which measure(.|\n)*--output"):
        note(("judge.all",), plan_runs(["uniform", "density"], 2), plan)
    assert plan.read_text() == text
