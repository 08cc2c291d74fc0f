"""Neighbour search: exact against faiss' flat index, growth of cost with size, start-up, growing.

Usage
-----
python benchmarks/neighbors.py                       # all of it; with a million prompts, an hour
python benchmarks/neighbors.py exact --rows 33698    # ours and faiss.IndexFlat in turn
python benchmarks/neighbors.py scale --sizes 30000,100000,300000,1000000
python benchmarks/neighbors.py start --rows 33000    # each method in a process of its own
python benchmarks/neighbors.py grow                  # append 1% to 50,000 prompts
python benchmarks/neighbors.py weights               # density and weights of a million
python benchmarks/neighbors.py real --vectors X.npy --k 50   # methods on unit rows of your own

The vectors are made: clusters whose sizes follow a power law, in a space of 32 dimensions turned
into 384, a tenth of them near-duplicates of others. ``scale`` runs the stages ``neighbors`` and
``density`` as they are, on artifacts in a temporary folder, each in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from isodense.embeddings.reader import ids_name, shard_name
from isodense.pipeline.artifact import ids_sha256, write_manifest
from isodense.pipeline.tables import write_rows

DIM, LATENT, SHARD = 384, 32, 4096
HELDOUT = 100  # one prompt of so many is held out
STAGES = Path(__file__).resolve().parents[1] / "stages"


def main() -> None:
    """Run the benchmarks asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("all", "exact", "scale", "start", "grow", "weights", "real")
    parser.add_argument("part", nargs="?", choices=parts, default="all")
    parser.add_argument("--rows", type=int, default=33_698, help="of exact and start")
    parser.add_argument("--k", type=int, default=20, help="neighbours")
    parser.add_argument("--rounds", type=int, default=5, help="of exact")
    parser.add_argument("--sizes", default="30000,100000,300000,1000000", help="of scale")
    parser.add_argument("--method", default="ivf", help="of scale; auto is exact up to 80,000")
    parser.add_argument("--recall", type=float, default=0.95, help="floor, of scale")
    parser.add_argument("--vectors", type=Path, help="of real: unit rows, float32")
    args = parser.parse_args()
    if args.part == "real":
        real(args.vectors, args.k)
    if args.part in ("all", "exact"):
        exact(args.rows, args.k, args.rounds)
    if args.part in ("all", "start"):
        start(args.rows, args.k)
    if args.part in ("all", "grow"):
        grow(args.k)
    if args.part in ("all", "weights"):
        weights()
    if args.part in ("all", "scale"):
        scale([int(size) for size in args.sizes.split(",")], args.method, args.k, args.recall)
    names = ("numpy", "faiss-cpu", "pynndescent", "numba")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}")
    print(versions)


# --- vectors --------------------------------------------------------------------------------------


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    """Return clustered unit vectors of known make, float32."""
    return np.concatenate(list(blocks(rows, seed)))


def blocks(rows: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield them a shard at a time; near-duplicates are of rows of the same or an earlier shard."""
    rng = np.random.default_rng(seed)
    clusters = max(1, rows // 100)
    sizes = np.cumsum(1 / np.arange(1, clusters + 1))
    centres = rng.normal(size=(clusters, LATENT))
    spread = rng.uniform(0.3, 0.9, size=clusters)
    turn = rng.normal(size=(LATENT, DIM)) / np.sqrt(LATENT)
    seen = np.empty((0, DIM), dtype=np.float32)
    for begin in range(0, rows, SHARD):
        count = min(SHARD, rows - begin)
        cluster = np.searchsorted(sizes, rng.random(count) * sizes[-1])
        latent = centres[cluster] + spread[cluster, None] * rng.normal(size=(count, LATENT))
        X = unit(latent @ turn + 0.15 * rng.normal(size=(count, DIM)))
        copies = np.flatnonzero(rng.random(count) < 0.1)
        pool = np.concatenate([seen, X])
        noise = rng.uniform(0.001, 0.01, size=(len(copies), 1)) * rng.normal(
            size=(len(copies), DIM)
        )
        X[copies] = unit(pool[rng.integers(len(pool), size=len(copies))] + noise)
        seen = pool[:: max(1, len(pool) // SHARD)]
        yield X


def unit(X: np.ndarray) -> np.ndarray:
    """Return rows of unit length, float32."""
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)


# --- exact ----------------------------------------------------------------------------------------


def exact(rows: int, k: int, rounds: int) -> None:
    """Time our exact search and faiss' flat index in turn, on as many threads."""
    import faiss

    from isodense.neighbors.exact import nearest

    X, own = vectors(rows), np.arange(rows)
    runs = {
        "faiss.knn, float32": lambda: faiss.knn(X, X, k + 1, faiss.METRIC_INNER_PRODUCT),
        "isodense, measured in float64": lambda: nearest(
            X, X, k, own=own, device="cpu", done=lambda _: None
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    first = np.array(seconds[next(iter(runs))])
    print(f"{rows:,} x {DIM}, k = {k}, {faiss.omp_get_max_threads()} threads, {rounds} rounds\n")
    print("| exact search | s, median | s, least | ratio in a round, median |")
    print("| --- | ---: | ---: | ---: |")
    for name, found in seconds.items():
        ratio = np.median(np.array(found) / first)
        print(f"| {name} | {np.median(found):.2f} | {min(found):.2f} | {ratio:.2f} |")
    print()


# --- start-up and growing -------------------------------------------------------------------------

CALL = """
import sys, time, numpy as np
start = time.perf_counter()
import isodense
X = np.load(sys.argv[1])
for word in ("cold", "warm"):
    isodense.knn_graph(X, int(sys.argv[3]), sys.argv[2])
    print(word, round(time.perf_counter() - start, 2))
    start = time.perf_counter()
"""


def start(rows: int, k: int) -> None:
    """Time the first and the second call of each method in a fresh process."""
    print(f"| method, {rows:,} rows | cold, s | warm, s |\n| --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "X.npy")
        np.save(path, vectors(rows))
        for method in ("exact", "ivf", "pynndescent"):
            command = [sys.executable, "-c", CALL, str(path), method, str(k)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            cold, warm = re.findall(r"(?:cold|warm) ([0-9.]+)", done.stdout)
            print(f"| {method} | {cold} | {warm} |", flush=True)
    print()


def grow(k: int, rows: int = 50_000, more: int = 500) -> None:
    """Time the stage from nothing, after an append, and from nothing with what was appended."""
    X = vectors(rows + more)
    seconds, hashes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, count, scratch in (
            ("from nothing", rows, "a"),
            (f"with {more} more, grown", rows + more, "a"),
            (f"with {more} more, from nothing", rows + more, "b"),
        ):
            write(Path(folder), (X[i : i + SHARD] for i in range(0, count, SHARD)))
            run = stage(Path(folder), "neighbors", scratch)
            seconds[name] = run["seconds"]
            files = json.loads(Path(folder, "data/neighbors/manifest.json").read_text())["files"]
            hashes[name] = {file: entry["sha256"] for file, entry in files.items()}
    print(f"| exact graph of {rows:,} | s |\n| --- | ---: |")
    for name, found in seconds.items():
        print(f"| {name} | {found:.1f} |")
    _, grown, rebuilt = hashes.values()
    print(f"\nbytes of the grown graph and the rebuilt one: {'the same' * (grown == rebuilt)}\n")


# --- real vectors ---------------------------------------------------------------------------------

ONE = """
import json, resource, sys, time, numpy as np
X, rows, k = np.load(sys.argv[1]), np.load(sys.argv[2]), int(sys.argv[3])
name, at = sys.argv[4], float(sys.argv[5])
begin, used = time.perf_counter(), time.process_time()
if name == "faiss":
    import faiss
    lists = int(4 * len(X) ** 0.5)
    means = faiss.Kmeans(
        X.shape[1], lists, niter=10, seed=0, max_points_per_centroid=64, spherical=True
    )
    means.train(X)
    flat = faiss.IndexFlatIP(X.shape[1])
    flat.add(means.centroids)
    half, metric = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFScalarQuantizer(flat, X.shape[1], lists, half, metric, False)
    index.train(X[:1])
    index.add(X)
    index.nprobe = int(at)
    found = index.search(X, k + 1)[1]
elif name == "pynndescent":
    from pynndescent import NNDescent
    found = NNDescent(X, metric="dot", n_neighbors=k + 1, random_state=0, n_jobs=2,
        low_memory=True, n_iters=int(at), max_candidates=20).neighbor_graph[0]
else:
    import isodense
    found = isodense.knn_graph(X, k, name, recall_floor=at).indices
seconds, cpu = time.perf_counter() - begin, time.process_time() - used
near = np.asarray(found)[rows].astype(np.int64)
far = np.linalg.norm(X[near].astype(np.float64) - X[rows][:, None], axis=2)
far[(near == rows[:, None]) | (near < 0)] = np.inf
np.save(sys.argv[6], np.sort(far, axis=1)[:, :k])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([seconds, cpu, peak // 1024]))
"""


def real(path: Path, k: int) -> None:
    """Time methods on real vectors, each run in a process of its own, compilation included."""
    from isodense.neighbors.exact import nearest
    from isodense.neighbors.graph import TIE

    X = np.load(path)
    rows = np.sort(np.random.default_rng(5).choice(len(X), 2000, replace=False))
    truth = nearest(X[rows], X, k, own=rows, device="cpu").distances[:, -1:] + TIE
    print(f"| {len(X):,} x {X.shape[1]}, k = {k} | s | CPU s | recall | peak, MiB |")
    print("| --- | ---: | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        sample, found = Path(folder, "rows.npy"), Path(folder, "far.npy")
        np.save(sample, rows)
        for name, at in (
            *(("faiss", probes) for probes in (32, 64, 128)),
            *(("ivf", floor) for floor in (0.75, 0.9, 0.93, 0.96)),
            *(("pynndescent", rounds) for rounds in (3, 5)),
        ):
            command = [sys.executable, "-c", ONE, str(path), str(sample), str(k)]
            command += [name, str(at), str(found)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds, cpu, peak = json.loads(done.stdout)
            share = (np.load(found) <= truth).mean()
            line = f"| {name}, {at:g} | {seconds:.1f} | {cpu:.1f} | {share:.3f} | {peak:,} |"
            print(line, flush=True)
    print()


# --- weights --------------------------------------------------------------------------------------


def weights(rows: int = 1_000_000, copies: int = 100_000) -> None:
    """Time the estimate alone on a made graph with pairs of near-duplicates."""
    from isodense.density.estimate import estimate
    from isodense.density.params import DensityParams
    from isodense.neighbors.graph import Graph
    from isodense.pipeline.params import load

    rng = np.random.default_rng(0)
    indices = rng.integers(rows, size=(rows, 50), dtype=np.int32)
    distances = np.sort(rng.random((rows, 50), dtype=np.float32) ** 0.25, axis=1)
    distances *= rng.uniform(0.3, 1.2, size=(rows, 1)).astype(np.float32)
    one, two = rng.choice(rows, size=(2, copies // 2), replace=False)
    indices[one, 0], indices[two, 0] = two, one
    distances[one, 0] = distances[two, 0] = 0.01
    params = load(STAGES.parent / "params.yaml", "density", DensityParams)
    print(f"| {rows:,} prompts, {copies:,} in pairs of near-duplicates | s, median of 7 |")
    print("| --- | ---: |")
    for k in (20, 50):
        seconds = []
        for _ in range(7):
            begin = time.perf_counter()
            estimate(Graph(indices, distances), params.model_copy(update={"k": k}))
            seconds.append(time.perf_counter() - begin)
        print(f"| density and weights, k = {k} | {np.median(seconds):.2f} |", flush=True)
    print()


# --- scale ----------------------------------------------------------------------------------------


def scale(sizes: list[int], method: str, k: int, floor: float) -> None:
    """Run both stages at each size and fit the exponent of the growth of their time."""
    print("| prompts | neighbors, s | recall | peak, MiB | density, s | peak, MiB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    total = []
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), blocks(rows))
            near = stage(Path(folder), "neighbors", "a", method=method, k_max=k, recall_floor=floor)
            dense = stage(Path(folder), "density", "a", k=k)
            report = json.loads(Path(folder, "neighbors.json").read_text())["neighbors"]
        total.append(near["seconds"] + dense["seconds"])
        print(
            f"| {rows:,} | {near['seconds']:.1f} | {report['recall']:.3f} "
            f"| {near['peak_rss_mib']:,} | {dense['seconds']:.1f} | {dense['peak_rss_mib']:,} |",
            flush=True,
        )
    if len(sizes) > 1:
        exponent = np.polyfit(np.log(sizes), np.log(total), 1)[0]
        print(f"\nseconds of both grow as n^{exponent:.2f} ({method}, k = {k})")
    print()


def write(folder: Path, shards: Iterator[np.ndarray]) -> None:
    """Write artifacts of prompts and embeddings, as the stages before would."""
    prompts, out = folder / "data" / "prompts", folder / "data" / "embeddings"
    for path in (prompts, out):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    ids: list[str] = []
    for number, X in enumerate(shards):
        names = [f"{row:032x}" for row in range(len(ids), len(ids) + len(X))]
        np.save(out / shard_name(number), X)
        (out / ids_name(number)).write_text("\n".join(names), encoding="ascii")
        ids += names
    write_rows(prompts, map(row, ids))
    known = {"rows": len(ids), "ids_sha256": ids_sha256(ids)}
    write_manifest(prompts, "prompts", **known)
    write_manifest(out, "embeddings", **known, dim=DIM, dtype="float32")


def row(name: str) -> dict[str, object]:
    """Return a row of the prompts artifact; which ones are held out does not change with n."""
    number = int(name, 16)
    text = f"prompt {number}"
    prompt = [{"role": "user", "content": text}]
    split = "train" if number % HELDOUT else "heldout"
    return {
        "id": name,
        "prompt": prompt,
        "text": text,
        "count": 1,
        "split": split,
        "sources": {"made": 1},
    }


def stage(folder: Path, name: str, scratch: str, **changed: object) -> dict[str, float]:
    """Run a stage with changed params and return its log."""
    known = yaml.safe_load((STAGES.parent / "params.yaml").read_text(encoding="utf-8"))
    known[name] |= changed
    (folder / "params.yaml").write_text(yaml.safe_dump(known), encoding="utf-8")
    reads = {"neighbors": "embeddings", "density": "neighbors"}[name]
    command = [sys.executable, str(STAGES / f"{name}.py"), "--prompts", "data/prompts"]
    command += [f"--{reads}", f"data/{reads}", "--out", f"data/{name}"]
    command += ["--metrics", f"{name}.json"] + ["--plots", "plots"] * (name == "density")
    env = {**os.environ, "ISODENSE_CACHE": str(folder / scratch), "CI": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads((folder / "logs" / f"{name}.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
