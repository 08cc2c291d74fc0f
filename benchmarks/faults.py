"""Lets every step by which a stage writes fail, in every way, and tells what followed.

Usage
-----
python benchmarks/faults.py                                  # a quarter of an hour on two cores
python benchmarks/faults.py --stages density map --all       # each step in each way
python benchmarks/faults.py --docs docs/reliability.md       # the table is put into the page

Each trial is a run of the stage on a tiny project, in which one step fails, and a run without a
fault after it. Ends with 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # threads end at a fork
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "src")]

from tests.faulty import FAULTS, applies
from tests.trials import MEASURED, STAGES, Bench, Trial

COSTLY = {"embeddings": 1, "reward": 1, "difficulty": 1, "train": 2, "evaluate": 1}  # see jobs
START, END = "<!-- faults: start -->\n", "<!-- faults: end -->\n"
Job = tuple[str, int, str]


def jobs(name: str, kinds: list[str], every_fault: bool, every: int) -> Iterator[Job]:
    """Yield the trials of a stage: each step killed and failed in another way, in turn.

    Stages that take seconds have one fault every so many steps, as `COSTLY` says.
    """
    stride = every or (1 if every_fault else COSTLY.get(name, 1))
    for turn, at in enumerate(range(0, len(kinds), stride)):
        possible = [fault for fault in FAULTS if applies(fault, kinds[at])]
        if every_fault:
            chosen = possible
        elif name in COSTLY:
            chosen = [possible[turn % len(possible)]]
        else:
            chosen = ["kill", possible[1 + turn % (len(possible) - 1)]]
        for fault in chosen:
            yield name, at, fault


def bench_of(folder: Path, chosen: list[str]) -> dict[str, Bench]:
    """Return a project for each stage, with what the stage reads: the difficulty has its own."""
    made = {}
    for name, params, stages in (
        ("measured", MEASURED, [stage for stage in chosen if stage == "difficulty"]),
        ("plain", {}, [stage for stage in chosen if stage != "difficulty"]),
    ):
        if stages:
            (folder / name).mkdir()
            bench = Bench(folder / name, params)
            bench.build([stage for stage in bench.stages if stage in stages][-1])
            made |= dict.fromkeys(stages, bench)
    return made


def tried(
    benches: dict[str, Bench], work: list[Job], folder: Path, workers: int
) -> list[tuple[str, Trial]]:
    """Do all trials in so many processes."""
    found: list[tuple[str, Trial]] = []
    pids = {}
    for number in range(workers):
        result = folder / f"trials-{number}"
        pid = os.fork()
        if not pid:
            try:
                mine = [(job[0], benches[job[0]].trial(*job)) for job in work[number::workers]]
                result.write_bytes(pickle.dumps(mine))
            except BaseException:  # noqa: BLE001 - the child ends here, whatever it was
                traceback.print_exc()
            finally:
                os._exit(0)
        pids[pid] = result
    for pid, result in pids.items():
        os.waitpid(pid, 0)
        found += pickle.loads(result.read_bytes())  # noqa: S301 - written by a child
    return found


def table(trials: list[tuple[str, Trial]]) -> str:
    """Return the table by stage and fault."""
    groups: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for name, trial in trials:
        groups[name, trial.fault].append(trial)
    lines = [
        "| stage | fault | points | killed | one line | finished | left: old | new | none "
        "| some of each | pieces kept | wrong |",
        "| --- | --- |" + " ---: |" * 10,
    ]
    groups["**all**", ""] = [trial for _, trial in trials]
    for (name, fault), group in groups.items():
        ended, left = Counter(t.ended for t in group), Counter(t.left for t in group)
        cells = [
            len(group),
            *(ended[word] for word in ("killed", "one line", "finished")),
            *(left[word] for word in ("old", "new", "none", "some of each")),
            sum(trial.kept for trial in group),
            sum(bool(trial.wrong) for trial in group),
        ]
        lines.append(f"| {name} | {fault} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the trials and print, or write, the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", help="stages to try, by default all")
    parser.add_argument("--all", action="store_true", help="each step in each way")
    parser.add_argument("--every", type=int, default=0, help="try every so many steps only")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--docs", type=Path, help="page that holds the table")
    args = parser.parse_args()
    began = time.perf_counter()
    memory = Path("/dev/shm")  # noqa: S108 - where there is one
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        chosen = args.stages or list(STAGES)
        benches = bench_of(Path(folder), chosen)
        work = [
            job
            for name in chosen
            for job in jobs(
                name, [kind for kind, _ in benches[name].steps(name)], args.all, args.every
            )
        ]
        trials = tried(benches, work, Path(folder), args.workers)
    order = [(name, fault) for name in chosen for fault in FAULTS]
    trials.sort(key=lambda pair: order.index((pair[0], pair[1].fault)))
    for name, trial in trials:
        for wrong in trial.wrong:
            print(f"{name}, {trial.fault} at {trial.step}: {wrong}", file=sys.stderr)
    minutes = (time.perf_counter() - began) / 60
    text = table(trials)
    print(f"{text}\n{len(trials)} points in {minutes:.1f} minutes")
    if args.docs:
        page = args.docs.read_text(encoding="utf-8")
        head, rest = page.split(START)
        args.docs.write_text(head + START + "\n" + text + "\n" + END + rest.split(END)[1], "utf-8")
    return any(trial.wrong for _, trial in trials)


if __name__ == "__main__":
    sys.exit(main())
