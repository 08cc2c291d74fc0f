"""Each stage is the same, drifted or different to what a commit pins."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from isodense.cli.against import OTHER, _distance
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


def rewritten(path, change):
    """Change a file that a stage made; links to it keep what they had."""
    content = change(Path(path).read_text())
    Path(path).unlink()
    Path(path).write_text(content)


def test_drift_does_not_hide_what_else_differs(project, capsys):
    """Vectors that drifted, and in turn beside them a line, a shard and words that are others."""
    first, last = "data/embeddings/shard-00000.npy", "data/embeddings/shard-00003.npy"
    committed(project, "embeddings", first, lambda rows: rows * np.float32(1 + 3e-7))
    assert verdicts(capsys)["embeddings"].startswith("drifted by ")
    ids = "data/embeddings/ids-00000.txt"
    rewritten(ids, lambda text: text[::-1])
    assert verdicts(capsys)["embeddings"] == f"other bytes ({ids})"
    Path(last).unlink()
    assert verdicts(capsys)["embeddings"] == f"different ({last})"

    metrics = "reports/metrics/density.json"
    rewritten(metrics, lambda text: text.replace('"case": "', '"case": "un'))
    assert verdicts(capsys)["density"] == f"different ({metrics})"


def test_what_was_changed_after_the_stage_ran_is_compared_as_it_is(project, capsys):
    weights = "data/density/density_weights.npy"
    values = np.load(weights)
    Path(weights).unlink()
    np.save(weights, values[::-1])
    assert verdicts(capsys)["density"] == f"different ({weights})"
    Path(weights).write_bytes(b"")
    assert verdicts(capsys)["density"] == f"different ({weights})"
    manifest = "data/neighbors/manifest.json"
    rewritten(manifest, lambda text: text.replace('"exact"', '"other"'))
    assert verdicts(capsys)["neighbors"] == f"other bytes ({manifest})"


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([1.0, np.nan], [1.0, np.nan], 0.0),
        ([1.0, np.inf], [1.001, np.inf], 0.001),
        ([1.0, 2.0], [1.0, np.nan], OTHER),
        ([np.nan, 2.0], [1.0, 2.0], OTHER),
        ([np.inf], [-np.inf], OTHER),
        ([], [], 0.0),
        ([], [1.0], OTHER),
    ],
)
def test_numbers_that_are_none_are_no_drift(one, two, expected):
    assert _distance(np.array(one), np.array(two)) == pytest.approx(expected)
    assert _distance(np.array(one), np.array(two, dtype=np.float32)) == OTHER


def test_a_project_in_a_folder_of_a_repository(project, capsys, monkeypatch):
    whole = project.root.with_name("all of it")
    (whole / "ml team").mkdir(parents=True)
    (project.root / ".git").rename(whole / ".git")
    monkeypatch.chdir(whole)
    project.root = project.root.rename(whole / "ml team/prompts")
    project.run("git", "add", "-A", str(whole))
    project.run("git", "commit", "-qm", "moved")
    monkeypatch.chdir(project.root)
    assert set(verdicts(capsys).values()) == {"same"}
    rewritten("dvc.lock", lambda text: text.replace("\n  map:", "\n  regions_of_a_map:"))
    found = verdicts(capsys)
    assert found["regions_of_a_map"] == "not in HEAD"
    assert found["map"] == "only in HEAD"
    assert set(found.values()) == {"same", "not in HEAD", "only in HEAD"}


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
    (clone.root / "dvc.lock").write_text(lock.replace(pinned, "f" * 32))
    found = verdicts(capsys)
    assert found["embeddings"] == "drifted by 1.0e-06 (reports/metrics/embeddings.json)"
    assert found["density"] == "same"


def test_what_cannot_be_compared_is_one_error(project, capsys):
    assert main(["verify", "--against", "no-such-tag"])
    said = capsys.readouterr().err
    assert "cannot compare with no-such-tag" in said
    assert "name a commit, branch or tag" in said
    for text in ("", "schema: '2.0'", "<<<<<<< HEAD\na: 1\n======="):
        (project.root / "dvc.lock").write_text(text)
        assert main(["verify", "--against", "HEAD"])
        assert "dvc.lock is no list of stages with outputs" in capsys.readouterr().err
    (project.root / "dvc.lock").unlink()
    assert main(["verify", "--against", "HEAD"])
    assert "run it in the project's folder" in capsys.readouterr().err
    assert main(["verify"])
    assert "nothing to verify" in capsys.readouterr().err
