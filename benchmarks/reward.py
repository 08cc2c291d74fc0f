"""How long fitting the reward's linear head takes and how much memory, and making its features.

Usage
-----
python benchmarks/reward.py --pairs 200000 --dim 256             # the fit, on made features
python benchmarks/reward.py features                             # packs and padded batches, sample
python benchmarks/reward.py features --hh hh-test.jsonl.gz       # also the first HH-RLHF pairs

For the fit, features are in a file, as the stage has them; the part of the peak that is that file,
mapped, is given up when others need the memory. For features, times are medians of the processor's
in interleaved rounds on one thread, which other jobs disturb least. Needs models/policy and
data/examples (`dvc repro models download`).
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from isodense.pipeline.stage import peak_rss
from isodense.reward.linear_probe import fit_head

BLOCK = 10_000  # pairs made at once
POLICY, EXAMPLES = Path("models/policy"), Path("data/examples")
LAYER, MAX_TOKENS, BATCH_TOKENS = 10, 512, 4096  # as in params.yaml
COUNT = 300  # pairs whose features are made


def main() -> None:
    """Run the part asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=("fit", "features"), default="fit")
    parser.add_argument("--pairs", type=int, help="200,000 for the fit, 300 for features")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--hh", type=Path, help="HH-RLHF file to take pairs from")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.part == "features":
        features(args.pairs or COUNT, args.hh, args.rounds)
    else:
        fit(args.pairs or 200_000, args.dim)


# --- features -------------------------------------------------------------------------------------


def features(count: int, hh: Path | None, rounds: int) -> None:
    """Time features in packs and in padded batches and print a row for each."""
    import torch

    from isodense.models.inference.backbone import Backbone
    from isodense.models.inference.policy import load_tokenizer
    from isodense.reward.features import BLOCK as ANSWERS
    from isodense.reward.pairs import sides
    from isodense.reward.scoring.hidden_states import Features, tokenize
    from isodense.reward.scoring.padded import Padded

    torch.set_num_threads(1)
    tokenizer = load_tokenizer(POLICY)
    backbone = Backbone(POLICY, LAYER, "LAYER", "cpu")
    padded = Padded(backbone, "both", tokenizer.pad_token_id, BATCH_TOKENS)
    packed = Features(POLICY, LAYER, "both", MAX_TOKENS, BATCH_TOKENS)
    ways = {"padded batches": lambda *block: gathered(padded, *block), "packs": packed.of_tokens}
    print("| pairs | features in | CPU seconds | conversations/s | ratio | largest difference |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    sets = {"sample": sample_pairs(count)} | ({"HH": hh_pairs(hh, count)} if hh else {})
    for name, pairs in sets.items():
        asked, answered, _ = tokenize(tokenizer, *sides(pairs), MAX_TOKENS)
        texts = {(tuple(a), tuple(b)) for a, b in zip(asked, answered, strict=True)}
        order = sorted(texts, key=lambda text: (-len(text[0]), text))
        parts = [order[start : start + ANSWERS] for start in range(0, len(order), ANSWERS)]
        blocks = [
            [[list(one) for one in side] for side in zip(*part, strict=True)] for part in parts
        ]
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        found: dict[str, np.ndarray] = {}
        for _ in range(rounds):
            for way, compute in ways.items():
                start = time.process_time()
                found[way] = np.concatenate([compute(*block) for block in blocks])
                seconds[way].append(time.process_time() - start)
        median = {way: float(np.median(values)) for way, values in seconds.items()}
        for way in ways:
            off = np.abs(found[way] - found["padded batches"]).max() / np.abs(found[way]).max()
            print(
                f"| {len(pairs)} {name} | {way} | {median[way]:.1f} "
                f"| {len(order) / median[way]:.1f} "
                f"| {median['padded batches'] / median[way]:.2f} | {off:.1e} |",
                flush=True,
            )


def gathered(padded: Any, asked: list[list[int]], answered: list[list[int]]) -> np.ndarray:
    """Return the features of padded batches in the order of the answers."""
    made = list(padded.shared(asked, answered))
    rows = np.concatenate([rows for _, rows in made])
    return rows[np.argsort([row for members, _ in made for row in members])]


def sample_pairs(count: int) -> list[dict[str, Any]]:
    """Return the first pairs of the downloaded examples."""
    from isodense.download.examples import load_pairs

    return load_pairs(EXAMPLES)[:count]


def hh_pairs(path: Path, count: int) -> list[dict[str, Any]]:
    """Return the first pairs of an HH-RLHF file."""
    from isodense.download.sources.hh import pair_of
    from isodense.pipeline.jsonl import read_jsonl

    found = (pair_of(row["chosen"], row["rejected"]) for _, row in read_jsonl(path))
    return list(itertools.islice((pair for pair in found if isinstance(pair, dict)), count))


# --- the fit --------------------------------------------------------------------------------------


def fit(pairs: int, dim: int) -> None:
    """Make features, fit a head and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "features.npy")
        making = get_context("spawn").Process(target=write, args=(path, pairs, dim))
        making.start()  # not in this process, whose memory counts
        making.join()
        rows = np.load(path, mmap_mode="r")
        begin = time.perf_counter()
        with threadpool_limits(1):
            fit_head(*np.split(rows, 2), 0.01, np.ones(pairs))
        seconds = time.perf_counter() - begin
    print("| pairs × dimensions | features, MiB | fit, s | peak, MiB |")
    print("| ---: | ---: | ---: | ---: |")
    size = f"{pairs:,} × {dim}"
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
