"""Each stage is the same, drifted or different to what a commit pins."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from isodense.cli.main import main


@pytest.fixture
def project(finished, tmp_path, monkeypatch):
    """Give a copy of the finished project, as the working directory."""
    copy = finished.copy(tmp_path)
    for name, value in copy.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(copy.root)
    return copy


def verdicts(capsys, rev="HEAD"):
    assert not main(["verify", "--against", rev])
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def committed(project, stage, path, change):
    """Change an array that a stage made, and let DVC take it as what the stage made here."""
    values = np.load(path)
    Path(path).unlink()
    np.save(path, change(values))
    project.run("dvc", "commit", "-f", stage)


def test_what_changed_is_told_by_how_much(project, capsys):
    first = verdicts(capsys)
    assert set(first.values()) == {"same"}
    assert list(first)[:2] == ["download", "models"]

    nudged = "data/neighbors/distances.npy"
    committed(project, "neighbors", nudged, lambda values: values * np.float32(1 + 3e-7))
    swapped = "data/density/density_weights.npy"
    committed(project, "density", swapped, lambda values: values[::-1])
    found = verdicts(capsys)
    assert found["neighbors"].startswith("drifted by ")
    assert found["neighbors"].endswith(f"({nudged})")
    assert float(found["neighbors"].split()[2]) == pytest.approx(3e-7, abs=1e-7)
    assert found["density"] == f"different ({swapped})"
    assert {found[stage] for stage in first if stage not in ("neighbors", "density")} == {"same"}

    committed(project, "neighbors", "data/neighbors/indices.npy", lambda values: values[:, ::-1])
    assert verdicts(capsys)["neighbors"] == "different (data/neighbors/indices.npy)"


def test_a_clone_without_data_compares_what_git_has(project, tmp_path, monkeypatch, capsys):
    """The commit's vectors are not at hand there, its metrics are."""
    clone = project.clone(tmp_path / "other")
    monkeypatch.chdir(clone.root)
    path = clone.root / "reports/metrics/embeddings.json"
    metrics = json.loads(path.read_text())
    metrics["embeddings"]["tokens_mean"] *= 1 + 1e-6
    path.write_text(json.dumps(metrics))
    lock = (clone.root / "dvc.lock").read_text()
    pinned = lock.split("path: reports/metrics/embeddings.json")[1].split("md5: ")[1][:32]
    (clone.root / "dvc.lock").write_text(lock.replace(pinned, "0" * 32))
    found = verdicts(capsys)
    assert found["embeddings"] == "drifted by 1.0e-06 (reports/metrics/embeddings.json)"
    assert found["density"] == "same"


def test_what_cannot_be_compared_is_one_error(project, capsys):
    assert main(["verify", "--against", "no-such-tag"])
    said = capsys.readouterr().err
    assert "cannot compare with no-such-tag" in said
    assert "name a commit, branch or tag" in said
    assert main(["verify"])
    assert "nothing to verify" in capsys.readouterr().err
