from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from isodense.pipeline.artifact import read_manifest
from isodense.pipeline.errors import TrainingError
from isodense.prompts.conversations import prompt_id
from isodense.reward.params import FunctionParams
from isodense.reward.scoring.function import RewardFunction
from isodense.reward.scoring.functions import (
    FunctionReward,
    columns_of,
    find_functions,
    ids_of,
    missing_columns,
)
from isodense.reward.scoring.load import load_reward
from tests import tiny
from tests.rl import write_inputs, write_reward
from tests.tiny import user

ENDS = "[float(answer[-1]['content'].endswith('.')) for answer in completions]"
COPIES = ["b.", "c"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty project whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    sys.modules.pop("rewards", None)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.policy(tmp_path_factory.mktemp("models") / "policy")


def write(folder: Path, source: str) -> None:
    """Write the module ``rewards``."""
    sys.modules.pop("rewards", None)
    (folder / "rewards.py").write_text(dedent(source))


def rows(*texts: str, **columns: list) -> list[dict]:
    """Return rows of prompts, with columns."""
    made = [{"id": prompt_id(user(text)), "prompt": user(text), "split": "train"} for text in texts]
    return [
        row | {name: values[place] for name, values in columns.items()}
        for place, row in enumerate(made)
    ]


def reward(*functions: object, columns: tuple[str, ...] = (), policy: Path = Path("none")):
    """Return the reward of ``reward.functions``, given as in params.yaml."""
    found = find_functions([FunctionParams.model_validate(one) for one in functions])
    return FunctionReward(found, columns, policy)


def test_a_function_is_given_all_that_trl_gives(project: Path, policy: Path):
    write(project, """
        calls = []
        def right(prompts, completions, completion_ids, prompt_id, solution, **others):
            calls.append((prompts, completions, completion_ids, prompt_id, solution, others))
            return [1, 2.5]
    """)  # fmt: skip
    asked = rows("What is red?", "And a cat?", solution=["colour", {"a": 1}], level=[3, None])
    texts = ["a colour", "an animal"]
    made = reward("rewards:right", columns=("level", "solution"), policy=policy)
    scores = made.score(asked, texts)
    assert scores.dtype == np.float32
    assert scores.tolist() == [1, 2.5]
    (call,) = sys.modules["rewards"].calls
    prompts, completions, tokens, ids, solution, others = call
    assert prompts == [row["prompt"] for row in asked]
    assert completions == [[{"role": "assistant", "content": text}] for text in texts]
    made_of = tiny.tokenizer()
    assert [made_of.decode(row, skip_special_tokens=True) for row in tokens] == texts
    assert {row[-1] for row in tokens} == {made_of.eos_token_id}
    assert ids == [row["id"] for row in asked]
    assert solution == ["colour", {"a": 1}]
    assert others.pop("trainer_state").global_step == 0
    others.pop("log_extra")("column", [1, 2])
    others.pop("log_metric")("name", 1.0)
    assert others == {"level": [3, None]}


def test_a_function_without_further_keywords_gets_what_it_names(project: Path):
    write(project, """
        def plain(completions, level, other=7):
            assert other == 7
            return level
    """)  # fmt: skip
    asked = rows("a", "b", level=[1, 2], solution=["x", "y"])
    made = reward("rewards:plain", columns=("level", "solution"))
    assert made.score(asked, COPIES).tolist() == [1, 2]


def test_a_column_that_some_rows_lack_is_none_there(project: Path):
    write(project, "def right(completions, level):\n    return level\n")
    asked = [*rows("a", level=[2.0]), *rows("b")]
    made = reward("rewards:right", columns=columns_of(asked))
    assert made.columns == ["level"]
    scores = made.each(asked, COPIES)
    assert scores[0] == 2
    assert np.isnan(scores[1])


def test_rewards_are_weighted_and_those_without_an_opinion_left_out(project: Path, caplog):
    write(project, """
        def one(completions):
            return [1.0, None, None]
        def two(completions):
            return [10.0, 10.0, None]
    """)  # fmt: skip
    made = reward({"name": "rewards:one", "weight": 2.0}, {"name": "rewards:two", "weight": -0.5})
    each = made.each(rows(*"abc"), ["x"] * 3)
    np.testing.assert_array_equal(each, [[1, 10], [np.nan, 10], [np.nan, np.nan]])
    np.testing.assert_array_equal(made.score(rows(*"abc"), ["x"] * 3), [-3, -5, np.nan])
    assert "no opinion" not in caplog.text
    assert "no reward function has an opinion on 1 of 3 completions" in caplog.text


def test_coroutines_are_awaited_side_by_side_in_one_loop(project: Path):
    write(project, """
        import asyncio
        order, loops = [], set()
        async def slow(completions):
            loops.add(asyncio.get_running_loop())
            order.append("slow starts")
            await asyncio.sleep(0.01)
            order.append("slow ends")
            return [1.0] * len(completions)
        class Quick:
            async def __call__(self, completions):
                order.append("quick")
                return [2.0] * len(completions)
        quick = Quick()
        def plain(completions):
            return [4.0] * len(completions)
    """)  # fmt: skip
    made = reward("rewards:slow", "rewards:plain", "rewards:quick")
    for _ in range(2):
        np.testing.assert_array_equal(made.each(rows("a", "b"), COPIES), [[1, 4, 2]] * 2)
    module = sys.modules["rewards"]
    assert module.order == ["slow starts", "quick", "slow ends"] * 2
    assert len(module.loops) == 1


@pytest.mark.parametrize(
    ("spec", "scores"),
    [
        ({"name": "rewards:within", "args": {"most": 1}}, [0, 1]),
        ({"name": "rewards:made", "args": {"most": 1}}, [0, 1]),
        ({"name": "rewards:made"}, [1, 1]),
        ({"name": "rewards:Within", "args": {"most": 1}}, [0, 1]),
        ({"name": "rewards:solved", "args": {"level": 9}}, [9, 9]),
    ],
    ids=["function", "factory", "factory with defaults", "class", "instead of a column"],
)
def test_args_reach_functions_and_make_those_of_factories(project: Path, policy, spec, scores):
    write(project, """
        def within(completions, most):
            return [float(len(answer[0]["content"]) <= most) for answer in completions]
        def made(most=100):
            return lambda completions, **_: within(completions, most)
        class Within:
            def __init__(self, most):
                self.most = most
            def __call__(self, completions, **_):
                return within(completions, self.most)
        def solved(completions, level):
            return [level] * len(completions)
    """)  # fmt: skip
    made = reward(spec, columns=("level",), policy=policy)
    assert made.score(rows("a", "b", level=[1, 2]), COPIES).tolist() == scores


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"name": "rewards:right", "args": {"mots": 1}}, "takes no argument 'mots'.*'most'"),
        ({"name": "rewards:right", "args": {"completions": []}}, "no argument 'completions'"),
        ({"name": "rewards:make", "args": {"size": 1}}, r"\{'size': 1\} raised TypeError"),
        ({"name": "rewards:make", "args": {}}, "returned 3, not a function"),
    ],
)
def test_args_that_do_not_fit_are_named(project: Path, spec, told: str):
    write(project, """
        def right(completions, most=1):
            return [1.0] * len(completions)
        def make():
            return 3
    """)  # fmt: skip
    with pytest.raises(TrainingError, match=told):
        reward(spec)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return 1 / 0", r"rewards:right raised ZeroDivisionError: division by zero.*line 2"),
        ("return [1.0]", "returned 1 numbers for 2 completions"),
        ("return [1.0, 2.0, 3.0]", "returned 3 numbers for 2 completions"),
        ("return [1.0, float('nan')]", f"nan for completion 1, prompt {ids_of(rows('b'))[0]}"),
        ("return [float('-inf'), 1.0]", "returned -inf for completion 0"),
        ("return ['1.0', 1.0]", "returned '1.0' for completion 0"),
        ("return 'good'", "returned 'good', not a list"),
        ("return None", "returned None, not a list"),
        ("return [[1.0], [2.0]]", r"returned \[1.0\] for completion 0(.|\n)*sum or the mean"),
        ("return lambda: 1", "returned <function"),
        ("return [int(p[0]['content'] == 'a' or p[0]['x']) for p in prompts]",
         rf"raised KeyError: 'x' \(rewards.py, line 2\) for prompt {ids_of(rows('b'))[0]}"),
        ("raise OSError('no host')", "OSError: no host .* for 2 completions, the first of prompt"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_a_function_does_wrong_is_one_clear_error(project: Path, kind, body, told):
    write(project, f"{kind} right(prompts, completions):\n    {body}\n")
    if kind == "async def":  # which is not called again to find the prompt
        told = told.replace(f"for prompt {ids_of(rows('b'))[0]}", "for 2 completions")
    with pytest.raises(TrainingError, match=told):
        reward("rewards:right").score(rows("a", "b"), COPIES)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("reward:right", r"there is no module reward\b"),
        ("rewards:rigth", "did you mean 'right'"),
        ("sys:exit", "has no source file"),
        ("trl.rewards:acuracy_reward", "did you mean 'accuracy_reward'"),
    ],
)
def test_a_function_that_is_not_there_is_named(project: Path, name: str, told: str):
    write(project, "def right(completions):\n    pass\n")
    with pytest.raises(TrainingError, match=told):
        RewardFunction(name)


def test_a_module_that_is_not_there_is_told_from_one_that_it_imports(project: Path):
    with pytest.raises(TrainingError, match=r"there is no module lessons\.algebra") as raised:
        RewardFunction("lessons.algebra:right")
    assert "write lessons/algebra.py" in raised.value.hint
    write(project, "import numpi\n")
    with pytest.raises(TrainingError, match="importing rewards raised ModuleNotFoundError"):
        RewardFunction("rewards:right")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def (", "importing rewards raised SyntaxError"),
        ("import sys\nsys.exit(0)\n", "importing rewards raised SystemExit: 0"),
        ("x = = 1\n", r"SyntaxError: .*\(rewards\.py, line 1\)"),
        ("def right(completions):\n    raise SystemExit(0)", "right raised SystemExit: 0"),
    ],
)
def test_code_that_exits_or_cannot_be_read_is_named(project: Path, source: str, told: str):
    write(project, source)
    with pytest.raises(TrainingError, match=told):
        reward("rewards:right").score(rows("a"), ["b"])


def test_columns_that_are_missing_are_said_with_what_maps_them(project: Path):
    write(project, "def right(completions, solutions, level=1, *, kind, **_):\n    pass\n")
    functions = [FunctionParams.model_validate("rewards:right")]
    assert missing_columns(functions, ["kind", "solution"]) == [
        "reward.functions: rewards:right needs the column solutions; the data has kind, solution: "
        "set download.local.columns: {solutions: solution}"
    ]
    assert missing_columns(functions, ["solutions", "kind"]) == []
    bound = [FunctionParams(name="rewards:right", args={"kind": "x", "solutions": []})]
    assert missing_columns(bound, []) == []
    assert len(missing_columns(functions, [])) == 2


def test_trls_own_functions_say_what_they_need_and_score(project: Path):
    shaping = [
        {"name": "trl.rewards:think_format_reward"},
        {"name": "trl.rewards:get_soft_overlong_punishment", "weight": 0.5,
         "args": {"max_completion_len": 6, "soft_punish_cache": 4}},
        {"name": "trl.rewards:get_repetition_penalty_reward"},
    ]  # fmt: skip
    assert missing_columns([FunctionParams(**one) for one in shaping], []) == []
    made = reward(*shaping)
    assert [one.label for one in made.functions] == [
        "think_format_reward", "get_soft_overlong_punishment", "get_repetition_penalty_reward",
    ]  # fmt: skip
    each = made.each(rows("a", "b"), ["<think>so</think>4", "4"], [[1, 2, 3, 4], [5] * 7])
    np.testing.assert_allclose(each, [[1, -0.5, 0], [0, -1, -0.8]], atol=1e-6)
    np.testing.assert_allclose(made.total(each), [0.75, -1.3], atol=1e-6)


def test_trls_accuracy_reads_the_solution(project: Path, policy: Path):
    pytest.importorskip("math_verify")
    name = FunctionParams(name="trl.rewards:accuracy_reward")
    assert missing_columns([name], ["answer", "question"]) == [
        "reward.functions: trl.rewards:accuracy_reward needs the column solution; the data has "
        "answer, question: set download.local.columns: {solution: answer}"
    ]
    made = reward("trl.rewards:accuracy_reward", columns=("solution",), policy=policy)
    asked = rows("a", "b", "c", solution=["$\\frac{1}{2}$", "$3$", "no number"])
    np.testing.assert_array_equal(
        made.each(asked, ["\\boxed{0.5}", "\\boxed{4}", "\\boxed{1}"])[:, 0], [1, 0, np.nan]
    )


def test_without_math_verify_the_extra_is_named(project: Path, monkeypatch):
    monkeypatch.setattr("isodense.reward.scoring.function.MATH",
                        ("trl.rewards.accuracy_rewards", "no_such_package"))  # fmt: skip
    with pytest.raises(TrainingError, match=r"pip install 'isodense\[math\]'"):
        RewardFunction("trl.rewards:accuracy_reward")


def test_the_artifact_names_the_functions_and_other_code_is_not_run(project: Path):
    source = f"def right(completions, label):\n    return {ENDS}\n"
    write(project, source)
    prompts = write_inputs(project)
    for row in prompts.rows:
        row["label"] = "any"
    spec = {"name": "rewards:right", "weight": 2.0, "args": {}}
    write_reward(project, prompts, kind="function", functions=[spec])
    manifest = read_manifest(project / "models/reward", "reward")
    assert manifest["reward_kind"] == "function"
    assert manifest["params"] == {"kind": "function", "functions": [spec]}
    sha256 = manifest["functions"][0]["sha256"]
    assert manifest["functions"] == [{**spec, "label": "right", "sha256": sha256}]
    assert manifest["columns"] == ["label"]
    assert manifest["check"]["heldout"] == 1
    assert manifest["files"] == {}
    found = load_reward(project / "models/reward", project / "models/policy")
    assert found.score(rows("a", "b"), ["yes.", "no"]).tolist() == [2, 0]
    write(project, "open('run', 'w')\n" + source)
    with pytest.raises(TrainingError, match="dvc repro reward"):
        load_reward(project / "models/reward", project / "models/policy")
    assert not (project / "run").exists()
