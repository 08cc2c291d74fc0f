"""Neighbours of a million real vectors: short requests, recombined by seed, embedded with MiniLM.

Usage
-----
python benchmarks/million.py texts --real DIR --out FOLDER    # 15 seconds
python benchmarks/million.py embed --out FOLDER               # half an hour on two free cores
python benchmarks/million.py search --out FOLDER --rows 80000,200000,1000000

DIR has `intents/hwu64.jsonl.gz`, `intents/slurp_devel_test.jsonl.gz` and `intents/snips.jsonl.gz`,
rows {"text", "label"}, and `hh-harmless-base-test.jsonl.gz`, rows {"chosen", "rejected"}. Real
sentences stay as they are, and a made one is the beginning of one and the end of another, of the
same label twice out of three times: short, and like a request. Their order is random, so that the
first n are a random sample. ``embed`` runs the stage in float32; if it is cut off, the next call
goes on. ``search`` runs each method in a process of its own, compilation included; recall is that
of a thousand rows. Processor seconds are of all threads, and hardly change when other jobs run.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

import isodense
from isodense.embeddings.reader import load_vectors
from isodense.neighbors.exact import nearest
from isodense.neighbors.graph import recall
from isodense.pipeline.artifact import ids_sha256, write_manifest
from isodense.pipeline.stage import peak_rss
from isodense.pipeline.tables import write_rows
from isodense.prompts.conversations import prompt_id

ROOT = Path(__file__).resolve().parents[1]
INTENTS = ("hwu64", "slurp_devel_test", "snips")
HH = "hh-harmless-base-test.jsonl.gz"
WORDS = range(4, 17)  # of a text
K = 50
SAME = 2 / 3  # of made texts whose two parts have one label


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("texts", "embed", "search", "one"))
    parser.add_argument("--real", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", default="1000000", help="with commas between for search")
    parser.add_argument("--methods", default="ivf:0.95,pynndescent:0.95,pynndescent:0.8")
    parser.add_argument("--encoder", type=Path, default=Path("models/encoder"))
    args = parser.parse_args()
    if args.part == "texts":
        write_texts(args.out / "data/prompts", recombined(sentences(args.real), int(args.rows)))
    elif args.part == "embed":
        embed(args.out, args.encoder)
    elif args.part == "one":
        one(args.out, int(args.rows), *args.methods.split(":"))
    else:
        search(args.out, args.rows.split(","), args.methods.split(","))


def sentences(real: Path) -> list[tuple[str, str]]:
    """Return distinct real sentences, with the label or the corpus they come from."""
    found: dict[str, tuple[str, str]] = {}
    for name in INTENTS:
        with gzip.open(real / "intents" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                found.setdefault(
                    row["text"].casefold().strip(), (row["text"].strip(), row["label"])
                )
    with gzip.open(real / HH, "rt", encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            for side in ("chosen", "rejected"):
                for turn in re.split(r"\n\n(?:Human|Assistant): ", row[side]):
                    for text in re.split(r"(?<=[.!?])\s+|\n+", turn):
                        if len(text.split()) in WORDS:
                            found.setdefault(text.casefold(), (text, "hh"))
    return [pair for pair in found.values() if len(pair[0].split()) in WORDS]


def recombined(real: list[tuple[str, str]], rows: int, seed: int = 0) -> list[str]:
    """Return the real sentences and made ones, all distinct, in random order."""
    rng = np.random.default_rng(seed)
    words = [text.split() for text, _ in real]
    labelled = defaultdict(list)
    for number, (_, label) in enumerate(real):
        labelled[label].append(number)
    mates = [labelled[label] for _, label in real]
    texts = {text.casefold(): text for text, _ in real}
    while len(texts) < rows:
        heads, others = rng.integers(len(real), size=(2, 100_000)).tolist()
        same, cut, rest, pick = rng.random((4, 100_000)).tolist()
        for head, other, s, c, r, p in zip(heads, others, same, cut, rest, pick, strict=True):
            tail = mates[head][int(p * len(mates[head]))] if s < SAME else other
            first, last = words[head], words[tail]
            made = first[: 1 + int(c * (len(first) - 1))] + last[1 + int(r * (len(last) - 1)) :]
            if len(made) in WORDS:
                text = " ".join(made)
                texts.setdefault(text.casefold(), text)
    kept = list(texts.values())
    return [kept[row] for row in rng.permutation(len(kept))[:rows]]


def write_texts(out: Path, texts: list[str]) -> None:
    """Write them as the prompts artifact."""
    out.mkdir(parents=True, exist_ok=True)
    ids: list[str] = []

    def rows() -> Iterator[dict[str, object]]:
        for number, text in enumerate(texts):
            prompt = [{"role": "user", "content": text}]
            ids.append(prompt_id(prompt))
            row = {
                "id": ids[-1],
                "prompt": prompt,
                "text": text,
                "count": 1,
                "sources": {"made": 1},
            }
            yield row | {"split": "train" if number % 1000 else "heldout"}

    write_rows(out, rows())
    write_manifest(out, "prompts", rows=len(ids), ids_sha256=ids_sha256(ids))
    print(f"{len(texts):,} texts; {np.mean([len(t.split()) for t in texts]):.1f} words")


def embed(out: Path, encoder: Path) -> None:
    """Run the stage `embeddings` in float32; if cut off, the next call goes on."""
    known = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    known["embeddings"] |= {"precision": "float32"}
    (out / "params.yaml").write_text(yaml.safe_dump(known), encoding="utf-8")
    command = [sys.executable, str(ROOT / "stages/embeddings.py"), "--prompts", "data/prompts"]
    command += ["--encoder", str(encoder.resolve()), "--out", "data/embeddings"]
    env = {**os.environ, "ISODENSE_CACHE": "cache"}
    subprocess.run([*command, "--metrics", "embeddings.json"], cwd=out, env=env, check=True)


def search(out: Path, sizes: list[str], methods: list[str]) -> None:
    """Run every method, as NAME:FLOOR, on the first vectors."""
    print("| rows | method:floor | s | processor, s | recall | peak, MiB |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |", flush=True)
    for size in sizes:
        for method in methods:
            command = [sys.executable, __file__, "one", "--out", str(out)]
            command += ["--rows", size, "--methods", method]
            subprocess.run(command, check=True)


def one(out: Path, rows: int, method: str, floor: str) -> None:
    """Time a search, reading, imports and compilation included."""
    where, first = out / "data/embeddings", np.arange(rows)
    begin, used = time.perf_counter(), time.process_time()
    graph = isodense.knn_graph(
        load_vectors(where, first)[0], K, method, device="cpu", recall_floor=float(floor)
    )
    seconds, used = time.perf_counter() - begin, time.process_time() - used
    peak, X = peak_rss() // 2**20, load_vectors(where, first)[0]
    some = np.sort(np.random.default_rng(9).choice(rows, 1000, replace=False))
    exact = nearest(X[some], X, K, own=some, device="cpu", done=str)
    share = recall(isodense.Graph(graph.indices[some], graph.distances[some]), exact)
    line = f"| {rows:,} | {method}:{floor} | {seconds:.0f} | {used:.0f} | {share:.3f} | {peak:,} |"
    print(line, flush=True)


if __name__ == "__main__":
    main()
