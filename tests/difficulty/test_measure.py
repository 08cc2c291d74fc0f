"""Pass rates that are known come out as they are, computed once, whatever interrupts it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from stages import difficulty, train

from isodense.difficulty import measure as module
from isodense.difficulty.column import counts_from
from isodense.difficulty.measure import Measurement, measure
from isodense.difficulty.params import DifficultyParams
from isodense.models.inference import generation
from isodense.pipeline.errors import DataError, ParamsError, TrainingError
from isodense.prompts.reader import PromptSet
from isodense.sampling.difficulty import load_difficulty
from tests.rl import FLAGS, SECTIONS, snapshot, write_inputs, write_reward

RATES = [0.0, 0.5, 1.0, None]
FUNCTIONS = [
    {"name": f"tests.difficulty.graded:{name}", "weight": 1.0, "args": {}}
    for name in ("graded", "slow")
]


def params(**changes: object) -> DifficultyParams:
    return DifficultyParams(**SECTIONS["difficulty"] | {"completions": 4} | changes)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("difficulty")
    prompts = write_inputs(folder, rate=lambda number: RATES[number % 4])
    write_reward(folder, prompts, kind="function", functions=FUNCTIONS[:1])
    manifest = json.loads((folder / "models/reward/manifest.json").read_text())
    second = manifest["functions"][0] | {"name": FUNCTIONS[1]["name"], "label": "slow"}
    manifest["functions"].append(second)
    (folder / "models/reward/manifest.json").write_text(json.dumps(manifest))
    return folder, prompts


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch):
    """Return the number of prompts of each call that the policy answers."""
    calls: list[int] = []
    complete = generation.complete

    def counted(model, tokenizer, prompts, *rest, **more):
        calls.append(len(prompts))
        return complete(model, tokenizer, prompts, *rest, **more)

    monkeypatch.setattr(module, "ROWS", 16)
    monkeypatch.setattr(generation, "complete", counted)
    return calls


def task(folder: Path, **changes: object) -> Measurement:
    return Measurement(
        folder / "models/policy", folder / "models/reward", params(**changes), 3, "cpu"
    )


def test_known_rates_are_found_by_the_first_function(world, asked, tmp_path: Path):
    folder, prompts = world
    found = measure(prompts, task(folder), tmp_path)
    expected = {0.0: (0, 4), 0.5: (2, 4), 1.0: (4, 4), None: (0, 0)}
    rates = [row.get("rate") for row in prompts.split("train").rows]
    pairs = list(zip(found["solved"].tolist(), found["completions"].tolist(), strict=True))
    assert pairs == [expected[rate] for rate in rates]
    assert len(set(pairs)) == 4
    assert found["passed_over"] == 0
    assert sum(asked) == len(rates)


def test_what_was_answered_is_not_answered_again(world, asked, tmp_path: Path):
    folder, prompts = world
    whole = measure(prompts, task(folder), tmp_path)
    shards = list(asked)
    assert len(shards) == len(prompts.rows) // 16 + 1
    measure(prompts, task(folder), tmp_path)
    assert asked == shards
    # a run that was cut off lacks a shard
    kept = sorted((tmp_path / "difficulty").iterdir())
    shutil.rmtree(kept[0])
    again = measure(prompts, task(folder), tmp_path)
    assert len(asked) == len(shards) + 1
    assert all(np.array_equal(again[name], whole[name]) for name in ("solved", "completions"))
    # appended prompts leave whole shards alone
    rows = prompts.rows + [row | {"id": f"{row['id'][:-1]}x"} for row in prompts.rows[:3]]
    measure(PromptSet(rows), task(folder), tmp_path)
    assert len(asked) == len(shards) + 2
    measure(prompts, task(folder, temperature=0.5), tmp_path)
    assert len(asked) == 2 * len(shards) + 2


@pytest.mark.slow
def test_processes_find_the_same(world, tmp_path: Path, monkeypatch):
    folder, prompts = world
    whole = measure(prompts, task(folder), tmp_path / "one")
    monkeypatch.setenv("ISODENSE_WORKERS", "2")
    again = measure(prompts, task(folder), tmp_path / "two")
    assert all(np.array_equal(again[name], whole[name]) for name in whole)


def test_prompts_without_room_are_unknown(world, asked, tmp_path: Path):
    folder, prompts = world
    found = measure(prompts, task(folder, max_completion_tokens=255), tmp_path)
    assert found["passed_over"] == len(prompts.split("train"))
    assert not found["completions"].any()


def test_a_reward_that_solves_nothing_is_refused(tmp_path: Path):
    prompts = write_inputs(tmp_path)
    write_reward(tmp_path, prompts)
    with pytest.raises(TrainingError, match=r"kind head does not say(.|\n)*difficulty\.column"):
        measure(prompts, task(tmp_path), tmp_path / "cache")


def test_rates_of_a_column(world, tmp_path: Path):
    _, prompts = world
    train = prompts.split("train")
    solved, known = counts_from(train, "rate", 64)
    for row, one, of in zip(train.rows, solved.tolist(), known.tolist(), strict=True):
        rate = row.get("rate")
        assert (one, of) == ((0, 0) if rate is None else (64 * rate, 64))
    with pytest.raises(DataError, match=r"no column 'rats' \(did you mean 'rate'\?\)"):
        counts_from(train, "rats", 64)
    for wrong in (87.5, -0.1, "87.5", "often", "nan", [0.5]):
        rows = [row | {"rate": wrong} for row in train.rows]
        with pytest.raises(DataError, match=r"for prompt(.|\n)*divide percentages by 100"):
            counts_from(PromptSet(rows), "rate", 64)


def test_rates_as_csv_and_pandas_write_them():
    values = ["0.5", " 1 ", "", " ", float("nan"), None]
    rows = [{"id": f"{number:032x}", "rate": one} for number, one in enumerate(values)]
    solved, known = counts_from(PromptSet(rows), "rate", 8)
    assert solved.tolist() == [4, 8, 0, 0, 0, 0]
    assert known.tolist() == [8, 8, 0, 0, 0, 0]


def run(stage, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: dict[str, Any]) -> str:
    """Run a stage's script in this process and return its summary line."""
    sections = {name: section | changes.get(name, {}) for name, section in SECTIONS.items()}
    (folder / "params.yaml").write_text(yaml.safe_dump(sections))
    monkeypatch.setenv("ISODENSE_CACHE", str(folder / "cache"))
    words = FLAGS[stage.__name__.rpartition(".")[2]].split()
    paths = [word if word.startswith("--") else str(folder / word) for word in words]
    return stage.main([*paths, "--params", str(folder / "params.yaml")])


def test_the_stage_is_off_by_default_and_then_needs_nothing(tmp_path: Path, monkeypatch):
    assert run(difficulty, tmp_path, monkeypatch).startswith("off")
    assert set(snapshot(tmp_path / "data/difficulty")) == {"manifest.json"}


def test_the_stage_and_what_training_makes_of_it(world, tmp_path: Path, monkeypatch):
    folder = shutil.copytree(world[0], tmp_path / "project")
    line = run(difficulty, folder, monkeypatch, difficulty={"completions": 4})
    metrics = json.loads((folder / "reports/metrics/difficulty.json").read_text())["difficulty"]
    assert f"solved {metrics['pass_rate']:.1%} of the time" in line
    assert f"{metrics['unknown']} prompts of unknown difficulty" in line
    shares = [metrics[f"{name}_solved"] for name in ("never", "sometimes", "always")]
    assert sum(shares) == pytest.approx(1)
    assert all(shares)
    measured = load_difficulty(folder / "data/difficulty")
    run(difficulty, folder, monkeypatch, difficulty={"completions": 4, "column": "rate"})
    from_column = load_difficulty(folder / "data/difficulty")
    assert np.array_equal(measured.solved, from_column.solved)
    assert np.array_equal(measured.completions, from_column.completions)
    with pytest.raises(ParamsError, match=r"column = 'rate' with completions = 0"):
        run(difficulty, folder, monkeypatch, difficulty={"column": "rate"})
    run(difficulty, folder, monkeypatch)
    with pytest.raises(TrainingError, match=r"set difficulty\.completions"):
        run(train, folder, monkeypatch, train={"sampling": "difficulty"})
