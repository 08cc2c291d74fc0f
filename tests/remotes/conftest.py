"""A project in two states that a team shares: before and after prompts were appended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests.project import Project


@pytest.fixture(scope="session")
def team(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Give a finished project at the tag ``before``, with a later commit ``after``.

    ``after`` has one more prompt, and only its embeddings are computed. Made once for all workers;
    tests work on copies.
    """
    folder = finished.root.parent.parent / "team"
    with FileLock(f"{folder}.lock"):
        if (folder / "done").exists():
            return Project(folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        made = finished.copy(folder)
        made.run("git", "tag", "before")
        pair = {"prompt": "one more question", "chosen": "yes", "rejected": "no"}
        (made.root / "more.jsonl").write_text(json.dumps(pair) + "\n")
        sources = {"download.sources": ["sample", "local"], "download.local.files": ["more.jsonl"]}
        made.set(sources)
        assert "1 of 4 shards computed" in made.run("dvc", "repro", "embeddings")
        made.run("git", "add", "-A")
        made.run("git", "commit", "-qm", "after")
        made.run("git", "tag", "after")
        made.run("git", "reset", "-q", "--hard", "before")
        made.run("dvc", "checkout", "-q")
        (folder / "done").touch()
    return made


@pytest.fixture
def sharer(team: Project, tmp_path: Path) -> Project:
    """Give clone A: everything computed, in its cache."""
    (tmp_path / "a").mkdir()
    return team.copy(tmp_path / "a")
