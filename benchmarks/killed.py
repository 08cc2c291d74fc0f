"""Nodes of a Ray cluster are killed with -9 while stages compute: nothing is lost, no byte differs.

Usage
-----
python benchmarks/killed.py --every 5                                # the sample, a minute
python benchmarks/million.py texts --real DIR --out FOLDER --rows 100000
python benchmarks/killed.py --prompts FOLDER/data/prompts --every 15   # nine minutes

Runs the stages `embeddings` (in float32) and `neighbors` on three nodes with loopback addresses: a
head that computes nothing and two with a core each, of which the older one is killed every so many
seconds, and another one started. Then both stages run again in one process. Prints how often nodes
were killed and how many tasks that lost, and ends with 1 if a file of the artifacts differs. Needs
models/encoder and data/prompts (`dvc repro prompts models`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import yaml

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from tests.ray_nodes import ROOT, Nodes  # noqa: E402

from isodense.pipeline.artifact import sha256_file  # noqa: E402

STAGES = {  # and what they read
    "embeddings": ("--prompts", "{prompts}", "--encoder", "{encoder}"),
    "neighbors": ("--prompts", "{prompts}", "--embeddings", "embeddings"),
}
FIRST = 3  # of the nodes that compute; two at a time


def main() -> int:
    """Run both ways and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, default=ROOT / "data/prompts")
    parser.add_argument("--encoder", type=Path, default=ROOT / "models/encoder")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between kills")
    parser.add_argument("--method", default="exact", choices=("exact", "ivf"))
    args = parser.parse_args()
    inputs = {"prompts": str(args.prompts.resolve()), "encoder": str(args.encoder.resolve())}
    differ = 0
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name, "killed"), Path(name, "alone")]
        for folder in folders:
            folder.mkdir()
            write_params(folder / "params.yaml", args.method)
        for stage in STAGES:
            killed_in(stage, folders[0], inputs, args.every)
            seconds, _ = run(stage, folders[1], inputs, {**os.environ, "ISODENSE_WORKERS": "1"})
            found, wanted = (files(folder / stage) for folder in folders)
            wrong = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))
            said = f"{', '.join(wrong)} differ" if wrong else f"{len(wanted)} files are the same"
            print(f"{stage}: one process {seconds:.0f} s; {said}", flush=True)
            differ += len(wrong)
    return int(differ > 0)


def write_params(path: Path, method: str) -> None:
    """Write the project's params with another precision and method."""
    known = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    known["embeddings"] |= {"precision": "float32"}
    known["neighbors"] |= {"method": method}
    path.write_text(yaml.safe_dump(known), encoding="utf-8")


def killed_in(stage: str, folder: Path, inputs: dict[str, str], every: float) -> None:
    """Run a stage on nodes that are killed until it has ended."""
    nodes, ended, killed = Nodes(2), threading.Event(), 0

    def kill() -> None:
        nonlocal killed
        while not ended.wait(every):
            nodes.kill(FIRST + killed)
            killed += 1
            nodes.start(FIRST + 1 + killed)

    try:
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            seconds, said = run(stage, folder, inputs, nodes.environ())
        finally:
            ended.set()
            killer.join()
    finally:
        nodes.close()
    lost = said.count(" was lost on node ")  # a worker's tasks are told as one
    print(
        f"{stage}: {seconds:.0f} s, {killed} nodes killed, {lost} times a task was lost", flush=True
    )


def run(
    stage: str, folder: Path, inputs: dict[str, str], environ: dict[str, str]
) -> tuple[float, str]:
    """Run a stage in a folder; return its seconds and what it said."""
    words = [word.format(**inputs) for word in STAGES[stage]]
    command = [sys.executable, str(ROOT / f"stages/{stage}.py"), *words]
    command += ["--out", stage, "--metrics", f"{stage}.json"]
    begin = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environ, "ISODENSE_CACHE": "cache"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{stage} failed:\n{done.stderr}")
    return time.perf_counter() - begin, done.stderr


def files(folder: Path) -> dict[str, str]:
    """Return the hash of each file of an artifact."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in folder.rglob("*")
        if path.is_file()
    }


if __name__ == "__main__":
    sys.exit(main())
