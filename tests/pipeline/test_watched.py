"""Experiments in copies of the project say which of the user's files they lack."""

from __future__ import annotations

from pathlib import Path

import pytest

from isodense.pipeline.errors import DataError
from isodense.pipeline.watched import experiment_origin, link_untracked, require_tracked


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder of an experiment, of a project with four files, which has two of them."""
    own, copy = tmp_path / "own", tmp_path / "own/.dvc/tmp/exps/x"
    for place in ("data/raw/a.jsonl", "data/raw/b.jsonl", "data/raw/more/c.jsonl", "d.jsonl"):
        (own / place).parent.mkdir(parents=True, exist_ok=True)
        (own / place).write_text("{}\n")
    (copy / "data/raw/more").mkdir(parents=True)
    for place in ("data/raw/a.jsonl", "data/raw/more/c.jsonl"):
        (copy / place).write_text("{}\n")
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(own))
    return copy


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("data/raw/a.jsonl", None),
        ("data/raw/b.jsonl", "data/raw/b.jsonl"),
        ("data/raw/*.jsonl", "data/raw/b.jsonl"),
        ("data/**/*.jsonl", "data/raw/b.jsonl"),
        ("data/raw", "data/raw/b.jsonl"),
        ("data/raw/more", None),
        ("./d.jsonl", "d.jsonl"),
        ("nowhere.jsonl", None),  # not there either: its reader says so
        ("none*.jsonl", None),
    ],
)
def test_a_file_that_only_the_users_own_folder_has_is_named(copy: Path, name: str, lacking):
    if lacking is None:
        require_tracked([name], "download.local.files")
        return
    with pytest.raises(DataError, match="not in this experiment's folder") as caught:
        require_tracked([name], "download.local.files")
    assert str(caught.value).startswith(f"{lacking}: ")
    assert caught.value.hint.startswith(f"`git add {lacking}`, or `dvc add`")


@pytest.mark.parametrize("name", ["data/raw/b.jsonl", "data/**/*.jsonl", "data/raw", "d.jsonl"])
def test_a_file_that_the_copy_lacks_is_read_where_it_is(copy: Path, name: str, caplog):
    own = copy.parents[3]
    link_untracked([name], "download.local.files")
    wanted = {path.relative_to(own) for path in own.glob(name) for path in [path] if path.is_file()}
    for place in wanted or {Path("data/raw/b.jsonl")}:
        assert (copy / place).read_text() == (own / place).read_text()
    assert "`git add` or `dvc add` it" in caplog.text
    link_untracked([name], "download.local.files")  # a second time there is nothing to do
    require_tracked([name], "download.local.files")


def test_absolute_names_and_the_project_itself_lack_nothing(copy: Path, monkeypatch):
    own = copy.parents[3]
    assert experiment_origin() == own
    require_tracked([own / "d.jsonl"], "download.local.files")
    monkeypatch.chdir(own)
    assert experiment_origin() is None
    require_tracked(["nowhere.jsonl"], "download.local.files")
    monkeypatch.delenv("DVC_ROOT")
    assert experiment_origin() is None
