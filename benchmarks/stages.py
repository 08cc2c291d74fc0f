"""Time and memory of every stage, from a forced run of the pipeline.

Usage
-----
python benchmarks/stages.py             # runs `dvc repro --force`, then prints a Markdown table
python benchmarks/stages.py --no-run    # prints the table of the last run
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import yaml


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-run", action="store_true", help="use the last run's logs")
    if not parser.parse_args().no_run:
        subprocess.run(["dvc", "repro", "--force"], check=True)
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    logs = {name: json.loads(Path(f"logs/{name}.json").read_text()) for name in stages}
    print("| stage | seconds | peak memory, MiB |\n| --- | ---: | ---: |")
    for name, log in logs.items():
        print(f"| `{name}` | {log['seconds']:.1f} | {log['peak_rss_mib']:,} |")
    seconds = sum(log["seconds"] for log in logs.values())
    peak = max(log["peak_rss_mib"] for log in logs.values())
    print(f"| all | {seconds:.0f} | {peak:,} |\n")
    last = logs["train"]
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    print(f"{last['cpus']} CPUs, {last['machine']}, Python {last['python']}; {versions}.")


if __name__ == "__main__":
    main()
