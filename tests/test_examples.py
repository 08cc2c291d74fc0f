"""The example trainer and every command of its page, against a finished project behind HTTP."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import isodense
from isodense.prompts.reader import load_prompts
from tests.project import Project
from tests.sampling.test_remote import serving

EXAMPLES = Path(__file__).parents[1] / "examples"
ADDRESS = "https://git.example/team/prompts.git"
POLICY = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def owner(finished, tmp_path_factory):
    """Give a finished project with the tags v1.0 and v1.1 and its remote, beside a bare clone."""
    folder = tmp_path_factory.mktemp("owner")
    made = finished.copy(folder)
    made.run("dvc", "remote", "modify", "-q", "storage", "url", str(folder / "store"))
    made.run("git", "commit", "-qam", "remote")
    made.run("dvc", "push", "-q", "density", "prompts")
    made.run("git", "tag", "v1.0")
    shutil.copytree(made.root / "data/density", folder / "first")
    made.set({"density.ess": 0.6})
    made.run("dvc", "repro", "-q", "--single-item", "density")
    made.run("dvc", "push", "-q", "density")
    made.run("git", "commit", "-qam", "steeper weights")
    made.run("git", "tag", "v1.1")
    made.run("git", "clone", "-q", "--bare", str(made.root), str(folder / "prompts.git"))
    return made


@pytest.fixture(scope="module")
def visitor(owner, tmp_path_factory):
    """Give somebody else's repository, with DVC and a copy of the example in it."""
    made = Project(tmp_path_factory.mktemp("visitor"))
    shutil.copytree(EXAMPLES, made.root)
    made.run("git", "init", "-q")
    made.run("dvc", "init", "-q")
    return made


def commands():
    text = (EXAMPLES / "README.md").read_text()
    return [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
            for line in block.splitlines()]  # fmt: skip


def test_every_command_of_the_page_works(owner, visitor):
    lines = commands()
    assert [line.split()[:2] for line in lines] == [
        ["python", "grpo.py"],
        ["dvc", "get"],
        ["dvc", "import"],
        ["dvc", "update"],
    ]
    with serving(owner.root.parent) as host:
        for line in lines:
            own = line.replace(ADDRESS, f"http://{host}/prompts.git")
            tiny = own.replace(f"{POLICY} 100", f"{owner.root / 'models/policy'} 3")
            visitor.run(*shlex.split(tiny))
    _check_training(owner, visitor)
    first = isodense.load_weights(owner.root.parent / "first").weights
    copied = isodense.load_weights(visitor.root / "density-v1").weights
    np.testing.assert_array_equal(copied, first)
    updated = isodense.load_weights(visitor.root / "density").weights
    newest = isodense.load_weights(owner.root / "data/density").weights
    np.testing.assert_array_equal(updated, newest)
    assert not np.array_equal(updated, first)
    assert "rev: v1.1" in (visitor.root / "density.dvc").read_text()


def _check_training(owner, visitor):
    """Three steps of two prompts, whole groups, of the tag's training prompts and as drawn."""
    files = sorted((visitor.root / "out/completions").glob("*.parquet"))
    steps = [pq.read_table(file).column("prompt").to_pylist() for file in files]
    assert [len(step) for step in steps] == [8, 8, 8]
    asked = [str(step[at]) for step in steps for at in (0, 4)]
    assert all(step == [step[0]] * 4 + [step[4]] * 4 for step in steps)  # groups of one prompt
    train = load_prompts(owner.root / "data/prompts").split("train")
    weights = isodense.load_weights(owner.root.parent / "first").weights
    drawn = isodense.draw(weights, 6, seed=0)
    assert asked == [str(_plain(train.rows[row]["prompt"])) for row in drawn]
    assert (visitor.root / "out/policy/model.safetensors").is_file()


def _plain(messages):
    return [{"role": message["role"], "content": message["content"]} for message in messages]
