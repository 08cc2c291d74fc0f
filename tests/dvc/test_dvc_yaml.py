"""dvc.yaml declares what each stage really reads: its code, and its params leaf by leaf."""

from __future__ import annotations

import modulefinder
import re
from pathlib import Path

import pytest
import yaml

from isodense.doctor.checks.project import section_class
from isodense.pipeline import params
from isodense.pipeline.runtime import BaseParams

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SECTIONS = [section for section in params.SECTIONS if section != "base"]
NAMES = [*SECTIONS, "report"]  # which has no params


def imported_files(stage):
    """Return the project's files that a stage's script imports or reads, directly or not."""
    finder = modulefinder.ModuleFinder(path=[str(ROOT / "src")])
    finder.run_script(str(ROOT / f"stages/{stage}.py"))
    files = {Path(module.__file__) for module in finder.modules.values() if module.__file__}
    if stage == "download":
        files |= set((ROOT / "src/isodense/sources").glob("*.yaml"))
    if stage == "report":
        files |= {ROOT / f"src/isodense/report.{kind}" for kind in ("html", "js")}
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_all_eleven_stages_are_here_and_described():
    assert list(STAGES) == NAMES
    assert all(stage["desc"] for stage in STAGES.values())
    assert sorted(path.stem for path in (ROOT / "stages").glob("*.py")) == sorted(NAMES)


@pytest.mark.parametrize("stage", NAMES)
def test_declared_code_is_what_the_stage_imports(stage):
    declared = {dep for dep in STAGES[stage]["deps"] if dep.startswith(("src/", "stages/"))}
    assert declared == imported_files(stage)


def test_readers_do_not_drag_in_their_producers():
    assert "src/isodense/embeddings/encoder.py" not in imported_files("neighbors")
    assert "src/isodense/neighbors/build.py" not in imported_files("density")
    assert "src/isodense/density/estimate.py" not in imported_files("train")
    assert "src/isodense/embeddings/reader.py" not in imported_files("train")


@pytest.mark.parametrize("stage", SECTIONS)
def test_every_knob_of_the_section_is_declared(stage):
    declared = {name for name in STAGES[stage].get("params", []) if not name.startswith("base.")}
    fields = {f"{stage}.{name}" for name in section_class(stage).model_fields}
    assert declared == fields


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
    paths = {next(iter(item)) if isinstance(item, dict) else item for item in known}
    words = entry["cmd"].split()
    assert words[:2] == ["python", f"stages/{stage}.py"]
    used = {word for word in words[2:] if not word.startswith("--")}
    assert used <= paths
    assert {path for path in paths if not path.startswith(("src/", "stages/"))} == used


def test_outputs_are_cached_and_metrics_are_in_git():
    for entry in STAGES.values():
        for item in entry.get("outs", []):
            assert not isinstance(item, dict) or "cache" not in next(iter(item.values()))
        for item in entry.get("metrics", []):
            assert next(iter(item.values())) == {"cache": False}


def test_the_readme_lists_the_stages_in_order():
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert table == list(STAGES)
