"""What an edit makes stale: plumbing nothing, a formula its stage, a file what reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    return finished.copy(tmp_path_factory.mktemp("deps"))


@pytest.fixture(autouse=True)
def _as_committed(project):
    yield
    project.run("git", "clean", "-fdq", "data/raw", "models/raw", "rewards")
    project.run("git", "checkout", "-q", ".")
    project.run("dvc", "checkout", "-q")


def changed(project) -> set[str]:
    """Return the stages that ``dvc status`` calls changed."""
    return set(re.findall(r"^(\w+):$", project.run("dvc", "status"), re.MULTILINE))


def append(project, name: str, text: str = "# a comment\n") -> None:
    path = project.root / name
    path.write_text((path.read_text() if path.exists() else "") + text)


def test_a_comment_in_plumbing_or_in_readers_makes_nothing_stale(project):
    plumbing = sorted((project.root / "src/isodense/pipeline").glob("*.py"))
    readers = sorted((project.root / "src/isodense").glob("*/reader.py"))
    assert len(plumbing) > 10
    assert len(readers) >= 3
    for path in [*plumbing, *readers, project.root / "src/isodense/__init__.py"]:
        append(project, path.relative_to(project.root).as_posix())
    assert "up to date" in project.run("dvc", "status")


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("src/isodense/density/estimate.py", {"density", "report"}),
        ("src/isodense/download/sources/hh.py", {"download"}),
        ("src/isodense/models/wheel.py", {"models", "reward"}),
        ("src/isodense/evaluate/diversity.py", {"evaluate"}),
        ("src/isodense/report/charts.py", {"report"}),
        ("src/isodense/cli/main.py", set()),
        ("src/isodense/doctor/run.py", set()),
    ],
)
def test_an_edit_makes_the_stages_of_its_room_stale(project, file, stages):
    append(project, file)
    assert changed(project) == stages


def test_another_formula_reruns_density_and_nothing_before_it(project):
    append(project, "src/isodense/density/estimate.py")
    output = project.run("dvc", "repro", "--dry")
    assert project.ran(output)[0] == "density"
    assert not {"download", "prompts", "embeddings", "neighbors"} & set(project.ran(output))


ROW = {"prompt": "what is it", "chosen": "yes", "rejected": "no"}


def test_a_changed_file_of_the_users_reruns_what_reads_it(project, tmp_path: Path):
    outside = tmp_path / "far.jsonl"
    rows = [ROW | {"prompt": f"{ROW['prompt']} {number}"} for number in range(20)]
    outside.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (project.root / "data/raw/far.jsonl").symlink_to(outside)
    files = ["data/raw/far.jsonl"]
    project.set({"download.sources": ["local"], "download.local.files": files})
    assert "DVC will not see" not in project.run("dvc", "repro", "download")
    assert "download" not in changed(project)
    outside.write_text(outside.read_text() + json.dumps(ROW) + "\n")
    assert "download" in changed(project)
    assert "21 examples" in project.run("dvc", "repro", "download")
    project.set({"download.local.files": [str(outside)]})
    output = project.run("dvc", "repro", "download")
    assert f"names {outside}, outside data/raw: DVC will not see it change" in output
    assert f"ln -s {outside} data/raw/" in output


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("data/raw/pairs.jsonl", {"download"}),
        ("models/raw/mine/config.json", {"models", "reward"}),
        ("rewards/mine.py", {"reward"}),
    ],
)
def test_users_folders_are_deps(project, file, stages):
    (project.root / file).parent.mkdir(parents=True, exist_ok=True)
    append(project, file)
    assert changed(project) == stages


def test_experiments_in_the_queue_and_in_clones_find_the_users_files(project, tmp_path: Path):
    append(project, "data/raw/mine.jsonl", "".join(f"{json.dumps(ROW)}\n" for _ in range(2)))
    project.run("git", "add", "data/raw")
    values = ["-S", "download.sources=[local]", "-S", "download.local.files=[data/raw/mine.jsonl]"]
    output = project.run("dvc", "exp", "run", "--temp", *values, "download")
    assert project.ran(output) == ["download"]
    assert "2 examples (2 from local), 2 with two answers, 1 identical to earlier ones" in output
    project.run("git", "reset", "-q")
    clone = project.clone(tmp_path)
    assert (clone.root / "data/raw/.gitkeep").exists()
