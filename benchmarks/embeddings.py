"""The embedding engine: speed against sentence-transformers and the machine, memory, start-up.

Usage
-----
pip install --no-deps sentence-transformers
python benchmarks/embeddings.py                                  # everything on the sample
python benchmarks/embeddings.py speed --hh hh-test.jsonl.gz      # also 600 real HH prompts
python benchmarks/embeddings.py memory --prompts 1000000         # writer, publish, verify
python benchmarks/embeddings.py precision --hh hh-test.jsonl.gz  # of embeddings.precision
python benchmarks/embeddings.py startup
python benchmarks/embeddings.py busy                             # beside busy processes
python benchmarks/embeddings.py windows --hh hh-test.jsonl.gz    # against cutting long prompts

Times are medians of interleaved rounds; the last columns divide by the rate of a float32 matrix
product measured in the same rounds, so a busy machine slows both. Needs models/encoder and
models/policy (`dvc repro models`).
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
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.artifact import write_manifest
from isodense.pipeline.stage import peak_rss
from isodense.prompts.conversations import prompt_id

ENCODER, POLICY = Path("models/encoder"), Path("models/policy")
LAYER = 10  # of the policy
DIM = 384


def main() -> None:
    """Run the benchmarks asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("all", "speed", "memory", "startup", "windows", "precision", "busy", "write", "rate")
    parser.add_argument("part", nargs="?", choices=parts, default="all", help=argparse.SUPPRESS)
    parser.add_argument("--hh", type=Path, help="HH-RLHF file to take prompts from")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=1_000_000, help="of memory and windows")
    args = parser.parse_args()
    if args.part == "write":
        return write(args.prompts)
    if args.part in ("all", "speed"):
        speed(args.hh, args.rounds)
    if args.part in ("all", "memory"):
        memory(args.prompts)
    if args.part in ("all", "startup"):
        startup()
    if args.part == "rate":
        return print(rate())
    if args.part in ("all", "busy"):
        busy(args.rounds)
    if args.part == "precision":
        precision(args.hh, args.rounds)
    if args.part == "windows":
        windows(args.hh, args.prompts)
    names = ("torch", "transformers", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}")
    print(versions)


# --- speed ----------------------------------------------------------------------------------------


def speed(hh: Path | None, rounds: int) -> None:
    """Compare prompts per second, and with the rate of a matrix product."""
    import torch
    from sentence_transformers import SentenceTransformer

    from isodense.embeddings.encoder import load_encoder

    peer = SentenceTransformer(str(ENCODER), device="cpu")
    peer.max_seq_length = 256
    peer.tokenizer.truncation_side = "left"  # as isodense cuts, so that vectors compare
    ours = load_encoder(ENCODER, device="cpu")
    sets = {"3,000 short": short_prompts(3000)} | ({"600 HH": hh_prompts(hh)} if hh else {})
    print(f"{torch.get_num_threads()} threads\n")
    print("| prompts | engine | prompts/s | tokens/s | against peer | of sgemm | cosine to peer |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name, texts in sets.items():
        lengths = [len(ids) for ids in ours.tokenize(texts)[0]]
        runs: dict[str, Callable[[], Any]] = {
            "sentence-transformers": lambda texts=texts: peer.encode(
                texts, normalize_embeddings=True, show_progress_bar=False
            ),
            "isodense": lambda texts=texts: ours.encode(texts),
        }
        report(name, runs, lengths, operations(ENCODER, lengths), rounds)
    policy = load_encoder(POLICY, layer=LAYER, device="cpu")
    texts = sets["3,000 short"][:600]
    lengths = [len(ids) for ids in policy.tokenize(texts)[0]]
    runs = {f"isodense, SmolLM2 at layer {LAYER}": lambda: policy.encode(texts)}
    report("600 short", runs, lengths, operations(POLICY, lengths, LAYER), rounds)
    print()


def report(
    name: str, runs: dict[str, Callable[[], Any]], lengths: list[int], flop: float, rounds: int
) -> None:
    """Time the runs in turn and print a row for each."""
    seconds: dict[str, list[float]] = {engine: [] for engine in [*runs, "sgemm"]}
    vectors = {engine: np.asarray(run()) for engine, run in runs.items()}  # and warm up
    for _ in range(rounds):
        seconds["sgemm"].append(1 / sgemm())
        for engine, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[engine].append(time.perf_counter() - start)
    median = {engine: float(np.median(found)) for engine, found in seconds.items()}
    first = next(iter(runs))
    for engine in runs:
        cosine = float((vectors[engine] * vectors[first]).sum(axis=1).min())
        print(
            f"| {name} | {engine} | {len(lengths) / median[engine]:.0f} "
            f"| {sum(lengths) / median[engine]:,.0f} | {median[first] / median[engine]:.2f} "
            f"| {flop / median[engine] * median['sgemm']:.0%} | {cosine:.7f} |",
            flush=True,
        )


def precision(hh: Path | None, rounds: int) -> None:
    """Compare prompts per second of processor time, vectors and weights by precision."""
    import torch
    from scipy.stats import spearmanr

    from isodense import density_weights, knn_graph, load_encoder

    names = ("float64", "float32", "bfloat16")
    models = {"MiniLM": (ENCODER, {}), f"SmolLM2, layer {LAYER}": (POLICY, {"layer": LAYER})}
    sets = {"600 short": short_prompts(600)} | ({"200 HH": hh_prompts(hh, 200)} if hh else {})
    able = torch.cpu.get_capabilities()
    units = [name for name in ("amx_bf16", "avx512_bf16") if able.get(name)]
    print(f"{torch.get_num_threads()} threads, {able.get('cpu_name')}, {units}\n")
    print("| prompts | encoder | precision | prompts/s | against float32 | cosine | Spearman |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for (set_name, texts), (model, (folder, settings)) in product(sets.items(), models.items()):
        encoders = {
            name: load_encoder(folder, device="cpu", precision=name, **settings) for name in names
        }
        vectors = {name: encoder.encode(texts) for name, encoder in encoders.items()}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, encoder in encoders.items():
                start = time.process_time()
                encoder.encode(texts)
                seconds[name].append(time.process_time() - start)
        graphs = [knn_graph(rows, k=50, method="exact") for rows in vectors.values()]
        weights = dict(zip(names, map(density_weights, graphs), strict=True))
        median = {name: float(np.median(values)) for name, values in seconds.items()}
        for name in names:
            cosine = float((vectors[name] * vectors["float64"]).sum(axis=1).min())
            rank = float(spearmanr(weights[name], weights["float64"]).statistic)
            print(
                f"| {set_name} | {model} | {name} | {len(texts) / median[name]:.0f} "
                f"| {median['float32'] / median[name]:.2f} | {cosine:.6f} | {rank:.6f} |",
                flush=True,
            )
    print()


def busy(rounds: int) -> None:
    """Compare how long threads of OpenMP spin, on a free machine and beside others' processes."""
    counts = {"300000": "libgomp's default", "1000": "isodense's"}
    print("| prompts/s, 1,000 short | machine free | a busy process for each processor |")
    print("| --- | ---: | ---: |")
    rates: dict[tuple[str, bool], list[float]] = {key: [] for key in product(counts, (False, True))}
    for _ in range(rounds):
        for count, shared in rates:
            others = [
                subprocess.Popen([sys.executable, "-c", "while True: pass"])
                for _ in range(os.cpu_count() or 1 if shared else 0)
            ]
            done = subprocess.run(
                [sys.executable, __file__, "rate"],
                env={**os.environ, "GOMP_SPINCOUNT": count},
                capture_output=True,
                text=True,
                check=True,
            )
            for other in others:
                other.kill()
            rates[count, shared].append(float(done.stdout.splitlines()[-1]))
    for count, name in counts.items():
        free, shared = (np.median(rates[count, shared]) for shared in (False, True))
        print(f"| GOMP_SPINCOUNT={count}, {name} | {free:.0f} | {shared:.0f} |", flush=True)
    print()


def rate() -> float:
    """Return prompts per second."""
    from isodense import load_encoder

    texts, encoder = short_prompts(1000), load_encoder(ENCODER, device="cpu")
    encoder.encode(texts[:50])
    start = time.perf_counter()
    encoder.encode(texts)
    return len(texts) / (time.perf_counter() - start)


def sgemm(size: int = 2048, times: int = 12) -> float:
    """Return the floating-point operations per second of a float32 matrix product."""
    import torch

    one, two = torch.ones(size, size), torch.ones(size, size)
    one @ two
    start = time.perf_counter()
    for _ in range(times):
        one @ two
    return times * 2 * size**3 / (time.perf_counter() - start)


def operations(folder: Path, lengths: list[int], layer: int | None = None) -> float:
    """Return the operations of the matrix products that texts of these lengths need, unpadded."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    shared = config.get("num_key_value_heads", heads) / heads
    gated = 3 if config.get("hidden_act") == "silu" else 2
    token = 2 * (hidden * hidden * (2 + 2 * shared) + gated * hidden * wide)
    blocks = layer or config["num_hidden_layers"]
    return float(blocks * sum(token * n + 4 * n * n * hidden for n in lengths))


def short_prompts(count: int) -> list[str]:
    """Return distinct single-turn prompts of the embedded sample."""
    from isodense.download.sources import sample
    from isodense.prompts.conversations import encoder_text

    params = sample.SampleParams(
        pairs=2 * count, exponent=1.0, duplicates=0.0, near_duplicates=0.15, multi_turn=0.0
    )
    rows = sample.load(params, np.random.default_rng(0))
    texts = dict.fromkeys(encoder_text(row["prompt"]) for row in rows)
    return list(texts)[:count]


def hh_prompts(path: Path, count: int = 600) -> list[str]:
    """Return the first prompts of an HH-RLHF file."""
    from isodense.download.sources.hh import pair_of
    from isodense.pipeline.jsonl import read_jsonl
    from isodense.prompts.conversations import encoder_text

    found = (pair_of(row["chosen"], row["rejected"]) for _, row in read_jsonl(path))
    texts = dict.fromkeys(encoder_text(pair["prompt"]) for pair in found if isinstance(pair, dict))
    return list(texts)[:count]


# --- windows of long prompts ----------------------------------------------------------------------


def windows(path: Path, count: int) -> None:
    """Compare the vectors of prompts of which long ones are cut, and read in windows."""
    from isodense import knn_graph, load_encoder

    texts = hh_prompts(path, count)
    cut, split = (load_encoder(ENCODER, device="cpu", long=long) for long in ("cut", "windows"))
    tokens = split.tokenize(texts)[0]
    read = split.windows(tokens)
    many, sizes = read.counts > 1, np.array([len(ids) for ids in read.ids])
    whole, kept = int(sizes.sum()), sum(map(len, cut.tokenize(texts)[0]))
    print(f"long: {many.sum()} of {len(texts)} ({many.mean():.1%}), {read.counts.max()} at most")
    print(f"tokens read: {kept:,} cut, {whole:,} in windows ({whole / kept - 1:+.1%})", flush=True)
    rows = np.empty((len(texts), cut.dim), dtype=np.float32)
    rows[~many] = cut.encode([texts[row] for row in np.flatnonzero(~many)])
    vectors, graphs = {}, {}
    for encoder in (cut, split):  # of a short prompt both give the same
        start = time.process_time()
        rows[many] = encoder.encode([texts[row] for row in np.flatnonzero(many)])
        seconds = time.process_time() - start
        print(f"{encoder.long}: {seconds:.1f} s of CPU time for the long prompts", flush=True)
        vectors[encoder.long] = rows[many]
        graphs[encoder.long] = knn_graph(rows, k=20, method="exact")
    cosines = (vectors["cut"] * vectors["windows"]).sum(axis=1)
    print(f"cosine of a long prompt's vectors: {cosines.mean():.3f}, least {cosines.min():.3f}")
    pairs = zip(graphs["cut"].indices, graphs["windows"].indices, strict=True)
    shared = np.array([len(np.intersect1d(*pair)) for pair in pairs]) / 20
    print(f"20 nearest, shared: {shared[many].mean():.0%} long, {shared[~many].mean():.0%} short")
    far = [float(np.median(graph.distances[many, -1])) for graph in graphs.values()]
    print(f"distance of a long prompt's 20th: {far[0]:.3f} cut, {far[1]:.3f} in windows")


# --- memory of the writer -------------------------------------------------------------------------


class Stub:
    """Random unit rows in place of a model: what is measured is everything around it."""

    dim, max_tokens, precision, device = DIM, 256, "float32", "cpu"
    long, padded = "cut", None

    def tokenize_whole(self, texts: list[str]) -> tuple[list[list[int]], dict[int, list[int]]]:
        """Return the tokens of each text, and that none was truncated."""
        return [[1] * 10 for _ in texts], {}

    def encode_tokens(self, ids: list[list[int]], on_batch: Any = None) -> np.ndarray:
        """Return random unit rows."""
        rows = np.random.default_rng(0).standard_normal((len(ids), DIM), dtype=np.float32)
        if on_batch is not None:
            on_batch(len(ids), sum(map(len, ids)))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def memory(prompts: int) -> None:
    """Print peak memory and times of the writer at a tenth of the prompts and at all of them."""
    print(
        "| prompts x 384 | peak, MiB | of it imports | write shards, s | publish, s | verify, s |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for count in (prompts // 10, prompts):
        command = [sys.executable, __file__, "write", "--prompts", str(count)]
        subprocess.run(command, check=True, env={**os.environ, "CI": "1"})
    print()


def write(count: int) -> None:
    """Embed `count` synthetic prompts with the stub and print a row of the table."""
    from isodense.embeddings import build as embeddings
    from isodense.pipeline.artifact import read_manifest, verify_files

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic_prompts(folder / "prompts", count)
        (folder / "encoder").mkdir()
        (folder / "encoder" / "modules.json").write_text("[]")
        write_manifest(folder / "encoder", "models", role="encoder")
        embeddings.preflight = lambda *_: 1.0  # a stub has nothing to check
        params = embeddings.EmbeddingsParams(
            space="hidden",
            pooling="mean",
            layer=None,
            projection=1,
            max_tokens=256,
            long="cut",
            precision="float32",
            batch_tokens=None,
            rows_per_shard=4096,
            prefix=None,
            dtype="float32",
            postprocess="none",
            components=0,
            fit_rows=10,
        )
        before = peak()
        arguments = folder / "prompts", folder / "encoder", params, "cpu", folder / "cache"
        seconds = []
        for out in ("one", "two"):  # the second finds all shards finished
            start = time.perf_counter()
            embeddings.embed(*arguments, folder / out, load=Stub)
            seconds.append(time.perf_counter() - start)
        high = peak()
        start = time.perf_counter()
        verify_files(folder / "one", read_manifest(folder / "one", "embeddings"))
        verified = time.perf_counter() - start
        print(
            f"| {count:,} | {high:.0f} | {before:.0f} | {seconds[0]:.1f} | {seconds[1]:.1f} "
            f"| {verified:.1f} |"
        )


def synthetic_prompts(folder: Path, count: int) -> None:
    """Write a prompts artifact row by row."""
    from isodense.prompts.deduplicate import write as write_prompts

    def rows() -> Iterator[dict[str, Any]]:
        for row in range(count):
            text = f"What is the answer to question number {row}?"
            messages = [{"role": "user", "content": text}]
            entry = {"id": prompt_id(messages), "prompt": messages, "text": text, "count": 1}
            yield entry | {"split": "train", "sources": {"made": 1}}

    folder.mkdir()
    write_prompts(rows(), {}, None, folder)


def peak() -> float:
    """Return this process's peak resident memory in MiB."""
    return peak_rss() / 2**20


# --- start-up -------------------------------------------------------------------------------------


def startup() -> None:
    """Print how long the stage takes when there is nothing, or nearly nothing, to compute."""
    with tempfile.TemporaryDirectory() as folder:
        stage = [sys.executable, "stages/embeddings.py", "--prompts", "data/prompts"]
        stage += ["--encoder", str(ENCODER), "--metrics", f"{folder}/metrics.json", "--out"]
        commands = {
            "import isodense": [sys.executable, "-c", "import isodense"],
            "stage --help": [*stage[:2], "--help"],
            "stage, all shards finished": [*stage, f"{folder}/out"],
        }
        environ = {**os.environ, "CI": "1", "ISODENSE_CACHE": folder}
        subprocess.run(commands["stage, all shards finished"], env=environ, capture_output=True)
        print("| start-up | seconds |\n| --- | ---: |")
        for name, command in commands.items():
            seconds = []
            for _ in range(5):
                start = time.perf_counter()
                subprocess.run(command, env=environ, capture_output=True, check=True)
                seconds.append(time.perf_counter() - start)
            print(f"| {name} | {np.median(seconds):.2f} |")
        print()


if __name__ == "__main__":
    main()
