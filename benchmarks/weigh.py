"""How long `isodense weigh` takes, with an empty and with a full cache, in both precisions.

    python benchmarks/weigh.py [prompts.jsonl]

Without a file, prompts are those of the generated sample. Seconds of the processor count what all
threads took together, and say more than the clock where other work runs; both are printed.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

from isodense.download.sources.sample import SampleParams, load

SIZES = (1_000, 10_000)
WEIGH = ("-c", "import sys; from isodense.cli.main import main; sys.exit(main())", "weigh")


def sample(count: int) -> list[str]:
    """Return lines of JSON with prompts of the sample."""
    params = SampleParams(
        pairs=2 * count, exponent=1.0, duplicates=0.0, near_duplicates=0.15, multi_turn=0.0
    )
    rows = load(params, np.random.default_rng(0))
    return [json.dumps({"prompt": row["prompt"]}) for row in islice(rows, count)]


def run(folder: Path, *options: str) -> tuple[float, float]:
    """Return the seconds of a run by the clock and of the processor."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, *WEIGH, "prompts.jsonl", "--output", "weights.parquet", *options],
        cwd=folder,
        env={**os.environ, "ISODENSE_CACHE": str(folder / "cache")},
        check=True,
        capture_output=True,
    )
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the table."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    print("prompts  precision  cache  seconds  of the processor")
    for size in SIZES:
        lines = file.read_text().splitlines()[:size] if file else sample(size)
        for precision in ("float64", "float32"):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                (folder / "prompts.jsonl").write_text("".join(f"{line}\n" for line in lines))
                for cache in ("empty", "full"):
                    clock, cpu = run(folder, "-S", f"embeddings.precision={precision}")
                    row = f"{len(lines):7,}  {precision:9}  {cache:5}  {clock:7.1f}  {cpu:.1f}"
                    print(row, flush=True)


if __name__ == "__main__":
    main()
