"""Faults of params.yaml: all at once, with line and nearest name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal, Self

import pytest
from pydantic import Field, model_validator

from isodense.doctor.checks.project import section_class
from isodense.pipeline.errors import IsodenseError, ParamsError
from isodense.pipeline.params import SECTIONS, CrossFieldError, Params, as_dict, build, load
from isodense.prompts.params import PromptsParams

ROOT = Path(__file__).parents[2]


class Inner(Params):
    files: list[str] = Field(min_length=1)

    @model_validator(mode="after")
    def _no_file_is_a_folder(self) -> Self:
        if faults := [f"{file} is a folder" for file in self.files if file.endswith("/")]:
            raise CrossFieldError(faults)
        return self


class Section(Params):
    k: int = Field(ge=1, le=100)
    rate: float = Field(ge=0.0)
    kind: Literal["a", "b"]
    limit: int | None = Field(ge=1)
    more: dict[str, object]
    inner: Inner

    @model_validator(mode="after")
    def _together(self) -> Self:
        faults = ["k exceeds limit"] if self.limit is not None and self.k > self.limit else []
        if self.kind == "a" and not self.rate:
            faults.append("kind 'a' needs a rate above 0")
        if faults:
            raise CrossFieldError(faults)
        return self


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
    inner = Inner(files=["one"])
    assert section == Section(k=5, rate=1e-5, kind="b", limit=None, more={"x": 1}, inner=inner)
    whole = read(tmp_path, GOOD.replace("1e-5", "3")).rate
    assert (whole, type(whole)) == (3.0, float)


def test_the_plain_mapping_has_the_order_of_the_fields(tmp_path):
    lines = GOOD.splitlines(keepends=True)
    written = as_dict(read(tmp_path, "".join([lines[0], *lines[:0:-1]])))
    assert json.dumps(written) == (
        '{"k": 5, "rate": 1e-05, "kind": "b", "limit": null, "more": {"x": 1}, '
        '"inner": {"files": ["one"]}}'
    )


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
        ("k: 5", "k: 101", "101 is above the maximum, 100"),
        ("rate: 1e-5", "rate: true", "True is not a number"),
        ("rate: 1e-5", "rate: fast", "'fast' is not a number"),
        ("rate: 1e-5", "rate: .nan", "is below the minimum"),
        ("limit: null", "limit: none", "'none' is not an integer or null"),
        ("limit: null", "limit: 0", "0 is below the minimum, 1"),
        ("limit: null", "limit: 4", "density: k exceeds limit"),
        ("files: [one]", "files: []", "density.inner.files: [] is below the minimum, 1 item"),
        ("files: [one]", "files: [one, 1]", "line 7: density.inner.files[1]: 1 is not a string"),
        ("files: [one]", "files: one", "'one' is not a list, each a string"),
        ("files: [one]", "fils: [one], files: [one]", "fils: unknown key (did you mean 'files'?)"),
        ("inner: {files: [one]}", "inner: 3", "3 is not a mapping"),
        ("more: {x: 1}", "more: [x]", "['x'] is not a mapping"),
        ("more: {x: 1}", "more: {1: x}", "line 6: density.more.1: 1 is not a string"),
        ("k: 5", "k: 5\n  3: 4", "line 3: density.3: unknown key"),
        ("k: 5", "k: 5\n  k: 6", "line 3: density.k stands on line 2 already"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, old, new, words):
    with pytest.raises(ParamsError, match="1 fault") as caught:
        read(tmp_path, GOOD.replace(old, new))
    assert words in str(caught.value)


def test_an_infinite_number_is_one_where_there_is_no_maximum(tmp_path):
    assert read(tmp_path, GOOD.replace("1e-5", ".inf")).rate == float("inf")


def test_all_faults_between_fields_are_listed(tmp_path):
    text = GOOD.replace("rate: 1e-5", "rate: 0").replace("kind: b", "kind: a")
    with pytest.raises(ParamsError) as caught:
        read(tmp_path, text.replace("limit: null", "limit: 4"))
    assert caught.value.faults == [
        "line 1: density: k exceeds limit",
        "line 1: density: kind 'a' needs a rate above 0",
    ]


def test_faults_within_a_mapping_are_listed_beside_those_around_it(tmp_path):
    text = GOOD.replace("k: 5", "k: 0").replace("[one]", "[a/, b, c/]")
    with pytest.raises(ParamsError) as caught:
        read(tmp_path, text)
    assert caught.value.faults == [
        "line 2: density.k: 0 is below the minimum, 1",
        "line 7: density.inner: a/ is a folder",
        "line 7: density.inner: c/ is a folder",
    ]


def test_values_of_a_caller_get_the_same_words():
    values = {"k": 0, "rate": 1, "kind": "b", "limit": None, "more": {}, "inner": {"files": ["a/"]}}
    with pytest.raises(IsodenseError) as caught:
        build(Section, values, "the call")
    assert caught.value.message == (
        "the call has 2 faults:\n  k: 0 is below the minimum, 1\n  inner: a/ is a folder"
    )


def test_no_param_has_a_default():
    seen = [section_class(name) for name in SECTIONS]
    for cls in seen:  # grows
        for field in cls.model_fields.values():
            assert field.is_required()
            if isinstance(field.annotation, type) and issubclass(field.annotation, Params):
                seen.append(field.annotation)
    assert len(seen) == len(SECTIONS) + 12


def test_params_are_imported_without_what_the_stages_compute_with():
    code = (
        "import sys, importlib\n"
        f"for name in {SECTIONS[1:]}:\n"
        "    importlib.import_module(f'isodense.{name}.params')\n"
        "print({'torch', 'transformers', 'trl', 'peft', 'scipy', 'dvc'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


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
        "density": "--prompts p --embeddings e --neighbors n --out o --metrics m --plots q",
        "embeddings": "--prompts p --encoder e --out o --metrics m",
        "train": "--prompts p --density d --difficulty d --policy p --reward r --out o "
        "--metrics m --plots q --realised r",
    }
    command = [sys.executable, ROOT / f"stages/{stage}.py", "--params", params]
    done = subprocess.run(
        [*command, *flags[stage].split()], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert f"{stage}.colour: unknown key" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("near_duplicate: 010", "10 is above the maximum"),  # ten, as for DVC, and not eight
        ("heldout: yes", "'yes' is not a number"),
        ("heldout: 190:20:30", "'190:20:30' is not a number"),
        ('heldout: !!int "x"', "not YAML"),
        ("heldout: 2020-13-45", "not YAML"),
        ("heldout: &x [*x]", "holds itself"),
        ("heldout: " + "[" * 3000, "nested too deeply"),
    ],
)
def test_values_are_those_that_dvc_reads_and_no_traceback(tmp_path, text, said):
    path = tmp_path / "params.yaml"
    path.write_text(f"prompts:\n  {text}\n")
    with pytest.raises(ParamsError, match=re.escape(said)):
        load(path, "prompts", PromptsParams)


def test_a_folder_is_no_params_file(tmp_path):
    with pytest.raises(ParamsError, match="cannot be read"):
        load(tmp_path, "prompts", PromptsParams)
