"""Time and memory of reading rows of any format, and of the stages `download` and `prompts`.

Usage
-----
python benchmarks/download.py                    # a million rows; some minutes, 2 GB of disk
python benchmarks/download.py --rows 100000

Rows have a question and an answer, about 300 bytes together, all different. Each line of the table
is a process of its own: its peak memory is of all it has loaded, Python and libraries included.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from isodense.pipeline.stage import peak_rss

ROOT = Path(__file__).resolve().parents[1]
FORMATS = ("jsonl", "jsonl.gz", "json", "csv", "parquet")


def main() -> None:
    """Write the files, and time each in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read_one(args.read)
        return
    if args.write:
        write(args.write, args.rows)
        return
    own = [sys.executable, __file__]
    print(
        "| what | rows/s | seconds | peak memory, MiB |\n| --- | ---: | ---: | ---: |", flush=True
    )
    with tempfile.TemporaryDirectory() as folder:
        for suffix in FORMATS:
            path = Path(folder, f"rows.{suffix}")
            # A process begins with the peak of the one that it comes from: this one stays small.
            subprocess.run([*own, "--write", str(path), "--rows", str(args.rows)], check=True)
            line(f"read `.{suffix}`", args.rows, *own, "--read", str(path))
            if suffix != "jsonl":
                path.unlink()
        run_stages(Path(folder), args.rows)
    versions = ("pyarrow", "datasets")
    named = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in versions)
    print(
        f"\n{os.cpu_count()} CPUs, {platform.machine()}, Python {sys.version.split()[0]}; {named}."
    )


def rows(count: int) -> Iterator[dict[str, str]]:
    """Yield that many different rows."""
    for number in range(count):
        what = f"{number} clips to {number % 97} of her friends in April, and half as many in May"
        yield {
            "question": f"Natalia sold {what}. How many clips did Natalia sell altogether then?",
            "answer": f"She sold {number}/2 = {number / 2} clips in May, and {number} before. " * 2
            + f"\n#### {number * 3 // 2}",
        }


def write(path: Path, count: int) -> None:
    """Write the rows in the format that the name says; parquet as one row group."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(list(rows(count))), path, row_group_size=count)
        return
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as stream:
        if path.suffix == ".csv":
            table = csv.DictWriter(stream, ["question", "answer"])
            table.writeheader()
            table.writerows(rows(count))
            return
        lines = map(json.dumps, rows(count))
        if path.suffix == ".json":
            first = next(lines)
            stream.write(f"[{first}")
            stream.writelines(f",\n{text}" for text in lines)
            stream.write("]\n")
        else:
            stream.writelines(f"{text}\n" for text in lines)


def read_one(path: Path) -> None:
    """Read a file as the source `local` does and print what it took."""
    from isodense.download.files import read

    def bad(error: Exception) -> None:
        raise error

    start = time.perf_counter()
    count = sum(1 for _ in read(path, bad))
    seconds = time.perf_counter() - start
    print(json.dumps({"rows": count, "seconds": seconds, "peak_rss_mib": peak_rss() >> 20}))


def line(what: str, count: int, *command: str) -> None:
    """Run a process that prints what it took, and print its line of the table."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took = json.loads(done.stdout.splitlines()[-1])
    if took["rows"] != count:
        sys.exit(f"{what}: {took['rows']:,} rows of {count:,}")
    show(what, count, took["seconds"], took["peak_rss_mib"])


def show(what: str, count: int, seconds: float, peak: int) -> None:
    """Print a line of the table."""
    print(f"| {what} | {count / seconds:,.0f} | {seconds:.1f} | {peak:,} |", flush=True)


def run_stages(folder: Path, count: int) -> None:
    """Run the scripts of both stages on the JSON lines, as DVC does."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["download"]["sources"] = ["local"]
    params["download"]["local"]["files"] = ["rows.jsonl"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    flags = {
        "download": "--raw . --out data/examples --metrics download.json",
        "prompts": "--examples data/examples --out data/prompts --metrics prompts.json",
    }
    for stage, words in flags.items():
        script = ROOT / "stages" / f"{stage}.py"
        command = [sys.executable, str(script), *words.split()]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        log = json.loads((folder / "logs" / f"{stage}.json").read_text(encoding="utf-8"))
        show(f"stage `{stage}`", count, log["seconds"], log["peak_rss_mib"])


if __name__ == "__main__":
    main()
