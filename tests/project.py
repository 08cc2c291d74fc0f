"""A clone of the project under real git and dvc, with tiny models, for the tests that need one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests import tiny

ROOT = Path(__file__).parents[1]
PARAMS = ROOT / "params.yaml"
# A shell starts what it runs in the background with SIGINT ignored; tests pass that on, and Python
# then leaves it so: a script would not hear the signal that a test sends it.
HEARS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
FIRST = "first-repro.txt"  # beside the clone: what the first run printed
SMALL = {
    "download.sample.pairs": 120,
    "prompts.near_duplicate": None,  # of so few, the pairs held out by id show the reward to work
    "embeddings.max_tokens": 128,
    "embeddings.rows_per_shard": 32,  # four shards, so that appended prompts leave three alone
    "reward.layer": 2,
    "reward.max_tokens": 256,
    "train.max_steps": 2,
    "train.max_prompt_tokens": 200,
    "train.prompts_per_step": 2,
    "train.num_generations": 2,
    "train.max_completion_tokens": 8,
    "evaluate.max_prompts": 6,
    "evaluate.num_generations": 2,
    "evaluate.max_completion_tokens": 8,
}


class Project:
    """A git repository with dvc in `folder`/clone, whose home and caches are in `folder` too."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "clone"
        (folder / "home").mkdir(parents=True, exist_ok=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
            "PATH": path,
            "HOME": str(folder / "home"),
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
            "DVC_NO_ANALYTICS": "1",
            "CI": "1",
            **{f"GIT_{who}_{what}": "t@example.invalid" for who in ("AUTHOR", "COMMITTER")
               for what in ("NAME", "EMAIL")},
        }  # fmt: skip
        self.environ.pop("DVC_ROOT", None)
        self.environ.pop("ISODENSE_CACHE", None)

    @property
    def first(self) -> str:
        """What the first ``dvc repro`` printed."""
        return (self.root.parent / FIRST).read_text()

    def copy(self, folder: Path) -> Project:
        """Return a copy in `folder`, with its cache, and a home and state of its own."""
        shutil.copytree(self.root, folder / "clone", symlinks=True)
        shutil.copyfile(self.root.parent / FIRST, folder / FIRST)
        return Project(folder)

    def clone(self, folder: Path) -> Project:
        """Return what a teammate has: a git clone in `folder`, nothing computed or pulled."""
        made = Project(folder)
        self.run("git", "clone", "-q", str(self.root), str(made.root))
        return made

    def run(self, *command: str, check: bool = True) -> str:
        done = self._done(*command, check=check)
        return done.stdout + done.stderr

    def out(self, *command: str) -> str:
        """Return what a command writes to its standard output alone."""
        return self._done(*command).stdout

    def _done(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.root, env=self.environ, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def set(self, values: dict[str, object]) -> None:
        path = self.root / "params.yaml"
        write_params(path, values, path)

    def lock(self) -> str:
        return (self.root / "dvc.lock").read_text()

    def ran(self, output: str) -> list[str]:
        marks = [line for line in output.splitlines() if line.startswith("Running stage '")]
        return [line.split("'")[1] for line in marks]


def write_params(path: Path, values: dict[str, object], source: Path = PARAMS) -> None:
    """Write the params of `source`, by default the project's, with some values changed."""
    params = yaml.safe_load(source.read_text())
    for name, value in values.items():
        *sections, key = name.split(".")
        section = params
        for part in sections:
            section = section[part]
        assert key in section, name
        section[key] = value
    path.write_text(yaml.safe_dump(params))


def start(folder: Path) -> Project:
    """Return a new project: the working tree's code and params made small, committed, not run."""
    made = Project(folder)
    for name in ("stages", "src"):
        skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, made.root / name, ignore=skip)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"):
        shutil.copyfile(ROOT / name, made.root / name)
    for name in ("data/raw", "models/raw", "rewards"):
        (made.root / name).mkdir(parents=True)
        shutil.copyfile(ROOT / name / ".gitkeep", made.root / name / ".gitkeep")
    (made.root / "reports" / "metrics").mkdir(parents=True)
    source = {"source": "folder", "version": None, "sha256": None, "path": None}
    encoder = source | {"name": str(tiny.encoder(folder / "tiny-encoder"))}
    policy = source | {"name": str(tiny.policy(folder / "tiny-policy"))}
    policy["chat_template_kwargs"] = {}
    made.set({**SMALL, "models.encoder": encoder, "models.policy": policy})
    made.run("git", "init", "-q")
    made.run("dvc", "init", "-q")
    shutil.copyfile(ROOT / ".dvc" / "config", made.root / ".dvc" / "config")
    skip = shutil.ignore_patterns("offline.html")
    shutil.copytree(ROOT / ".dvc" / "plots", made.root / ".dvc" / "plots", ignore=skip)
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "start")
    return made


def finish(folder: Path) -> Project:
    """Return a new project after one ``dvc repro``, committed."""
    made = start(folder)
    (folder / FIRST).write_text(made.run("dvc", "repro"))
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "repro")
    return made
