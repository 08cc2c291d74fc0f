"""Bytes and seconds of sharing a finished run, through a folder and through an S3 server.

Usage
-----
python benchmarks/remotes.py --checkout .    # after dvc repro: a copy is used, 3 times its cache

The server and the clones are on this machine, so that seconds are those of DVC and not of a
network; bytes are the same anywhere.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.project import Project
from tests.remotes import servers
from tests.remotes.objects import cached

ROWS = 256  # per shard, so that the sample has several
APPENDED = 20
MIB = 2**20
Sizes = Callable[[], dict[str, int]]


def timed(project: Project, *command: str) -> float:
    """Return the seconds of a command."""
    start = time.perf_counter()
    project.run(*command)
    return time.perf_counter() - start


def row(what: str, seconds: float, objects: dict[str, int]) -> None:
    """Print one row of the table."""
    size = sum(objects.values())
    shown = f"{size / MIB:,.1f} MiB" if size >= MIB else f"{size / 1024:,.1f} KiB"
    print(f"| {what} | {seconds:.1f} | {len(objects)} | {shown} |", flush=True)


def copied(checkout: Path, folder: Path) -> Project:
    """Return a clone of a checkout in its present state, with its cache."""
    made = Project(folder)
    run = ["git", "clone", "--quiet", str(checkout), str(made.root)]
    subprocess.run(run, check=True)
    for name in ("dvc.lock", "dvc.yaml", "params.yaml"):
        shutil.copyfile(checkout / name, made.root / name)
    metrics = Path("reports", "metrics")
    shutil.copytree(checkout / metrics, made.root / metrics, dirs_exist_ok=True)
    shutil.copytree(checkout / ".dvc" / "cache", made.root / ".dvc" / "cache")
    made.run("dvc", "checkout", "--quiet", "--force")
    made.run("git", "commit", "--quiet", "--allow-empty", "--all", "--message", "as it is")
    return made


def in_shards(project: Project) -> None:
    """Make the embeddings of several shards, as those of a large set are."""
    project.set({"embeddings.rows_per_shard": ROWS})
    project.run("dvc", "repro", "embeddings")
    project.run("git", "commit", "--quiet", "--all", "--message", "several shards")


def append(project: Project) -> None:
    """Add prompts and embed them."""
    answers = {"chosen": "yes", "rejected": "no"}
    texts = (f"question {i} of those that came later" for i in range(APPENDED))
    lines = [json.dumps({"prompt": text, **answers}) + "\n" for text in texts]
    (project.root / "more.jsonl").write_text("".join(lines))
    project.set({"download.sources": ["sample", "local"], "download.local.files": ["more.jsonl"]})
    project.run("dvc", "repro", "embeddings")
    project.run("git", "add", "more.jsonl")
    project.run("git", "commit", "--quiet", "--all", "--message", "more prompts")


def measured(project: Project, kept: Sizes, what: str, *command: str) -> None:
    """Time a command and print what it added to a store."""
    before = kept()
    seconds = timed(project, *command)
    row(what, seconds, {name: size for name, size in kept().items() if name not in before})


def share(sharer: Project, remote: servers.Remote, folder: Path) -> None:
    """Print the rows of one remote."""
    remote.configure(sharer)
    start = sharer.run("git", "rev-parse", "HEAD").strip()
    mate = sharer.clone(folder)
    remote.configure(mate)

    def pulled() -> dict[str, int]:
        return cached(mate)

    measured(sharer, remote.sizes, "`dvc push`", "dvc", "push")
    measured(sharer, remote.sizes, "`dvc push`, nothing new", "dvc", "push")
    measured(mate, pulled, "`dvc pull density`", "dvc", "pull", "density")
    measured(mate, pulled, "`dvc pull embeddings`", "dvc", "pull", "embeddings")
    measured(mate, pulled, "`dvc pull`, the rest", "dvc", "pull")
    in_shards(sharer)
    measured(sharer, remote.sizes, f"shards of {ROWS}: push", "dvc", "push", "embeddings")
    mate.run("git", "pull", "--quiet")
    measured(mate, pulled, f"shards of {ROWS}: pull", "dvc", "pull", "embeddings")
    append(sharer)
    measured(sharer, remote.sizes, f"{APPENDED} prompts more: push", "dvc", "push", "embeddings")
    mate.run("git", "pull", "--quiet")
    measured(mate, pulled, f"{APPENDED} prompts more: pull", "dvc", "pull", "embeddings")
    sharer.run("git", "reset", "--quiet", "--hard", start)
    sharer.run("dvc", "checkout", "--quiet", "--force")


def main() -> None:
    """Print the table of each remote, and the seconds of a ``dvc repro`` that does nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkout", type=Path, default=Path(), help="a clone after dvc repro")
    checkout = parser.parse_args().checkout.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sharer = copied(checkout, folder / "a")
        sharer.run("dvc", "repro")  # which hashes the files that were just checked out
        output = [timed(sharer, "dvc", "repro") for _ in range(3)]
        print(f"`dvc repro` with nothing to do: {min(output):.1f} s, the best of three\n")
        for serve in (servers.local, servers.s3):
            place = folder / serve.__name__
            place.mkdir()
            print(f"| {serve.__name__} | seconds | objects | bytes |\n| --- | ---: | ---: | ---: |")
            with serve(place) as remote:
                if serve is servers.s3:  # which puts half a gigabyte together while DVC waits
                    remote.settings["read_timeout"] = "600"
                share(sharer, remote, place / "b")
            shutil.rmtree(place)
            print()
    names = ("dvc", "dvc-s3", "moto")
    print(f"{platform.machine()}, Python {platform.python_version()};", end=" ")
    print(", ".join(f"{name} {version(name)}" for name in names))


if __name__ == "__main__":
    main()
