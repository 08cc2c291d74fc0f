"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.hub import Hub, running
from tests.project import Project, finish

# `make test` activates no environment: what a test starts (`python`, `dvc`, `ray`) is this one's
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run one module with the `finished` project first, and the others after a quarter of the rest.

    Of two workers one makes it, and the other has something else to do meanwhile.
    """
    wanting = dict.fromkeys(
        item.path for item in items if "finished" in getattr(item, "fixturenames", ())
    )
    others = list(dict.fromkeys(item.path for item in items if item.path not in wanting))
    early, (first, *later) = others[: len(others) // 4], [*wanting] or [None]
    order = {path: rank for rank, path in enumerate([first, *early, *later])}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Give a stand-in for the Hugging Face Hub that ``huggingface_hub`` talks to in this process.

    The cache is ``tmp_path / "hf"``, and the waits between retries take no time.
    """
    from huggingface_hub import constants

    with running() as stand_in:
        template = stand_in.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
        yield stand_in


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Project:
    """Give the tiny project after one ``dvc repro``: made once for all workers, not to be changed.

    Tests work on ``finished.copy(folder)``.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "finished"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            finish(folder)
            (folder / "done").touch()
    return Project(folder)
