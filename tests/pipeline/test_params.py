"""Faults of params.yaml: all at once, with line and nearest name."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from isodense.pipeline.errors import ParamsError
from isodense.pipeline.params import load, param

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Inner:
    files: list[str] = param(minimum=1)


@dataclasses.dataclass(frozen=True)
class Section:
    k: int = param(minimum=1, maximum=100)
    rate: float = param(minimum=0.0)
    kind: Literal["a", "b"] = param()
    limit: int | None = param()
    more: dict[str, object] = param()
    inner: Inner = param()

    def faults(self) -> list[str]:
        return ["k exceeds limit"] if self.limit is not None and self.k > self.limit else []


GOOD = """density:
  k: 5
  rate: 1e-5
  kind: b
  limit: null
  more: {x: 1}
  inner: {files: [one]}
"""


def read(tmp_path: Path, text: str) -> Section:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return load(path, "density", Section)


def test_values_arrive_with_their_types(tmp_path):
    section = read(tmp_path, GOOD)
    assert section == Section(5, 1e-5, "b", None, {"x": 1}, Inner(["one"]))
    assert isinstance(section.rate, float)


def test_every_fault_is_listed_with_its_line(tmp_path):
    text = (
        GOOD.replace("k: 5", "k: 0").replace("kind: b", "kind: c").replace("  limit:", "  limti:")
    )
    with pytest.raises(ParamsError) as caught:
        read(tmp_path, text + "densty: {}\n")
    message = str(caught.value)
    assert len(caught.value.faults) == 5
    assert "line 2: density.k: 0 is below the minimum, 1" in message
    assert "line 4: density.kind: 'c' is not one of 'a', 'b'" in message
    assert "line 5: density.limti: unknown key (did you mean 'limit'?)" in message
    assert "density.limit: missing; expected an integer or null" in message
    assert "line 8: unknown section 'densty' (did you mean 'density'?)" in message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("k: 5", "k: 5.5", "5.5 is not an integer"),
        ("k: 5", "k: true", "True is not an integer"),
        ("k: 5", "k: 101", "above the maximum, 100"),
        ("rate: 1e-5", "rate: fast", "'fast' is not a number"),
        ("rate: 1e-5", "rate: .nan", "is below the minimum"),
        ("limit: null", "limit: none", "'none' is not an integer or null"),
        ("limit: null", "limit: 4", "k exceeds limit"),
        ("inner: {files: [one]}", "inner: {files: []}", "density.inner.files: [] is below"),
        ("inner: {files: [one]}", "inner: {files: [1]}", "is not a list, each a string"),
        ("inner: {files: [one]}", "inner: 3", "3 is not a mapping"),
        ("more: {x: 1}", "more: [x]", "is not a mapping"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, old, new, words):
    with pytest.raises(ParamsError, match="1 fault") as caught:
        read(tmp_path, GOOD.replace(old, new))
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "density: [", "- 1", "density: 3"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    with pytest.raises(ParamsError):
        read(tmp_path, text)


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(ParamsError, match="project's root"):
        load(tmp_path / "params.yaml", "density", Section)


@pytest.mark.parametrize("stage", ["density", "embeddings", "train"])
def test_a_stage_stops_at_once_without_a_traceback(tmp_path, stage):
    params = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text()
    params.write_text(text.replace(f"\n{stage}:\n", f"\n{stage}:\n  colour: red\n"))
    flags = {
        "density": "--prompts p --neighbors n --out o --metrics m --plots q",
        "embeddings": "--prompts p --encoder e --out o --metrics m",
        "train": "--prompts p --density d --policy p --reward r --out o --metrics m --plots q",
    }
    command = [sys.executable, ROOT / f"stages/{stage}.py", "--params", params]
    done = subprocess.run(
        [*command, *flags[stage].split()], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert f"{stage}.colour: unknown key" in done.stderr
    assert "Traceback" not in done.stderr
