"""The picture of the architecture is that of the code, and a stage has one name everywhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import yaml

from isodense.pipeline import params

ROOT = Path(__file__).parents[2]
STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
PAGES = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def architecture():
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs/_architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_that_of_the_code():
    script = architecture()
    drawn = script.draw()
    hint = "run `python docs/_architecture.py` and commit what it draws"
    assert script.SVG.read_text(encoding="utf-8") == drawn, hint
    rooms = [path.parent.name for path in (ROOT / "src/isodense").glob("*/__init__.py")]
    assert len(rooms) > 10
    assert [name for name in rooms if f">{name}</text>" not in drawn] == []


def test_an_edge_that_follows_from_others_is_left_out():
    edges = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set()}
    assert architecture().reduced(edges) == [("a", "b"), ("b", "c"), ("c", "d")]


def test_a_stage_has_one_name():
    assert len(STAGES) > 10
    for stage in STAGES:
        assert (ROOT / "stages" / f"{stage}.py").is_file()
        assert (ROOT / "src/isodense" / stage / "__init__.py").is_file()
        assert (ROOT / "docs/stages" / f"{stage}.md").is_file()
    assert set(params.SECTIONS) - {"base"} <= set(STAGES)


def test_code_that_pages_name_exists():
    pattern = re.compile(r"`((?:src/isodense|tests|stages)/[\w./-]+)`")
    named = {
        (page.name, path)
        for page in PAGES
        for path in pattern.findall(page.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    assert sorted(pair for pair in named if not (ROOT / pair[1]).exists()) == []
