"""The whole pipeline under real dvc and git, with tiny models: the same bytes every time."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.project import ROOT


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    return finished.copy(tmp_path_factory.mktemp("pipeline"))


def test_every_stage_ran_and_is_pinned(project):
    stages = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    assert sorted(project.ran(project.first)) == sorted(stages)
    assert sorted(yaml.safe_load(project.lock())["stages"]) == sorted(stages)
    kept = ["data/raw/.gitkeep", "models/raw/.gitkeep"]
    assert project.run("git", "ls-files", "data", "models", "logs").split() == kept
    for out in ("data/examples", "data/density", "models/reward", "models/grpo"):
        assert (project.root / out / "manifest.json").is_file()


def test_a_second_run_does_nothing_and_leaves_git_clean(project):
    assert project.ran(project.run("dvc", "repro")) == []
    assert "up to date" in project.run("dvc", "status")
    assert project.run("git", "status", "--porcelain") == ""


@pytest.mark.slow
def test_forced_again_every_byte_repeats(project):
    before = project.lock()
    shutil.rmtree(project.root / ".cache")
    assert len(project.ran(project.run("dvc", "repro", "--force"))) == 12
    assert project.lock() == before
    assert project.run("git", "status", "--porcelain") == ""


def test_metrics_and_plots_show(project):
    metrics = json.loads(project.run("dvc", "metrics", "show", "--json"))[""]["data"]
    density = metrics[str(Path("reports/metrics/density.json"))]["data"]["density"]
    assert 0 < density["ess_share"] <= 1
    assert "labels" not in density  # so many for so few prompts name no kinds
    page = project.run("dvc", "plots", "show").strip().splitlines()[-1]
    html = Path(page.removeprefix("file://")).read_text()
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    titles = [next(iter(plot.values()))["title"] for plot in plots if isinstance(plot, dict)]
    assert len(titles) == 4
    assert all(title in html for title in titles)
    assert "density.png" in html


@pytest.mark.slow
def test_a_density_experiment_reruns_density_and_what_follows(project):
    output = project.run("dvc", "exp", "run", "-n", "five", "-S", "density.k=5")
    assert sorted(project.ran(output)) == ["density", "evaluate", "report", "reward", "train"]
    shown = json.loads(project.run("dvc", "exp", "show", "--json"))
    assert "five" in json.dumps(shown)
    project.run("git", "checkout", "-q", ".")
    project.run("dvc", "checkout", "-q")


@pytest.mark.slow
def test_a_comparison_is_experiments_that_are_not_run_twice(project):
    command = ["isodense", "compare", "--arms", "uniform", "density", "--seeds", "2"]
    command += ["-S", "train.max_steps=1", "--output", "compared", "--jobs", "2"]
    assert "4 of 4" in project.run(*command)
    logs = [path.read_text() for path in (project.root / "logs/compare").iterdir()]
    assert [sorted(project.ran(log)) for log in logs] == [["evaluate", "train"]] * 4
    out = project.root / "compared"
    table = (out / "table.md").read_text()
    assert table.startswith("What decides: **reward by one judge** (judge.all), 2 seeds")
    assert "| KL to the base, nats |" in table
    assert (out / "compare.png").stat().st_size > 5000
    names = set(json.loads((out / "results.json").read_text())["experiments"])
    assert names <= set(project.run("dvc", "exp", "list", "--name-only").split())
    assert project.run("git", "status", "--porcelain") == "?? compared/\n"
    assert "[compare]" not in project.run(*command)
    assert (out / "table.md").read_text() == table
    (project.root / "params.yaml").write_text("\n" + (project.root / "params.yaml").read_text())
    assert "commit them" in project.run(*command, check=False)
    project.run("git", "checkout", "-q", ".")
    shutil.rmtree(out)


def test_a_teammate_pulls_what_was_pushed(project, tmp_path):
    project.run("dvc", "push", "-q")
    clone = tmp_path / "clone"
    project.run("git", "clone", "-q", str(project.root), str(clone))
    original, project.root = project.root, clone
    try:
        project.run("dvc", "pull", "-q", "density")
        weights = clone / "data" / "density" / "density_weights.npy"
        assert weights.read_bytes() == (original / weights.relative_to(clone)).read_bytes()
        assert not (clone / "data" / "embeddings").exists()
        project.run("dvc", "pull", "-q")
        assert project.ran(project.run("dvc", "repro")) == []
    finally:
        project.root = original


def test_the_readme_snippet_runs(project):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    output = project.run("python", "-c", code + "print(len(set(ids)), len(list(sampler)))")
    assert output.split()[-1] == "8"
    assert "effective sample size" in project.run("isodense", "inspect", "--top", "2")
    artifacts = ["data/prompts", "data/density", "models/grpo", "models/reward"]
    assert project.run("isodense", "verify", *artifacts).count("as its manifest says") == 4


@pytest.mark.slow
def test_appended_prompts_compute_and_push_only_what_changed(project):
    project.run("dvc", "push", "-q", "embeddings")
    store = Path(project.environ["HOME"]) / ".local/share/isodense/dvc"
    before = {path for path in store.rglob("*") if path.is_file()}
    local = project.root / "more.jsonl"
    answers = {"chosen": "yes", "rejected": "no"}
    local.write_text(json.dumps({"prompt": "one more question", **answers}) + "\n")
    project.set({"download.sources": ["sample", "local"], "download.local.files": ["more.jsonl"]})
    output = project.run("dvc", "repro", "neighbors")
    assert "1 of 4 shards computed" in output
    project.run("dvc", "push", "-q", "embeddings")
    pushed = {path for path in store.rglob("*") if path.is_file()} - before
    assert len(pushed) == 4  # the last shard, its ids, the manifest, and DVC's list of the folder
    shard = project.root / "data/embeddings/shard-00003.npy"
    assert shard.read_bytes() in {path.read_bytes() for path in pushed}
    project.run("git", "checkout", "-q", ".")
    project.run("dvc", "checkout", "-q")


def test_bad_input_stops_the_pipeline_with_one_clear_error(project):
    (project.root / "empty.jsonl").write_text("")
    project.set({"download.sources": ["local"], "download.local.files": ["empty.jsonl"]})
    output = project.run("dvc", "repro", check=False)
    assert "empty.jsonl" in output
    assert "Traceback" not in output
    project.run("git", "checkout", "-q", ".")
    project.run("dvc", "checkout", "-q")
    assert "up to date" in project.run("dvc", "status")
