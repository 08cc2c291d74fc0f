"""Neighbours of many rows from disk: the inverted file with memory bounded by a block.

Usage
-----
python benchmarks/lists.py --rows 1_000_000 --folder DIR
nice -n 10 python benchmarks/lists.py --rows 10_000_000 --folder DIR >> lists.log 2>&1

Takes up where it was cut off: what is in the folder is not made again. 10 million rows of 384
float16 numbers take 16 GB of disk there, and the graph 8 bytes for each neighbour.

The vectors are made, a piece from its number alone: groups of some 4,096 rows, 64 clusters in each,
whose centres and rows vary along 24 directions of the group by as much, so that clusters run into
each other, and noise in all 384. Recall is audited on other rows than it was tuned on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from isodense.neighbors.exact import in_threads, nearest
from isodense.neighbors.graph import Graph, recall
from isodense.neighbors.lists import Lists, OnDisk, enough_probes, sort_to_disk, unit

DIM, PIECE = 384, 2**16
ROWS = 2**17  # queries of a block that is kept: they look into most lists, and so read all rows


def main() -> None:
    """Make, sort, search and audit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--aim", type=float, default=0.96, help="recall to tune for")
    parser.add_argument("--sample", type=int, default=1000, help="rows that recall is measured on")
    parser.add_argument("--blocks", type=int, help="search so many, for a first look")
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    run = Run(args.folder, args.rows, args.k)
    run.make()
    lists = run.fit()
    rows = run.sort(lists)
    run.search(lists, rows, run.probes(lists, args.sample, args.aim), args.blocks)
    run.audit(args.sample)


class Run:
    """One folder of vectors, lists, blocks and what was measured.

    Parameters
    ----------
    folder : Path
    rows : int
    k : int
    """

    def __init__(self, folder: Path, rows: int, k: int) -> None:
        self.folder, self.rows, self.k = folder, rows, k
        self.made = folder / "made"
        self.begin = time.perf_counter()

    def log(self, text: str) -> None:
        """Print a line with the time and the peak of memory."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak //= 1024 ** (1 + (sys.platform == "darwin"))
        used = time.process_time()
        now = time.perf_counter() - self.begin
        print(f"{now:8.0f} s, {used:8.0f} CPU s, peak {peak:,} MiB: {text}", flush=True)

    def read(self) -> Iterator[np.ndarray]:
        """Yield all rows, a piece at a time."""
        for start in range(0, self.rows, PIECE):
            count = min(PIECE, self.rows - start)
            yield OnDisk(self.made, DIM).read(start, start + count)

    def halves(self) -> Iterator[np.ndarray]:
        """Yield all rows as they are on disk."""
        for start in range(0, self.rows, PIECE):
            count = min(PIECE, self.rows - start) * DIM
            found = np.fromfile(self.made, "float16", count, offset=start * DIM * 2)
            yield found.reshape(-1, DIM)

    def make(self) -> None:
        """Write the vectors."""
        if self.made.exists() and self.made.stat().st_size == self.rows * DIM * 2:
            return
        with self.made.open("wb") as stream:
            for number, start in enumerate(range(0, self.rows, PIECE)):
                count = min(PIECE, self.rows - start)
                piece(number, self.rows)[:count].astype(np.float16).tofile(stream)
        self.log(f"{self.rows:,} rows made")

    def fit(self) -> Lists:
        """Return the lists."""
        path = self.folder / "lists.safetensors"
        if not path.exists():
            lists = Lists.fit(self.read, self.rows, seed=0)
            lists.save(path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
            sizes = np.diff(lists.offsets)
            self.log(
                f"{len(lists):,} lists of {sizes.mean():.0f} rows, the longest {sizes.max():,}"
            )
        return Lists.load(path)

    def sort(self, lists: Lists) -> OnDisk:
        """Return the vectors sorted by list."""
        path = self.folder / "sorted"
        if not path.exists():
            sort_to_disk(self.halves, lists, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
            self.log("sorted by list")
        return OnDisk(path, DIM)

    def exact(self, rows: np.ndarray) -> tuple[np.ndarray, Graph]:
        """Return the vectors of a sample of rows and their exact neighbours, piece by piece."""
        sample = len(rows)
        queries = np.concatenate([OnDisk(self.made, DIM).read(row, row + 1) for row in rows])
        best = Graph.empty(sample, 0)
        for number, X in enumerate(self.read()):
            start = number * PIECE
            own = np.where((rows >= start) & (rows < start + len(X)), rows - start, -1)
            k = min(self.k, len(X) - 1)
            found = nearest(queries, X, k, own=own, device="cpu", block=512, done=lambda _: None)
            indices = np.concatenate([best.indices, found.indices + np.int32(start)], axis=1)
            distances = np.concatenate([best.distances, found.distances], axis=1)
            order = np.argsort(distances, axis=1, kind="stable")[:, : self.k]
            best = Graph(
                np.take_along_axis(indices, order, 1), np.take_along_axis(distances, order, 1)
            )
        return queries, best

    def probes(self, lists: Lists, sample: int, aim: float) -> int:
        """Return how many lists to probe."""
        path = self.folder / "probes.json"
        if not path.exists():
            queries, exact = self.exact(_sample(np.arange(self.rows), sample, seed=1))
            probes, reached = enough_probes(lists, queries, exact.indices, aim)
            path.write_text(json.dumps({"probes": probes}))
            self.log(f"{probes} of {len(lists):,} lists give recall {reached:.4f} on a sample")
        return int(json.loads(path.read_text())["probes"])

    def search(self, lists: Lists, rows: OnDisk, probes: int, most: int | None) -> None:
        """Search the blocks that are missing, two at a time where BLAS has two threads."""
        starts = range(0, self.rows, ROWS)
        todo = [start for start in starts if not self.block(start).exists()][:most]
        begin, used, count = time.perf_counter(), time.process_time(), 0

        def one(start: int) -> int:
            stop = min(start + ROWS, self.rows)
            own, queries = lists.order[start:stop], rows.read(start, stop)
            graph = lists.search_block(rows, queries, own, self.k, probes)
            part = self.block(start).with_suffix(f".{os.getpid()}")
            save_file({"indices": graph.indices, "distances": graph.distances}, part)
            part.rename(self.block(start))
            return len(own)

        for done in in_threads(one, todo):
            count += done
            rate = count / (time.perf_counter() - begin)
            each = (time.process_time() - used) / count
            left = (len(todo) * ROWS - count) / rate / 60
            share = f"{count:,} rows searched, {rate:,.0f} rows/s, {1e6 * each:.0f} CPU us each"
            self.log(f"{share}, {left:.0f} min left")

    def block(self, start: int) -> Path:
        """Return where a block is kept."""
        return self.folder / f"block-{start:09d}.safetensors"

    def audit(self, sample: int) -> None:
        """Print the recall on rows that it was not tuned on, of the blocks that were searched."""
        lists = self.fit()
        starts = [start for start in range(0, self.rows, ROWS) if self.block(start).exists()]
        if not starts:
            return
        searched = np.concatenate([lists.order[start : start + ROWS] for start in starts])
        rows = _sample(searched, sample, seed=2)
        _, exact = self.exact(rows)
        place = np.flatnonzero(np.isin(lists.order, rows))
        found = Graph.empty(len(rows), self.k)
        for start in starts:
            inside = place[(place >= start) & (place < start + ROWS)]
            block = load_file(self.block(start))
            where = np.searchsorted(rows, lists.order[inside])
            found.indices[where] = block["indices"][inside - start]
            found.distances[where] = block["distances"][inside - start]
        share = f"of {len(searched):,} of {self.rows:,} rows"
        self.log(f"audited recall {recall(found, exact):.4f} on {len(rows)} {share}")


def _sample(rows: np.ndarray, size: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(rows, size, replace=False))


def piece(number: int, rows: int) -> np.ndarray:
    """Return made rows, float32, from the number of a piece alone."""
    rng = np.random.default_rng([7, number])
    groups = max(1, rows // 4096)
    group = rng.integers(groups, size=PIECE)
    X = np.empty((PIECE, DIM), dtype=np.float32)
    order = np.argsort(group, kind="stable")
    ends = np.searchsorted(group[order], np.arange(groups + 1))
    common = np.random.default_rng(8).normal(size=(256, DIM)).astype(np.float32)  # directions
    for g in np.unique(group):
        members = order[ends[g] : ends[g + 1]]
        local = np.random.default_rng([9, int(g)])
        centre = local.normal(size=16) @ common[local.choice(256, 16, replace=False)] / 4
        axes = common[local.choice(256, 24, replace=False)] / np.sqrt(24)
        clusters = local.normal(size=(64, 24))
        cluster = clusters[rng.integers(64, size=len(members))]
        vary = rng.normal(size=(len(members), 24))
        X[members] = centre + (0.7 * cluster + 0.7 * vary) @ axes
    X += 0.2 * rng.normal(size=X.shape).astype(np.float32)
    return unit(X)


if __name__ == "__main__":
    main()
