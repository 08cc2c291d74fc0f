"""Experiments with real dvc and git: density alone, queues, the table, sharing, and ways out."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.browser import browser
from tests.project import ROOT, Project

pytestmark = pytest.mark.slow  # experiments of the whole pipeline, one after another


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    made = finished.copy(tmp_path_factory.mktemp("experiments"))
    made.run("git", "branch", "-M", "main")
    return made


def back(project):
    project.run("git", "checkout", "-q", "-f", "main")
    project.run("git", "checkout", "-q", ".")
    project.run("dvc", "checkout", "-q")


def shown(project, *options):
    """Return what ``isodense experiments`` shows, by the experiment's name."""
    output = project.run("isodense", "experiments", "--json", *options)
    return {row["experiment"]: row for row in json.loads(output[output.index("[\n") :])}


def there(row):
    """Return the first keys of the metrics that a row has numbers of."""
    return {name.split(".")[0] for name, value in row["metrics"].items() if value is not None}


def test_density_alone_runs_one_stage_and_shows_no_number_of_another_density(project):
    output = project.run("dvc", "exp", "run", "-n", "five", "-S", "density.k=5", "density")
    assert project.ran(output) == ["density"]
    rows = shown(project)
    (base,) = (name for name, row in rows.items() if row["baseline"] == name != "workspace")
    assert there(rows[base]) == {"density", "reward", "eval"}
    assert there(rows["five"]) == there(rows["workspace"]) == {"density"}
    assert rows["five"]["params"]["density.k"] == 5
    metrics = json.loads((project.root / "reports/metrics/density.json").read_text())
    assert rows["five"]["metrics"]["density.ess"] == metrics["density"]["ess"]
    text = project.run("isodense", "experiments")
    assert re.search(r"^five +5 ", text, re.MULTILINE)
    assert "dvc exp apply five" in text
    project.run("isodense", "report", "--output", "five.html")
    page = (project.root / "five.html").read_text()
    assert "There is no evaluation yet" in page
    assert "There is no map yet" not in page
    (project.root / "five.html").unlink()
    back(project)
    assert "workspace" not in shown(project)


def test_a_queue_keeps_its_target_and_says_what_failed(project):
    try:
        project.run(
            "dvc", "exp", "run", "--queue", "-n", "grid", "-S", "density.k=4,5000", "density"
        )
        waiting = shown(project)
        assert [waiting[name]["state"] for name in ("grid-1", "grid-2")] == ["queued"] * 2
        assert there(waiting["grid-1"]) == set()
        project.run("dvc", "queue", "start")
        finish_queue(project)
        rows = shown(project)
        assert rows["grid-1"]["params"]["density.k"] == 4
        assert there(rows["grid-1"]) == {"density"}
        assert project.ran(project.run("dvc", "queue", "logs", "grid-1")) == ["density"]
        assert rows["grid-2"]["state"] == "failed"
        assert "density.k" in project.run("dvc", "queue", "logs", "grid-2")
        assert "dvc queue logs grid-2" in project.run("isodense", "experiments")
        project.run("dvc", "queue", "remove", "--failed")
    finally:
        project.run("dvc", "queue", "stop", "--kill", check=False)
    assert project.run("git", "status", "--porcelain") == ""


def finish_queue(project, seconds=120):
    """Wait until nothing is queued or running and the worker has gone."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status = project.run("dvc", "queue", "status")
        if not re.search(r"Queued|Running|[1-9]\d* active|[1-9]\d* idle", status):
            return
        time.sleep(0.5)
    raise AssertionError(status)


def test_the_rest_of_an_experiment_runs_after_it_is_applied(project):
    project.run("dvc", "exp", "apply", "five")
    assert sorted(project.ran(project.run("dvc", "exp", "run", "-n", "whole"))) != ["density"]
    rows = shown(project)
    assert there(rows["whole"]) == {"density", "reward", "eval"}
    assert rows["whole"]["metrics"]["density.ess"] == rows["five"]["metrics"]["density.ess"]
    head, *lines = project.run("isodense", "experiments", "--sort", "k", "--md").splitlines()
    assert head.startswith("| experiment | k | ess | sampling |")
    assert len(lines) == 1 + len(rows)
    back(project)


def test_plain_dvc_shows_a_table_too(project):
    guide = (ROOT / "docs/experiments-guide.md").read_text()
    (command,) = re.findall(r"^dvc exp show .*?[^\\]$", guide, re.MULTILINE | re.DOTALL)
    output = project.run("bash", "-c", command)
    heads = output.splitlines()[0].split("|")[1:-1]
    wanted = ("density.k", "density.ess", "train.sampling", "eval.gain.reward", "heldout.accuracy")
    assert [name for name in wanted if not any(name in head for head in heads)] == []
    assert len(heads) == 11
    assert "five" in output


def test_plots_of_two_revisions_are_drawn_without_a_network(project):
    project.run("isodense", "offline-plots")
    printed = project.run("dvc", "plots", "diff", "HEAD", "whole")
    (url,) = re.findall(r"file://\S+", printed)
    said, asked = [], []
    with browser() as running:
        tab = running.new_page()
        tab.on("console", lambda message: said.append(f"{message.type} {message.text}"))
        tab.on("pageerror", lambda error: said.append(f"error {error}"))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(url)
        plots = yaml.safe_load((project.root / "dvc.yaml").read_text())["plots"]
        drawn = [next(iter(plot.values()))["title"] for plot in plots if isinstance(plot, dict)]
        count = "document.querySelectorAll('main > div svg.marks').length"
        tab.wait_for_function(f"{count} === {len(drawn)}", timeout=10_000)
        text = tab.inner_text("body")
        legends = [plot.inner_text() for plot in tab.locator("main > div:has(svg.marks)").all()]
        images = tab.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert [title for title in drawn if title not in text] == []
    assert all("HEAD" in legend and "whole" in legend for legend in legends)
    assert [line for line in said if not line.startswith("warning")] == []
    assert [url for url in asked if not url.startswith("file://")] == []
    assert len(images) >= 2
    assert min(images) > 100
    assert "html_template" in project.run("dvc", "config", "--local", "--list")
    project.run("dvc", "config", "--local", "--unset", "plots.html_template")


def test_experiments_are_shared_and_branched(project, tmp_path):
    origin = tmp_path / "origin.git"
    project.run("git", "init", "-q", "--bare", "-b", "main", str(origin))
    project.run("git", "remote", "add", "origin", str(origin))
    project.run("git", "push", "-q", "origin", "main")
    store = tmp_path / "store"
    project.run("dvc", "remote", "modify", "--local", "storage", "url", str(store))
    project.run("dvc", "exp", "push", "origin", "five")
    mate = Project(tmp_path / "mate")
    project.run("git", "clone", "-q", str(origin), str(mate.root))
    mate.run("dvc", "remote", "modify", "--local", "storage", "url", str(store))
    assert "five" in mate.run("dvc", "exp", "list", "origin")
    mate.run("dvc", "exp", "pull", "--no-cache", "origin", "five")
    mate.run("dvc", "exp", "branch", "five", "five-branch")
    mate.run("git", "checkout", "-q", "five-branch")
    mate.run("dvc", "pull", "density")
    weights = "data/density/density_weights.npy"
    theirs = (mate.root / weights).read_bytes()
    assert [path.name for path in (mate.root / "models").iterdir()] == ["raw"]
    project.run("dvc", "exp", "apply", "five")
    assert (project.root / weights).read_bytes() == theirs
    back(project)
    assert (project.root / weights).read_bytes() != theirs
    project.run("dvc", "exp", "remove", "grid-1")
    assert {"grid-1", "grid-2"} & set(shown(project)) == set()


def test_a_conflict_in_the_lock_is_resolved_by_either_side_and_repro(project):
    for name, k in (("left", 3), ("right", 4)):
        project.run("git", "checkout", "-q", "-b", name, "main")
        project.set({"density.k": k})
        project.run("dvc", "repro", "density")
        project.run("git", "commit", "-qam", name)
    wanted = project.lock()
    merged = project.run("git", "merge", "left", check=False)
    assert "CONFLICT (content): Merge conflict in dvc.lock" in merged
    assert "<<<<<<<" in project.lock()
    assert "Traceback" not in project.run("dvc", "status", check=False)
    project.run("git", "checkout", "--ours", "params.yaml")
    project.run("git", "checkout", "--theirs", "dvc.lock", "reports/metrics")
    output = project.run("dvc", "repro", "density")
    assert "Stage 'density' is cached" in output
    assert project.ran(output) == []
    assert project.lock() == wanted
    project.run("git", "commit", "-qam", "merged")
    back(project)


def test_what_was_killed_runs_again(project):
    command = [sys.executable, "-m", "dvc", "repro", "--force", "--single-item", "density"]
    running = subprocess.Popen(
        command, cwd=project.root, env=project.environ, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert running.stdout is not None
    for line in running.stdout:
        if line.startswith("Running stage"):
            break
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    running.stdout.close()
    assert json.loads((project.root / ".dvc/tmp/rwlock").read_text())
    output = project.run("dvc", "repro")
    assert "Auto removed it from the lock file" in output
    assert project.ran(output) == []  # restored from the run cache
    assert project.run("git", "status", "--porcelain", "--untracked-files=no") == ""


def test_outputs_that_were_collected_are_named_and_made_again(project):
    project.run("dvc", "gc", "--workspace", "--force")
    failed = project.run("dvc", "exp", "apply", "five", check=False)
    assert "data/density" in failed
    back(project)
    project.run("dvc", "exp", "remove", "five")
    output = project.run("dvc", "exp", "run", "-n", "five", "-S", "density.k=5", "density")
    assert project.ran(output) == ["density"]
    back(project)
