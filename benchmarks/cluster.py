"""Executors: what a task costs besides its computing, and two workers by Ray against two here.

Usage
-----
ray start --head --num-cpus 2 --include-dashboard=false
RAY_ADDRESS=127.0.0.1:6379 python benchmarks/cluster.py                    # 20,000 short prompts
RAY_ADDRESS=127.0.0.1:6379 python benchmarks/cluster.py --prompts 100000
ray stop

Rounds are interleaved; times are of whole runs, workers' start and model included, and from the
first result on. Needs models/encoder and data/prompts (`dvc repro prompts`).
"""

from __future__ import annotations

import argparse
import os
import pickle
import platform
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from isodense.embeddings.build import PART, Embedding
from isodense.embeddings.params import EmbeddingsParams
from isodense.pipeline.executor import workers
from isodense.pipeline.tasks import Job, Task
from isodense.prompts.reader import load_prompts

DIM = 384


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    os.environ["ISODENSE_WORKERS"] = "2"
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, 2 workers")
    texts = list(islice(cycle(load_prompts(Path("data/prompts")).texts), args.prompts))
    tasks = [
        Task(f"prompts from {start}", PART, (texts[start : start + PART], start, False))
        for start in range(0, len(texts), PART)
    ]
    sent = np.mean([len(pickle.dumps(task.args)) for task in tasks]) / PART
    returned = len(pickle.dumps(nothing()(None))) / PART
    print(f"bytes per prompt: {sent:.0f} to a worker, {returned:.0f} back")
    section = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["embeddings"]
    params = EmbeddingsParams(**section | {"precision": "float32"})
    embedding = Job(
        Embedding, {"encoder": Path("models/encoder")}, {"params": params, "device": "cpu"}
    )
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(args.rounds):
        for executor in ("local", "ray"):
            for name, job in (("embedding", embedding), ("nothing", Job(nothing))):
                times.setdefault(f"{name}, {executor}", []).append(timed(executor, job, tasks))
    rows = {name: np.median(found, axis=0) for name, found in times.items()}
    for name, (whole, steady) in rows.items():
        print(f"{name:<20} {whole:7.1f} s, {1e3 * steady / len(tasks):8.2f} ms a task once started")
    for executor in ("local", "ray"):
        share = rows[f"nothing, {executor}"][1] / rows[f"embedding, {executor}"][1]
        print(f"{executor}: {share:.1%} of an embedding task is not its computing")
    ratios = [
        b[0] / a[0] for a, b in zip(times["embedding, local"], times["embedding, ray"], strict=True)
    ]
    print("ray over local, by round:", " ".join(f"{ratio:.3f}" for ratio in ratios))


def nothing() -> Callable[..., Any]:
    """Return what gives vectors of zeros at once, as large as those of a task."""
    rows = np.zeros((PART, DIM), dtype=np.float32)
    return lambda *_: (rows, {})


def timed(executor: str, job: Job, tasks: list[Task]) -> tuple[float, float]:
    """Return the seconds of all tasks, from the start and from the first result on."""
    os.environ["ISODENSE_EXECUTOR"] = executor
    began = time.perf_counter()
    first = None
    with workers(job) as found:
        for _ in found.results(iter(tasks)):
            first = first or time.perf_counter()
    ended = time.perf_counter()
    return ended - began, ended - (first or began)


if __name__ == "__main__":
    main()
