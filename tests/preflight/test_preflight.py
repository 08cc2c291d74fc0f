"""What later stages cannot work with is said before the first long one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from isodense.pipeline.artifact import publishing, write_manifest
from isodense.pipeline.errors import ArtifactError, ParamsError, TrainingError
from isodense.pipeline.tables import write_rows
from isodense.preflight import inputs as module
from isodense.preflight.checks import Finding, examine
from isodense.preflight.inputs import read_inputs
from isodense.prompts.reader import load_prompts
from isodense.train.params import TrainParams
from isodense.train.plan import plan_run
from tests import tiny
from tests.damage import give_template
from tests.rl import ROOT, SECTIONS
from tests.tables import publish_prompts
from tests.thinking import CALLED, TEMPLATE, TOOLS

ANSWERS = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
COUNT = 40


def rows(count: int = COUNT, pairs: bool = True, words: int = 1) -> list[dict]:
    more = ANSWERS if pairs else {}
    text = " ".join(["egg"] * words)
    return [
        {"prompt": tiny.user(f"{text} {i}"), "source": "test", "solution": f"{i}", **more}
        for i in range(count)
    ]


class Project:
    def __init__(self, root: Path) -> None:
        self.root = root
        tiny.policy(root / "policy")
        self.write(rows())
        self.configure()

    def write(self, examples: list[dict], heldout: float = 0.3) -> None:
        for name in ("examples", "prompts"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        with publishing(self.root / "examples") as made:
            write_rows(made, examples)
            write_manifest(made, "download", rows=len(examples))
        publish_prompts(examples, self.root / "prompts", heldout)

    def configure(self, **changes: dict) -> None:
        sections = {name: section | changes.get(name, {}) for name, section in SECTIONS.items()}
        (self.root / "params.yaml").write_text(yaml.safe_dump(sections))

    @property
    def paths(self) -> list[Path]:
        return [self.root / name for name in ("examples", "prompts", "encoder", "policy")]

    def findings(self) -> list[Finding]:
        return list(examine(read_inputs(self.root / "params.yaml", *self.paths)))

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        flags = [word for path in self.paths for word in (f"--{path.name}", str(path))]
        return subprocess.run(
            [sys.executable, ROOT / "src/isodense/preflight", *flags],
            cwd=self.root,
            env={**os.environ, "CI": "1", **environment},
            capture_output=True,
            text=True,
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def said(findings: list[Finding], stage: str) -> list[str]:
    return [f"{one.level}: {one.text}" for one in findings if one.stage == stage]


def test_nothing_is_said_of_what_fits(project: Project):
    assert project.findings() == []


def labelled(names: list[str]) -> list[dict]:
    return [row | {"label": name} if name else row for row, name in zip(rows(), names, strict=True)]


def test_draws_by_label_need_labels(project: Project):
    for section in ({"sampling": "label"}, {"redraw": "label"}):
        project.configure(train=section)
        (text,) = said(project.findings(), "train")
        assert text.startswith(f"problem: train.{next(iter(section))}: label")
    project.write(labelled(["a", "b"] * (COUNT // 2)))
    assert project.findings() == []
    project.configure(train={"sampling": "label", "redraw": "label"})
    assert project.findings() == []
    project.write(labelled(["a", ""] * (COUNT // 2)))
    (text,) = said(project.findings(), "train")  # redrawing takes those without as a kind
    assert text.startswith("problem: train.sampling: label, and ")


def test_known_kinds_and_their_quotas_are_looked_at_before_embeddings(project: Project):
    for density, says in (
        ({"balance_by": "topic"}, "no training prompt has a column topic"),
        ({"balance_by": "source", "quotas": {"hh": 1.0}}, "quotas names what no training prompt"),
    ):
        project.configure(density=density)
        (text,) = said(project.findings(), "density")
        assert says in text
    project.configure(density={"balance_by": "source", "quotas": {"test": 1.0}})
    assert project.findings() == []


def test_difficulty_needs_to_know_what_solves_a_prompt(project: Project):
    project.write(rows(pairs=False))
    reward = {"kind": "function", "functions": ["isodense.reward.answers:exact_match"]}
    project.configure(reward=reward | {"solved_above": None}, difficulty={"completions": 8})
    (text,) = said(project.findings(), "difficulty")
    assert text.startswith("problem: reward.solved_above is null")


def test_a_reward_that_is_fitted_needs_pairs(project: Project):
    project.write(rows(pairs=False))
    expected = "warning: reward.kind head needs preference pairs, this data has none"
    assert said(project.findings(), "reward") == [expected]
    shutil.rmtree(project.root / "examples")  # only the prompts were pulled
    assert project.findings() == []


def test_draws_by_difficulty_need_one_and_the_stage_something_to_take_it_from(project: Project):
    project.configure(train={"sampling": "density+difficulty"})
    (said_of_train,) = said(project.findings(), "train")
    assert said_of_train.startswith("problem: train.sampling: density+difficulty with difficulty.")
    project.configure(
        train={"sampling": "difficulty"}, difficulty={"completions": 8, "column": "passrate"}
    )
    found = project.findings()
    assert said(found, "train") == []
    (said_of_column,) = said(found, "difficulty")
    assert said_of_column.startswith("problem: difficulty.column: passrate; the data has ")
    project.configure(difficulty={"completions": 8})
    expected = "problem: reward.kind head does not say which completions solve a prompt"
    assert said(project.findings(), "difficulty") == [expected]


def test_texts_longer_than_the_context_are_named(project: Project):
    project.configure(
        train={"max_prompt_tokens": 250, "max_completion_tokens": 7}, reward={"max_tokens": 257}
    )
    assert [(one.level, one.text, one.hint) for one in project.findings()] == [
        (
            "problem",
            "train.max_prompt_tokens + max_completion_tokens = 257, the policy reads 256",
            "let them sum to 256 at most",
        ),
        ("problem", "reward.max_tokens = 257, the policy reads 256", "set it to at most 256"),
    ]


@pytest.mark.parametrize(("long", "level"), [(1, None), (10, "warning"), (40, "problem")])
def test_prompts_too_long_for_training_are_counted_as_training_would(
    project: Project, long: int, level: str | None
):
    texts = [*rows(words=90)[:long], *rows()[long:]]
    project.write(texts, heldout=0.05)
    found = project.findings()
    prompts = load_prompts(project.root / "prompts").split("train")
    over = sum(len(row["text"]) > 90 for row in prompts.rows)
    if level is None:
        assert over <= 1
        assert not said(found, "train")
        return
    text = f"{over} of {len(prompts)} training prompts exceed train.max_prompt_tokens = 64"
    assert said(found, "train") == [f"{level}: {text} and would be skipped"]
    section = TrainParams(**SECTIONS["train"])
    weights = [1 / len(prompts)] * len(prompts)
    if level == "problem":
        with pytest.raises(TrainingError, match=r"exceed train\.max_prompt_tokens"):
            plan_run(prompts, weights, project.root / "policy", section, 4, 0)
    else:
        assert plan_run(prompts, weights, project.root / "policy", section, 4, 0).rows.size == 4


def test_held_out_prompts_beyond_the_context_are_counted(project: Project):
    project.write([*rows(30), *rows(30, words=250)], heldout=0.3)
    (text,) = said(project.findings(), "evaluate")
    heldout = load_prompts(project.root / "prompts").split("heldout")
    over = sum(len(row["text"]) > 250 for row in heldout.rows)
    assert text == (
        f"warning: {over} of {len(heldout)} held-out prompts and "
        "evaluate.max_completion_tokens = 6 exceed the policy's context, 256"
    )


def test_evaluating_needs_held_out_prompts(project: Project):
    project.write(rows(), heldout=0.0)
    expected = f"problem: 0 of {COUNT} prompts are held out; evaluating takes two"
    assert said(project.findings(), "evaluate") == [expected]


def test_a_template_that_refuses_a_role_says_of_which_prompt(project: Project, monkeypatch):
    """Also where the prompt is not in the sample: one of every set of roles is rendered."""
    monkeypatch.setattr(module, "SAMPLE", 2)
    give_template(project.root / "policy", TEMPLATE)
    developer = [{"role": "developer", "content": "Be brief."}, *tiny.user("hours")]
    project.write(
        [*rows(20), {"prompt": developer, "source": "test", **ANSWERS}, *rows(COUNT)[20:]]
    )
    (finding,) = project.findings()
    assert finding.level == "problem"
    assert finding.text == (
        "the policy's chat template refuses a prompt (developer, user): Unexpected message role."
    )
    assert finding.hint.startswith("it begins 'Be brief.'; leave such prompts out")


@pytest.mark.parametrize("reads_tools", [True, False])
def test_tools_that_the_template_does_not_show_are_a_warning(project: Project, reads_tools: bool):
    if reads_tools:
        give_template(project.root / "policy", TEMPLATE)
    tools = [{"prompt": CALLED, "tools": TOOLS, "source": "test", **ANSWERS}]
    project.write([*rows(), *tools])
    expected = "warning: prompts come with tools, which the policy's chat template does not show"
    assert said(project.findings(), "train") == ([] if reads_tools else [expected])


def test_messages_that_the_template_leaves_out_are_a_warning(project: Project):
    only_users = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    give_template(project.root / "policy", only_users)
    system = [{"role": "system", "content": "Be  brief."}, *tiny.user("hours")]
    project.write([*rows(), {"prompt": system, "source": "test", **ANSWERS}])
    assert said(project.findings(), "train") == [
        "warning: the policy's chat template leaves out messages of role system "
        "(of a prompt of system, user)"
    ]


def test_without_the_policy_the_other_checks_are_made(project: Project):
    shutil.rmtree(project.root / "policy")
    project.write(rows(pairs=False))
    found = project.findings()
    assert [one.stage for one in found] == ["reward", "train"]
    assert "is not here" in found[1].text


def test_wrong_params_of_later_stages_are_said_first(project: Project):
    project.configure(evaluate={"max_prompts": "many"})
    with pytest.raises(ParamsError, match=r"evaluate\.max_prompts"):
        project.findings()
    project.configure()
    shutil.rmtree(project.root / "prompts")
    with pytest.raises(ArtifactError):
        project.findings()


def test_a_ground_truth_that_the_data_lacks_is_a_problem(project: Project):
    project.configure(evaluate={"answer": "anwser"})
    assert said(project.findings(), "evaluate") == [
        "problem: evaluate.answer names 'anwser', and the data has solution"
    ]
    project.configure(evaluate={"answer": "solution"})
    assert not said(project.findings(), "evaluate")


@pytest.mark.slow
def test_a_problem_stops_the_pipeline_unless_it_need_not_get_that_far(project: Project):
    project.configure(evaluate={"answer": "anwser"})
    done = project.run()
    assert done.returncode == 1
    assert "problem in stage evaluate: evaluate.answer names 'anwser'" in done.stderr
    assert "ISODENSE_PREFLIGHT=warn" in done.stderr
    warned = project.run(ISODENSE_PREFLIGHT="warn")
    assert warned.returncode == 0
    assert f"{COUNT} prompts: problems: 1, warnings: 0" in warned.stderr
    assert "evaluate.answer names 'anwser'" in warned.stderr


def test_a_function_that_lacks_its_column_is_named(project: Project, monkeypatch):
    pytest.importorskip("isodense.reward.scoring.functions")
    (project.root / "rewards").mkdir()
    source = "def score(completions, answr, **columns):\n    return [0.0] * len(completions)\n"
    (project.root / "rewards/mine.py").write_text(source)
    monkeypatch.chdir(project.root)
    monkeypatch.syspath_prepend(str(project.root / "rewards"))
    function = {"name": "mine:score", "weight": 1.0, "args": {}}
    project.configure(reward={"kind": "function", "functions": [function]})
    (text,) = said(project.findings(), "reward")
    assert "needs the column answr" in text
    assert "solution" in text


def test_prompts_without_a_value_that_a_function_takes_are_counted(project: Project, monkeypatch):
    (project.root / "rewards").mkdir()
    source = "def graded(completions, solution):\n    return [0.0] * len(completions)\n"
    (project.root / "rewards/grades.py").write_text(source)
    monkeypatch.chdir(project.root)
    monkeypatch.syspath_prepend(str(project.root / "rewards"))
    made = rows(pairs=False)
    for row in made[:3]:
        row.pop("solution")
    project.write(made)
    project.configure(reward={"kind": "function", "functions": ["grades:graded"]})
    (text,) = said(project.findings(), "reward")
    assert text == f"warning: 3 of {COUNT} prompts have no solution"
