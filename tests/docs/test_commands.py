"""Every command block of the README and the tutorial runs, in order, on the tiny project.

Blocks of ``bash`` and ``python`` are one bash session per page, in a clone with tiny models, under
real git, dvc and make. Lines that cannot run there as they are have a stand-in below, with the
reason; a stand-in whose line is gone from the page fails. Other blocks have to be output or data.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project import ROOT
from tests.tables import stored_rows

BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = {"text", "yaml", "json"}  # output and data
BACK = "git checkout -q . && dvc checkout -q"
OWN_REWARD = "dvc exp run -S reward.kind=function -S 'reward.functions=[rewards.gsm8k:correct]'"
STAND_INS = {  # line, less its comment: (what runs instead, why)
    "uvx isodense weigh prompts.jsonl --output weights.parquet": (
        "isodense weigh data/raw/problems.jsonl --output weights.parquet --encoder models/encoder "
        "-S embeddings.max_tokens=128",
        "no package index; the tiny encoder",
    ),
    "make test": ("make -n test", "it is this run of the tests"),
    "isodense compare --arms uniform density --seeds 3": (
        "isodense compare --arms uniform density --seeds 3 --help",
        "time: the words are checked; tests/dvc/test_repro.py runs a comparison",
    ),
    'ISODENSE_LAUNCH="accelerate launch --config_file configs/ddp.yaml" dvc repro train': (
        'ISODENSE_LAUNCH="torchrun --nproc-per-node 2" dvc repro train',
        "no GPUs; the stage is up to date, and tests/train/test_resume.py trains with torchrun",
    ),
    "dvc exp run -S train.sampling=uniform -S train.seed=1": (
        f"dvc exp run -S train.sampling=uniform -S train.seed=1 train && {BACK}",
        "time: without the evaluation",
    ),
    "isodense push hf://team/prompt-weights --private": (
        "isodense push hf://team/prompt-weights --private --dry-run pushed",
        "no Hub; tests/cli/test_push.py has a stand-in for it",
    ),
    OWN_REWARD: (
        f"{OWN_REWARD} prompts && {BACK}",
        "time: it stops at the prompts",
    ),
}


def blocks(page):
    """Return the language and the text of every fenced block."""
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def script(page):
    """Return one bash script of all blocks that are code, and the stand-ins that it uses."""
    lines, used = ["set -eo pipefail", "trap 'echo \"FAILED: $BASH_COMMAND\" >&2' ERR"], set()
    for language, text in blocks(page):
        if language == "python":
            lines += ["python - <<'END OF PYTHON'", text + "END OF PYTHON"]
        for line in text.splitlines() if language == "bash" else ():
            command = re.sub(r"\s+#.*", "", line).strip()
            if command in STAND_INS:
                used.add(command)
            lines.append(STAND_INS[command][0] if command in STAND_INS else line)
    return "\n".join(lines) + "\n", used


def prepare(project):
    """Give the clone what the tiny project leaves out, and the files that the pages assume."""
    root = project.root
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        shutil.copyfile(ROOT / name, root / name)
    shutil.copytree(ROOT / "configs", root / "configs")
    (root / ".venv").mkdir()
    (root / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    for stamp in ("torch", "runtime", "dev"):  # what make takes for an environment up to date
        (root / ".venv" / stamp).touch()
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "what the tiny project leaves out")
    for part in ("part1", "part2"):  # sets that were embedded apart
        for name in ("prompts", "embeddings"):
            shutil.copytree(root / "data" / name, root / part / "data" / name)
    rows = [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(20)]
    with (root / "data/raw/problems.jsonl").open("w") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def ran(finished, tmp_path_factory):
    """Give what a page's commands printed, and the project after them."""

    def run(page):
        project = finished.copy(tmp_path_factory.mktemp(Path(page).stem))
        prepare(project)
        done = subprocess.run(
            ["bash", "-s"],
            input=script(page)[0],
            cwd=project.root,
            env=project.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout, project

    return run


needs_venv = pytest.mark.skipif(
    not (Path(sys.executable).parent / "activate").is_file(),
    reason="the tests do not run in a virtual environment, which make and the pages activate",
)


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_a_block_is_run_or_is_no_command(page):
    languages = [language for language, _ in blocks(page)]
    assert languages.count("bash") >= 5
    assert {"python"} <= set(languages) <= {"bash", "python"} | NOT_RUN
    assert len(re.findall("^ *```", (ROOT / page).read_text(), re.MULTILINE)) == 2 * len(languages)


def test_every_stand_in_stands_for_a_line():
    used = script("README.md")[1] | script("docs/tutorial.md")[1]
    assert used == set(STAND_INS)


@pytest.mark.slow
@needs_venv
def test_the_commands_of_the_readme_run(ran):
    output, project = ran("README.md")
    assert "reports/index.html" in output  # where make repro says to look
    assert "python -m pytest -n 2" in output  # what make test would run
    for said in ("itself included", "effective sample size", "embedded again: same", "collapsed"):
        assert said in output
    assert {"merged", "prompts.parquet"} <= {path.name for path in project.root.iterdir()}
    experiments = json.loads(project.run("dvc", "exp", "show", "--json"))
    assert sum(len(commit.get("experiments") or []) for commit in experiments) >= 3


@pytest.mark.slow
@needs_venv
def test_the_commands_of_the_tutorial_run(ran):
    output, project = ran("docs/tutorial.md")
    assert "Data and pipelines are up to date." in output
    assert re.search(r"^\d+ training prompts, effective sample size", output, re.MULTILINE)
    assert re.search(r"^a new prompt, not in the set", output, re.MULTILINE)
    assert "Ran experiment(s): gentle" in output
    assert "[gentle]" in output
    teammate = project.root.parent / "teammate"
    assert sorted(path.name for path in (teammate / "data").iterdir()) == ["density", "raw"]
    number, rows, identifier = re.findall(r"^(\d+) \[([ \d]+)\]\n([0-9a-f]{32})$", output, re.M)[-1]
    assert max(map(int, rows.split())) < int(number)
    assert identifier in {row["id"] for row in stored_rows(project.root / "data" / "prompts")}
