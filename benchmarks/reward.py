"""How long fitting the reward's linear head takes, and how much memory, on made features.

Usage
-----
python benchmarks/reward.py --pairs 200000 --dim 256

The features are in a file, as the stage has them; the part of the peak that is that file, mapped,
is given up when others need the memory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from isodense.pipeline.stage import peak_rss
from isodense.reward.linear_probe import fit_head

BLOCK = 10_000  # pairs made at once


def main() -> None:
    """Make features, fit a head and print what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=256)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "features.npy")
        making = get_context("spawn").Process(target=write, args=(path, args.pairs, args.dim))
        making.start()  # not in this process, whose memory counts
        making.join()
        rows = np.load(path, mmap_mode="r")
        begin = time.perf_counter()
        with threadpool_limits(1):
            fit_head(*np.split(rows, 2), 0.01, np.ones(args.pairs))
        seconds = time.perf_counter() - begin
    print("| pairs × dimensions | features, MiB | fit, s | peak, MiB |")
    print("| ---: | ---: | ---: | ---: |")
    size = f"{args.pairs:,} × {args.dim}"
    print(f"| {size} | {rows.nbytes / 2**20:.0f} | {seconds:.1f} | {peak_rss() / 2**20:.0f} |")


def write(path: Path, pairs: int, dim: int) -> None:
    """Write features of pairs that a known head prefers, chosen answers first."""
    rng = np.random.default_rng(0)
    head = rng.normal(size=dim).astype(np.float32) / 16
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (2 * pairs, dim))
    for start in range(0, pairs, BLOCK):
        size = min(BLOCK, pairs - start)
        one, other = rng.normal(size=(2, size, dim)).astype(np.float32)
        wins = (rng.random(size) < 1 / (1 + np.exp((other - one) @ head)))[:, None]
        rows[start : start + size] = np.where(wins, one, other)
        rows[pairs + start : pairs + start + size] = np.where(wins, other, one)
    rows.flush()


if __name__ == "__main__":
    main()
