"""A project in a folder of a larger repository, with spaces in its path, and in a git worktree."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.project import Project

CHANGED = " M ../../web/app.js\n"


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    """Give a finished project in ``ml team/prompts``; a colleague's file elsewhere has changed."""
    made = finished.copy(tmp_path_factory.mktemp("mono"))
    whole = made.root.with_name("all of it")
    (whole / "web").mkdir(parents=True)
    (whole / "web/app.js").write_text("1\n")
    shutil.rmtree(made.root / ".git")
    shutil.rmtree(made.root / ".dvc/tmp")
    made.root = made.root.rename(whole / "prompts")
    (whole / "ml team").mkdir()
    made.root = made.root.rename(whole / "ml team/prompts")
    made.run("git", "init", "-q", "-b", "main", str(whole))
    made.run("git", "add", "-A", str(whole))
    made.run("git", "commit", "-qm", "all")
    (whole / "web/app.js").write_text("2\n")
    return made


@pytest.mark.slow
def test_nothing_is_stale_and_experiments_show_their_own_numbers(project):
    assert project.ran(project.run("dvc", "repro")) == []
    assert project.run("git", "status", "--porcelain", "-uno") == CHANGED.replace("../../", "")
    project.run("dvc", "exp", "run", "-n", "five", "-S", "density.k=5", "density")
    rows = json.loads(project.run("isodense", "experiments", "--json"))
    (five,) = (row for row in rows if row["experiment"] == "five")
    metrics = json.loads((project.root / "reports/metrics/density.json").read_text())
    assert five["metrics"]["density.ess"] == metrics["density"]["ess"]
    assert five["metrics"]["eval.gain.reward"] is None
    project.run("git", "checkout", "-q", ".")
    project.run("dvc", "checkout", "-q")


def test_an_experiment_elsewhere_reads_a_file_that_nobody_tracks_and_says_so(project):
    (project.root / "mine.jsonl").write_text('{"prompt": "2+2?", "answer": "4"}\n' * 9)
    settings = ("download.sources=[local]", "download.local.files=[mine.jsonl]")
    changes = [word for setting in settings for word in ("-S", setting)]
    said = project.run("dvc", "exp", "run", "--temp", "-n", "own", *changes, "download")
    assert "mine.jsonl is tracked by neither git nor DVC" in said
    assert "9 examples" in said
    (project.root / "mine.jsonl").unlink()


@pytest.mark.slow
def test_a_comparison_in_a_worktree_does_not_mind_what_changed_elsewhere(project: Project):
    whole = project.root.parents[1]
    project.run("git", "worktree", "add", "-q", "-b", "other", str(whole.with_name("work tree")))
    shutil.copytree(project.root / ".dvc/cache", whole.with_name("work tree") / "cache")
    project.root = whole.with_name("work tree") / "ml team/prompts"
    project.run("dvc", "cache", "dir", "--local", "../../cache")
    project.run("dvc", "checkout", "-q")
    (project.root.parents[1] / "web/app.js").write_text("3\n")
    command = ["isodense", "compare", "--arms", "uniform", "density", "--seeds", "2"]
    command += ["-S", "train.max_steps=1", "--output", "../compared"]
    assert "4 of 4" in project.run(*command)
    assert "reward by one judge" in (project.root / "../compared/table.md").read_text()
    (project.root / "params.yaml").write_text("\n" + (project.root / "params.yaml").read_text())
    assert "commit them" in project.run(*command, check=False)
