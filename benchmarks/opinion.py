"""Does the opinion on the weights name what a set is? Sets made by seed, and rows of your own.

Usage
-----
python benchmarks/opinion.py                                    # needs models/encoder
python benchmarks/opinion.py --rows hwu64.jsonl.gz snips.jsonl.gz gsm8k.jsonl --seeds 3 --first 5

Sets are those of benchmarks/density.py, one Gaussian, uniform directions, and three Gaussians of
different widths. `--rows` are JSONL files of {"text"} or {"text", "label"}, plain or as .gz. Of
each, a random half is taken as it came; with labels, also as many rows of each label, and a tail
(the r-th label, drawn by seed, has 1 / r of what the first has); and of each two files, a half of
both. The last columns say what weights do to labels: entropy under uniform sampling and under the
weights, 1 is even. Each seed is another set; numbers are means over seeds.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from density import PARAMS, SETS, Data, caching, noisy
from isodense.density.balance import label_statistics
from isodense.density.estimate import estimate
from isodense.density.opinion import judge

NUMBERS = {
    "moved": "moved",
    "moved_by_copies": "by copies",
    "contrast": "contrast",
    "between_crowds": "between crowds",
    "between_domains": "between domains",
    "label_entropy_uniform": "labels, uniform",
    "label_entropy": "labels, weights",
}
ROWS, LEAST = 2000, 5  # of a set at most; rows of a label that counts


def main() -> None:
    """Print a line for each set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, nargs="*", default=[], help="JSONL, plain or as .gz")
    parser.add_argument("--encoder", type=Path, default=Path("models/encoder"), help="its folder")
    parser.add_argument("--seeds", type=int, default=3, help="sets of each kind")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--ess", type=float, default=PARAMS.ess)
    args = parser.parse_args()
    params, embed = PARAMS.model_copy(update={"ess": args.ess}), caching(args.encoder)
    files = {path.name.split(".")[0]: load(path, embed) for path in args.rows}
    sets = {name: lambda seed, make=make: make(embed, seed) for name, make in SETS.items()}
    sets |= {"one Gaussian": one, "uniform directions": directions, "three widths": widths}
    sets |= dict(cuts(files))
    print(
        f"| set | case | {' | '.join(NUMBERS.values())} |\n| --- | --- |{' ---: |' * len(NUMBERS)}"
    )
    for name, make in sets.items():
        found = []
        for data in map(make, range(args.first, args.first + args.seeds)):
            weighed, labels = estimate(data.graph, params), data.labels.tolist()
            known = {"label": label_statistics(weighed.weights, labels)}
            found.append(judge(weighed, data.graph, params, known))
        cases = Counter(one["case"] for one in found).most_common()
        shown = ", ".join(case if len(cases) == 1 else f"{case} ({times})" for case, times in cases)
        means = [np.mean([one.get(number, np.nan) for one in found]) for number in NUMBERS]
        cells = ["" if np.isnan(mean) else f"{mean:,.2f}" for mean in means]
        print(f"| {name} | {shown} | {' | '.join(cells)} |", flush=True)


def one(seed: int) -> Data:
    """Draw a Gaussian around one direction, in 16 dimensions."""
    X = noisy(np.eye(1, 16).repeat(ROWS, 0), 0.6, np.random.default_rng(seed))
    return Data(X, np.full(ROWS, "all"))


def directions(seed: int) -> Data:
    """Draw uniform directions in 8 dimensions."""
    return Data(noisy(np.zeros((ROWS, 8)), 1.0, np.random.default_rng(seed)), np.full(ROWS, "all"))


def widths(seed: int) -> Data:
    """Draw three Gaussians of one size around random directions, each twice as wide as the last."""
    rng = np.random.default_rng(seed)
    centres = noisy(np.zeros((3, 16)), 1.0, rng)
    parts = [noisy(centres[[i]].repeat(600, 0), 0.15 * 2**i, rng) for i in range(3)]
    return Data(np.concatenate(parts), np.repeat(["0", "1", "2"], 600))


def load(path: Path, embed: Callable[[list[str]], np.ndarray]) -> Data:
    """Embed the rows of a file; without labels, all have its name."""
    read = gzip.open if path.suffix == ".gz" else open
    with read(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    labels = np.array([row.get("label", path.name) for row in rows])
    return Data(embed([row["text"] for row in rows]), labels, np.arange(len(rows)))


def cuts(files: dict[str, Data]) -> Iterator[tuple[str, Callable[[int], Data]]]:
    """Yield what is cut from files of rows."""
    for name, data in files.items():
        yield f"{name}, as it came", lambda seed, data=data: half(data, seed)
        if len(set(data.labels)) > 1:
            yield f"{name}, even", lambda seed, data=data: cut(data, 0.0, seed)
            yield f"{name}, tail", lambda seed, data=data: cut(data, 1.0, seed)
    for first, second in itertools.combinations(files, 2):
        pair = files[first], files[second]
        yield f"{first} and {second}", lambda seed, pair=pair: mixed(*pair, seed)


def half(data: Data, seed: int) -> Data:
    """Take half of the rows at random, or as many as a set may have."""
    rows = np.random.default_rng(seed).permutation(len(data.X))[: min(len(data.X) // 2, ROWS)]
    return Data(data.X[rows], data.labels[rows])


def cut(data: Data, exponent: float, seed: int) -> Data:
    """Take rows of each label by a power law of their ranks, which are drawn by seed."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(data.labels == label) for label in sorted(set(data.labels))]
    groups = [group for group in groups if len(group) >= LEAST]
    top = min(map(len, groups)) if exponent == 0 else max(map(len, groups))
    top = min(top, ROWS // len(groups)) if exponent == 0 else min(top, ROWS)
    sizes = [max(LEAST, int(top / rank**exponent)) for rank in range(1, len(groups) + 1)]
    order = [groups[place] for place in rng.permutation(len(groups))]
    rows = np.concatenate(
        [
            rng.choice(group, min(size, len(group)), False)
            for group, size in zip(order, sizes, strict=True)
        ]
    )
    return Data(data.X[rows], data.labels[rows])


def mixed(first: Data, second: Data, seed: int) -> Data:
    """Put halves of two files together; the label is the file."""
    parts = [half(first, seed), half(second, seed)]
    labels = np.repeat(["first", "second"], [len(part.X) for part in parts])
    return Data(np.concatenate([part.X for part in parts]), labels)


if __name__ == "__main__":
    main()
