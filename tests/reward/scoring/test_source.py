from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from isodense.reward.scoring.source import project_files, source_sha256


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return tmp_path


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
    files = project_files("mine", project)
    assert [path.name for path in files] == ["mine.py", "__init__.py", "tools.py"]
    before = source_sha256("mine", project)
    (project / "shared/tools.py").write_text("K = 1\n")
    assert source_sha256("mine", project) != before


def test_an_installed_module_is_its_file_and_the_version_it_came_with(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    assert project_files("trl.rewards", project) == []
    before = source_sha256("trl.rewards", project)
    assert before == source_sha256("trl.rewards", project) != source_sha256("trl", project)
    real = importlib.metadata.version
    newer = {"trl": "99"}
    monkeypatch.setattr("importlib.metadata.version", lambda name: newer.get(name) or real(name))
    assert source_sha256("trl.rewards", project) != before
