from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent, indent

import numpy as np
import pytest

from isodense.pipeline.artifact import read_manifest
from isodense.pipeline.errors import TrainingError
from isodense.prompts.conversations import prompt_id
from isodense.prompts.reader import PromptSet
from isodense.reward.scoring.function import FunctionReward, source_files, source_sha256
from isodense.reward.scoring.load import load_reward
from tests.rl import write_inputs, write_reward
from tests.tiny import user

ENDS = "return [float(answer[-1]['content'].endswith('.')) for answer in completions]"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty project whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    sys.modules.pop("rewards", None)


def write(folder: Path, body: str = ENDS, start: str = "") -> str:
    """Write the module ``rewards`` with one function of that body, and return its name."""
    sys.modules.pop("rewards", None)
    head = "def right(prompts, completions, prompt_id, label, **_):\n"
    (folder / "rewards.py").write_text(start + head + indent(dedent(body), "    ") + "\n")
    return "rewards:right"


def test_the_function_is_called_as_trl_calls_it(project: Path):
    known = user("What is red?")
    rows = [{"id": prompt_id(known), "label": "colour", "split": "train"}]
    name = write(project, "calls.append((prompts, completions, prompt_id, label))\nreturn [1, 2.5]",
                 "calls = []\n")  # fmt: skip
    reward = FunctionReward(name, PromptSet(rows))
    other = user("What is a cat?")
    scores = reward.score([known, other], ["a colour", "an animal"])
    assert scores.dtype == np.float32
    assert scores.tolist() == [1, 2.5]
    answers = [[{"role": "assistant", "content": text}] for text in ("a colour", "an animal")]
    ids = [prompt_id(known), prompt_id(other)]
    assert sys.modules["rewards"].calls == [([known, other], answers, ids, ["colour", None])]


def test_a_function_may_take_only_what_it_needs(project: Path):
    start = f"def plain(completions, **kwargs):\n    {ENDS}\n\n\n"
    name = write(project, start=start).replace("right", "plain")
    assert FunctionReward(name).score([user("a")] * 2, ["b.", "c"]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return 1 / 0", r"rewards:right raised ZeroDivisionError: division by zero.*line 2"),
        ("return [1.0]", "returned 1 numbers for 2 answers"),
        ("return [1.0, 2.0, 3.0]", "returned 3 numbers for 2 answers"),
        ("return [1.0, float('nan')]", "returned nan for answer 1"),
        ("return [None, 1.0]", "returned None for answer 0"),
        ("return 'good'", "returned 'good', not a list"),
        ("return None", "returned None, not a list"),
        ("return [[1.0], [2.0]]", "not a list of numbers"),
    ],
)
def test_what_a_function_does_wrong_is_one_clear_error(project: Path, body: str, told: str):
    with pytest.raises(TrainingError, match=told):
        FunctionReward(write(project, body)).score([user("a"), user("b")], ["c", "d"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("reward:right", "importing reward raised ModuleNotFoundError"),
        ("rewards:rigth", "did you mean 'right'"),
        ("sys:exit", "has no source file"),
    ],
)
def test_a_function_that_is_not_there_is_named(project: Path, name: str, told: str):
    write(project)
    with pytest.raises(TrainingError, match=told):
        FunctionReward(name)


def test_a_module_that_cannot_be_imported_is_named(project: Path):
    with pytest.raises(TrainingError, match=r"importing rewards raised SyntaxError"):
        FunctionReward(write(project, start="def ("))


def test_the_artifact_names_the_function_and_notices_another_one(project: Path):
    name = write(project)
    prompts = write_inputs(project)
    write_reward(project, prompts, kind="function", function=name)
    manifest = read_manifest(project / "models/reward", "reward")
    assert manifest["reward_kind"] == "function"
    assert manifest["params"] == {"kind": "function", "function": name}
    assert manifest["check"]["heldout"] == 1
    assert manifest["files"] == {}
    reward = load_reward(project / "models/reward", project / "models/policy", "cpu", prompts)
    assert reward.score([user("a"), user("b")], ["yes.", "no"]).tolist() == [1, 0]
    write(project, ENDS.replace("'.'", "'!'"))
    with pytest.raises(TrainingError, match="dvc repro reward"):
        load_reward(project / "models/reward", project / "models/policy")


@pytest.mark.parametrize("edited", ["helper.py", "__init__.py", "deep/__init__.py", "k.txt", "far"])
def test_the_hash_covers_all_that_a_reward_is_made_of(project: Path, tmp_path_factory, edited: str):
    folder, outside = project / "rewards", tmp_path_factory.mktemp("outside")
    (folder / "deep").mkdir(parents=True)
    (folder / "mine.py").write_text("def score(**_):\n    from .helper import K\n    return K\n")
    for name in ("helper.py", "__init__.py", "deep/__init__.py", "k.txt"):
        (folder / name).write_text("K = 1\n")
    (outside / "linked.py").write_text("K = 1\n")
    (folder / "linked.py").symlink_to(outside / "linked.py")
    before = source_sha256("rewards.mine", project)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/mine.pyc").touch()
    assert source_sha256("rewards.mine", project) == before
    path = outside / "linked.py" if edited == "far" else folder / edited
    path.write_text("K = 2\n")
    assert source_sha256("rewards.mine", project) != before


def test_imports_elsewhere_in_the_project_count_and_are_not_run(project: Path):
    (project / "mine.py").write_text("import shared.tools\nfrom json import dumps\n")
    (project / "shared").mkdir()
    (project / "shared/__init__.py").write_text("raise SystemExit('run')\n")
    (project / "shared/tools.py").write_text("def (\n")
    files = source_files("mine", project)
    assert [path.name for path in files] == ["mine.py", "__init__.py", "tools.py"]
    before = source_sha256("mine", project)
    (project / "shared/tools.py").write_text("K = 1\n")
    assert source_sha256("mine", project) != before


@pytest.mark.parametrize(
    ("start", "body", "told"),
    [
        ("import sys\nsys.exit(0)\n", ENDS, "importing rewards raised SystemExit: 0"),
        ("", "raise SystemExit(0)", "rewards:right raised SystemExit: 0"),
        ("x = = 1\n", ENDS, r"SyntaxError: .*\(rewards\.py, line 1\)"),
    ],
)
def test_code_that_exits_or_cannot_be_read_is_named(project: Path, start, body, told):
    with pytest.raises(TrainingError, match=told):
        FunctionReward(write(project, body, start)).score([user("a")], ["b"])
