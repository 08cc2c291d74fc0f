"""What density weights add to a training run's start-up, against computing them on the spot.

Usage
-----
python benchmarks/startup.py                        # all of it; two minutes
python benchmarks/startup.py load --sizes 1000000   # load_weights and the sampler, made artifacts
python benchmarks/startup.py epoch                  # the first batch of an epoch of a million draws
python benchmarks/startup.py subset                 # select, 20,000 of 200,000
python benchmarks/startup.py online --prompts 200   # embed, search and weigh the sample's prompts
python benchmarks/startup.py train                  # against what the train stage loads anyway

``online`` needs data/prompts, data/density and models/encoder, ``train`` data/density and
models/policy (`dvc repro density models`). Times are medians of interleaved rounds, files in the
page cache. A busy machine stretches the clock, but hardly the processor's time, which ``load``
gives too. ``train`` runs in processes of its own and times the least that any trainer does first:
importing TRL's and loading the policy. What comes on top (the reward model, the optimiser, the
first completions) would make the share of the weights smaller still.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import isodense
from isodense.neighbors.graph import Graph
from isodense.pipeline import artifact as artifacts
from isodense.pipeline.artifact import ids_sha256, publishing, write_manifest
from isodense.prompts.reader import load_prompts
from isodense.sampling.weights import CLUSTERS, DENSITY, HELDOUT_DENSITY, IDS, WEIGHTS

PROMPTS, FROZEN = Path("data/prompts"), Path("data/density")
ENCODER, POLICY = Path("models/encoder"), Path("models/policy")
DRAWS = 1024  # of an epoch


def main() -> None:
    """Run the benchmarks asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "part",
        nargs="?",
        choices=("all", "load", "epoch", "subset", "online", "train"),
        default="all",
    )
    parser.add_argument("--sizes", default="10000,100000,1000000", help="of load")
    parser.add_argument("--rounds", type=int, default=21, help="of load, epoch")
    parser.add_argument("--prompts", type=int, help="of online; all training prompts by default")
    args = parser.parse_args()
    if args.part in ("all", "load"):
        load([int(size) for size in args.sizes.split(",")], args.rounds)
    if args.part in ("all", "epoch"):
        epoch(1_000_000, args.rounds)
    if args.part in ("all", "subset"):
        subset(200_000, 20_000)
    if args.part in ("all", "online"):
        online(args.prompts)
    if args.part in ("all", "train"):
        train()
    names = ("numpy", "torch", "transformers", "trl")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}")
    print(versions)


# --- loading --------------------------------------------------------------------------------------


def load(sizes: list[int], rounds: int) -> None:
    """Time what training does with density weights and with uniform ones, in turn."""
    titles = "prompts | `load_weights`, ms | sampler, ms | first draw, ms"
    print(f"| {titles} | uniform: sampler | first draw | **density adds, ms** | of it CPU |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            artifact = Path(folder, str(size))
            write(artifact, size)
            times = np.array([one_round(artifact, size) for _ in range(rounds)]) * 1000
            wall, cpu = np.median(times[:, :3].sum(axis=1) - times[:, 3:].sum(axis=1), axis=0)
            cells = " | ".join(f"{found:.2f}" for found in np.median(times[:, :, 0], axis=0))
            print(f"| {size:,} | {cells} | **{wall:.1f}** | {cpu:.1f} |", flush=True)
    print()


def one_round(artifact: Path, size: int) -> list[tuple[float, float]]:
    """Return the seconds of each column, by the clock and of the processor."""
    artifacts._hashed.clear()  # as in a new process, which has hashed no file yet
    read, weights = timed(lambda: isodense.load_weights(artifact))
    built, sampler = timed(lambda: isodense.DistributedWeightedSampler(weights.weights, DRAWS))
    drawn, _ = timed(lambda: next(iter(sampler)))
    even, sampler = timed(lambda: isodense.DistributedWeightedSampler(np.ones(size), DRAWS))
    even_drawn, _ = timed(lambda: next(iter(sampler)))
    return [read, built, drawn, even, even_drawn]


def timed(run: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Return the seconds of a call, by the clock and of this thread's processor, and its result."""
    begin, cpu = time.perf_counter(), time.thread_time()
    result = run()
    return (time.perf_counter() - begin, time.thread_time() - cpu), result


def write(folder: Path, size: int) -> None:
    """Write a density artifact of made weights and ids, as the stage would."""
    rng = np.random.default_rng(0)
    ids = [f"{high:016x}{low:016x}" for high, low in rng.integers(2**63, size=(size, 2)).tolist()]
    weights = rng.lognormal(sigma=0.5, size=size)
    with publishing(folder) as made:
        np.save(made / WEIGHTS, (weights / weights.sum()).astype(np.float32))
        np.save(made / DENSITY, -np.log(weights).astype(np.float32))
        np.save(made / CLUSTERS, np.arange(size, dtype=np.int32))
        np.save(made / IDS, np.array(ids, dtype="S32"))
        np.save(made / HELDOUT_DENSITY, np.empty(0, dtype=np.float32))
        write_manifest(made, "density", rows=size, ids_sha256=ids_sha256(ids))


# --- epochs and subsets ---------------------------------------------------------------------------


def epoch(size: int, rounds: int) -> None:
    """Time the first batch of an epoch of as many draws as prompts, in turn with all of it."""
    weights = np.random.default_rng(0).lognormal(sigma=0.5, size=size)
    print(f"| epoch of {size:,} draws | first batch, ms | all draws first, ms |")
    print("| --- | ---: | ---: |")
    for title, mode in (
        ("with replacement", (True, 0.0)),
        ("a tenth uniform", (True, 0.1)),
        ("without replacement", (False, 0.0)),
    ):
        times = []
        for _ in range(rounds):
            sampler = isodense.DistributedWeightedSampler(weights, size, 1, 0, 0, *mode)
            stream = iter(sampler)
            (batch, _), _ = timed(lambda stream=stream: [next(stream) for _ in range(8)])
            (whole, _), _ = timed(lambda mode=mode: isodense.draw(weights, size, 0, 0, *mode))
            times.append((batch, whole))
        batch, whole = np.median(times, axis=0) * 1000
        print(f"| {title} | {batch:.1f} | {whole:.0f} |", flush=True)
    print()


def subset(n: int, size: int, k: int = 20) -> None:
    """Time `isodense.select` on a made graph of random neighbours."""
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, n // (k + 1), size=(n, k)), axis=1)  # to distinct rows
    indices = ((np.arange(n)[:, None] + steps) % n).astype(np.int32)
    distances = np.sort(rng.random((n, k), dtype=np.float32), axis=1)
    weights = rng.lognormal(sigma=0.5, size=n)
    (seconds, _), _ = timed(lambda: isodense.select(weights, Graph(indices, distances), size))
    print(f"select: {size:,} of {n:,}, k = {k}: {seconds:.1f} s\n", flush=True)


# --- online ---------------------------------------------------------------------------------------


def online(count: int | None) -> None:
    """Time embedding, search and weights of the sample, and reading the same from the artifact."""
    texts = load_prompts(PROMPTS).split("train").texts
    chosen = texts[:count]
    times = {}
    times["load the encoder"], encoder = timed(lambda: isodense.load_encoder(ENCODER))
    times["embed"], X = timed(lambda: encoder.encode(chosen))
    times["search neighbours"], graph = timed(lambda: isodense.knn_graph(X))
    times["density and weights"], weights = timed(lambda: isodense.density_weights(graph))
    frozen = isodense.load_weights(FROZEN).weights
    read = np.median([timed(lambda: isodense.load_weights(FROZEN))[0][0] for _ in range(21)])
    print(f"| weights of {len(chosen):,} prompts, computed by the run | s |\n| --- | ---: |")
    for name, (seconds, _) in times.items():
        print(f"| {name} | {seconds:.2f} |")
    total = sum(seconds for seconds, _ in times.values())
    print(f"| all | {total:.2f} |")
    print(f"| `load_weights`, of {len(frozen):,} | **{read:.4f}** |")
    if len(chosen) == len(frozen):
        apart = np.max(np.abs(weights / frozen - 1))
        print(f"\nthe same weights: largest relative difference {apart:.1e}")
    print(f"\nreading is {total / read:,.0f} times faster\n", flush=True)


# --- share of a training run's start-up -----------------------------------------------------------

CALL = """
import json, sys, time
start = time.perf_counter()
import trl.trainer.grpo_trainer
from isodense.models.inference.policy import load_policy
imported = time.perf_counter()
load_policy(sys.argv[1])
loaded = time.perf_counter()
import isodense
weights = isodense.load_weights(sys.argv[2])
sampler = isodense.DistributedWeightedSampler(weights.weights, int(sys.argv[3]))
plan = isodense.draw(weights.weights, int(sys.argv[3]))
print(json.dumps([imported - start, loaded - imported, time.perf_counter() - loaded]))
"""


def train(rounds: int = 3) -> None:
    """Time, in fresh processes, what comes before the first step at the default size."""
    section = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["train"]
    draws = section["max_steps"] * section["prompts_per_step"]
    command = [sys.executable, "-c", CALL, str(POLICY), str(FROZEN), str(draws)]
    runs = []
    for _ in range(rounds):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    imports, policy, weights = np.median(runs, axis=0)
    print(f"| start of training, {draws} draws, a fresh process | s |\n| --- | ---: |")
    print(f"| import TRL's GRPO trainer | {imports:.2f} |")
    print(f"| load the policy | {policy:.2f} |")
    print(f"| `load_weights`, sampler and plan, their imports too | {weights:.4f} |")
    share = weights / (imports + policy)
    print(f"\nshare of the weights, at most: {share:.2%}\n", flush=True)


if __name__ == "__main__":
    main()
