"""dvc.yaml declares what each stage really reads: its code, and all params of its section."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import grimp
import pytest
import yaml

from isodense.doctor.checks.project import section_class
from isodense.models.inference import completions
from isodense.pipeline import params
from isodense.pipeline.runtime import BaseParams
from isodense.reward import trl
from isodense.train import train

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SECTIONS = [section for section in params.SECTIONS if section != "base"]
NAMES = [*SECTIONS, "report"]  # which has no params


READERS = {  # of other stages' artifacts: what they read is pinned by hashes and format_version
    "isodense.download.examples",
    "isodense.prompts.reader",
    "isodense.prompts.conversations",
    "isodense.embeddings.reader",
    "isodense.neighbors.graph",
    "isodense.map.reader",
    "isodense.sampling.difficulty",
    "isodense.sampling.weights",
}
INNER = ("isodense.models.inference", "isodense.reward.scoring")  # apart from what makes
APPLIED = "isodense.embeddings.postprocess"  # to the vectors that its reader reads
GRAPH = grimp.build_graph("isodense", cache_dir=None)


def commands(entry):
    """Return the commands of a stage, of which the last is its script."""
    return entry["cmd"] if isinstance(entry["cmd"], list) else [entry["cmd"]]


def imported_by_script(stage):
    """Return the modules of isodense that a stage's script names."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / f"stages/{stage}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("isodense"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & GRAPH.modules) or {node.module}
    return found


def rooms(stage):
    """Return the folders of the modules that a stage computes with, directly or not."""
    seen, waiting = set(), imported_by_script(stage)
    while waiting:
        module = waiting.pop()
        if module in READERS or module in seen or module.split(".")[1:2] == ["pipeline"]:
            seen |= {APPLIED} & GRAPH.find_modules_directly_imported_by(module)
            continue
        seen.add(module)
        waiting |= GRAPH.find_modules_directly_imported_by(module)
    folders = {_folder(name) for name in seen}
    return {folder for folder in folders if str(Path(folder).parent) not in folders}


def _folder(module):
    """Return the folder of a module that deps name: its package's, or one of `INNER`."""
    if module == APPLIED:
        return f"src/{module.replace('.', '/')}.py"
    package = next((name for name in INNER if module.startswith(name)), None)
    return f"src/{(package or '.'.join(module.split('.')[:2])).replace('.', '/')}"


def test_all_twelve_stages_are_here_and_described():
    assert list(STAGES) == NAMES
    assert all(stage["desc"] for stage in STAGES.values())
    assert sorted(path.stem for path in (ROOT / "stages").glob("*.py")) == sorted(NAMES)


@pytest.mark.parametrize("stage", NAMES)
def test_deps_are_the_script_and_the_rooms_that_the_stage_computes_with(stage):
    declared = {dep for dep in STAGES[stage]["deps"] if dep.startswith(("src/", "stages/"))}
    assert declared == {f"stages/{stage}.py", *rooms(stage)}
    assert f"src/isodense/{stage}" in declared


def test_every_reader_exists():
    assert GRAPH.modules >= READERS


def test_caches_of_risky_pieces_hash_the_rooms_that_compute_them():
    for stage, code in (
        ("train", train.CODE),
        ("evaluate", completions.CODE),
        ("reward", trl.CODE),
    ):
        folders = {Path(f"src/isodense/{room}") for room in code}
        found = {Path(room) for room in rooms(stage)}
        assert all({folder, folder.parent} & found for folder in folders)
    assert {f"src/isodense/{room}" for room in train.CODE} == rooms("train")


@pytest.mark.parametrize("stage", SECTIONS)
def test_every_knob_of_the_section_is_declared(stage):
    declared = {name for name in STAGES[stage].get("params", []) if not name.startswith("base.")}
    fields = {f"{stage}.{name}" for name in section_class(stage).model_fields}
    assert declared in ({stage}, fields)  # the section as a whole, or each of them


@pytest.mark.parametrize("stage", SECTIONS)
def test_base_params_are_declared_where_the_script_reads_them(stage):
    declared = {name for name in STAGES[stage].get("params", []) if name.startswith("base.")}
    text = (ROOT / f"stages/{stage}.py").read_text()
    used = {name for name, sign in (("base.seed", "base.rng("), ("base.device", "base.device"))
            if sign in text}  # fmt: skip
    used |= {"base.seed"} if "base.seed" in text else set()
    assert declared == used


@pytest.mark.parametrize("stage", SECTIONS)
def test_the_committed_params_are_valid_and_complete(stage):
    assert params.load(ROOT / "params.yaml", stage, section_class(stage))
    assert params.load(ROOT / "params.yaml", "base", BaseParams)


@pytest.mark.parametrize("stage", NAMES)
def test_a_stage_names_only_paths_that_dvc_knows(stage):
    entry = STAGES[stage]
    known = [
        *entry["deps"],
        *entry.get("outs", []),
        *entry.get("metrics", []),
        *entry.get("plots", []),
    ]
    words = commands(entry)[-1].split()
    paths = {next(iter(item)) if isinstance(item, dict) else item for item in known}
    folders = {path: path.rpartition("/")[0] for path in entry.get("outs", [])}  # of figures
    paths = {folders[path] if folders.get(path) in words else path for path in paths}
    assert words[:2] == ["python", f"stages/{stage}.py"]
    used = {word for word in words[2:] if not word.startswith("--")}
    assert used <= paths
    assert {path for path in paths if not path.startswith(("src/", "stages/"))} == used


def test_the_preflight_runs_before_the_first_long_stage_and_training_and_is_no_dependency():
    """It reads what the `models`, `download` and `prompts` stages wrote, and writes nothing."""
    found = {name: commands(entry)[:-1] for name, entry in STAGES.items() if commands(entry)[:-1]}
    assert list(found) == ["embeddings", "train"]
    assert found["embeddings"] == found["train"]  # a new policy computes no vector again
    (command,) = found["embeddings"]
    words = command.split()
    assert words[:2] == ["python", "src/isodense/preflight"]
    made = [path for stage in ("download", "prompts", "models") for path in STAGES[stage]["outs"]]
    assert sorted(words[3::2]) == sorted(made)
    assert not any("preflight" in dep for name in found for dep in STAGES[name]["deps"])
    assert not [name for name in STAGES["embeddings"]["params"] if name.startswith("train")]


def test_the_file_stays_readable():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) < 400


def test_outputs_are_cached_and_metrics_are_in_git():
    for entry in STAGES.values():
        for item in entry.get("outs", []):
            assert not isinstance(item, dict) or "cache" not in next(iter(item.values()))
        for item in entry.get("metrics", []):
            assert next(iter(item.values())) == {"cache": False}


def test_the_readme_lists_the_stages_in_order():
    table = re.findall(r"^\| \[`(\w+)`\]", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert table == list(STAGES)
