"""The map at 2,000, 100,000 and a million prompts: seconds, memory, and what it keeps.

Usage
-----
python benchmarks/map.py                           # all sizes; a quarter of an hour
python benchmarks/map.py --sizes 2000,100000
python benchmarks/map.py --epochs 50               # instead of the rounds chosen by size

The points are made: clusters whose sizes follow a power law, in 6 dimensions, where a tree finds
exact neighbours of a million in minutes. The stage ``map`` runs as it is, in a process of its own;
then the neighbours of a sample are compared: ``kept`` is the share of a prompt's 15 nearest that
are among its 15 nearest in the plane, ``chance`` the same after the coordinates were shuffled.
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
from pathlib import Path

import numpy as np
import yaml
from scipy.spatial import cKDTree

from isodense.map.reader import load_coordinates
from isodense.neighbors.graph import (
    DISTANCES,
    HELDOUT_DISTANCES,
    HELDOUT_INDICES,
    INDICES,
    Graph,
)
from isodense.pipeline.artifact import ids_sha256, write_manifest
from isodense.prompts.deduplicate import write as write_prompts

DIM, K, SAMPLE = 6, 15, 2000
STAGE = Path(__file__).resolve().parents[1] / "stages" / "map.py"


def main() -> None:
    """Measure the sizes asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="2000,100000,1000000", help="prompts")
    parser.add_argument("--epochs", type=int, default=None, help="rounds; chosen by size if absent")
    args = parser.parse_args()
    print("| prompts | map, s | peak, MiB | kept | chance |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for size in (int(size) for size in args.sizes.split(",")):
        report(exact_graph(points(size)), args.epochs)
    names = ("umap-learn", "numba", "numpy", "scipy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"\n{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}")
    print(versions)


def points(rows: int, seed: int = 0) -> np.ndarray:
    """Return clustered points, about a hundred to a cluster, float64."""
    rng = np.random.default_rng(seed)
    clusters = max(1, rows // 100)
    shares = np.cumsum(1 / np.arange(1, clusters + 1))
    of = np.searchsorted(shares, rng.random(rows) * shares[-1])
    centres, spread = rng.normal(size=(clusters, DIM)), rng.uniform(0.05, 0.3, size=(clusters, 1))
    return centres[of] + spread[of] * rng.normal(size=(rows, DIM))


def exact_graph(X: np.ndarray) -> Graph:
    """Return the nearest neighbours of all points, in units that keep distances below 2."""
    distances, indices = cKDTree(X).query(X, K + 1, workers=2)
    distances = distances[:, 1:] * (2 / distances.max())
    return Graph(indices[:, 1:].astype(np.int32), distances.astype(np.float32))


def report(graph: Graph, epochs: int | None) -> None:
    """Lay a graph out and print a line of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, graph)
        took = stage(folder, epochs)
        coordinates = np.array(load_coordinates(folder / "map")[0])
    kept = share_kept(coordinates, graph)
    chance = share_kept(np.random.default_rng(0).permutation(coordinates), graph)
    print(
        f"| {len(graph):,} | {took['seconds']:.0f} | {took['peak_rss_mib']:,} "
        f"| {kept:.3f} | {chance:.4f} |",
        flush=True,
    )


def write(folder: Path, graph: Graph) -> None:
    """Write artifacts of prompts, none held out, and of their neighbours."""
    for part in ("prompts", "neighbors"):
        (folder / part).mkdir()
    ids = [f"{number:032x}" for number in range(len(graph))]
    write_prompts(map(row, ids), {}, None, folder / "prompts")
    np.save(folder / "neighbors" / INDICES, graph.indices)
    np.save(folder / "neighbors" / DISTANCES, graph.distances)
    none = Graph.empty(0, graph.k)
    np.save(folder / "neighbors" / HELDOUT_INDICES, none.indices)
    np.save(folder / "neighbors" / HELDOUT_DISTANCES, none.distances)
    known = {"rows": len(ids), "ids_sha256": ids_sha256(ids)}
    write_manifest(folder / "neighbors", "neighbors", **known, heldout_ids_sha256=ids_sha256([]))


def row(name: str) -> dict[str, object]:
    """Return a row of the prompts artifact."""
    prompt = [{"role": "user", "content": name}]
    return {"id": name, "prompt": prompt, "text": name, "count": 1, "split": "train", "sources": {}}


def stage(folder: Path, epochs: int | None) -> dict[str, float]:
    """Run the stage and return its log."""
    known = yaml.safe_load((STAGE.parents[1] / "params.yaml").read_text(encoding="utf-8"))
    known["map"] = {"neighbors": K, "min_dist": 0.1, "epochs": epochs}
    (folder / "params.yaml").write_text(yaml.safe_dump(known), encoding="utf-8")
    command = [sys.executable, str(STAGE), "--prompts", "prompts", "--neighbors", "neighbors"]
    env = {**os.environ, "CI": "1"}
    done = subprocess.run(
        [*command, "--out", "map"], cwd=folder, env=env, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads((folder / "logs/map.json").read_text(encoding="utf-8"))


def share_kept(coordinates: np.ndarray, graph: Graph) -> float:
    """Return the share of a sample's neighbours that are as near in the plane."""
    rows = np.random.default_rng(0).choice(len(graph), min(SAMPLE, len(graph)), replace=False)
    found = cKDTree(coordinates).query(coordinates[rows], K + 1)[1]
    same = (found[:, :, None] == graph.indices[rows][:, None, :K]).any(axis=1)
    return float(same.mean())


if __name__ == "__main__":
    main()
