"""Would int8 be worth an extra? MiniLM quantised for ONNX Runtime, against isodense's precisions.

Usage
-----
pip install --no-deps onnx onnxruntime flatbuffers
python benchmarks/int8.py --texts hwu64.jsonl.gz        # rows {"text"}

Weights and activations of all matrix products become int8 (``quantize_dynamic``, a scale for each
output channel); batches hold texts of about one length, as in isodense. Times are medians of
interleaved rounds; the Spearman correlation is of density weights with those of float32.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import AutoModel, AutoTokenizer

from isodense import density_weights, knn_graph, load_encoder

ENCODER = Path("models/encoder")
BATCH_TOKENS = 2048

Encode = Callable[[list[str]], np.ndarray]


class Mean(torch.nn.Module):
    """The encoder with its mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(ENCODER, attn_implementation="eager").eval()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the mean hidden state of each text."""
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        wide = mask.unsqueeze(-1).to(states.dtype)
        return (states * wide).sum(1) / wide.sum(1)


def main() -> None:
    """Export, quantise and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with gzip.open(args.texts, "rt", encoding="utf-8") as stream:
        found = dict.fromkeys(json.loads(line)["text"] for line in stream)
    texts = list(found)[: args.rows]
    with tempfile.TemporaryDirectory() as folder:
        whole, quantised = exported(Path(folder))
        runs = {
            "isodense, float32": load_encoder(ENCODER).encode,
            "isodense, bfloat16": load_encoder(ENCODER, precision="bfloat16").encode,
            "ONNX Runtime, float32": session(whole),
            "ONNX Runtime, int8": session(quantised),
        }
        compare(runs, texts, args.rounds)
    able = torch.cpu.get_capabilities()
    units = [name for name in ("amx_int8", "amx_bf16", "avx512_vnni", "avx512_bf16")
             if able.get(name)]  # fmt: skip
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "onnxruntime")]
    print(f"{torch.get_num_threads()} threads, {able.get('cpu_name')}, {units}, {versions}")


def exported(folder: Path) -> tuple[Path, Path]:
    """Write the encoder for ONNX, and its quantised twin; return the paths."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole, quantised = folder / "float32.onnx", folder / "int8.onnx"
    example, names = torch.ones(2, 8, dtype=torch.long), ["ids", "mask"]
    torch.onnx.export(
        Mean(),
        (example, example),
        whole,
        dynamo=False,
        opset_version=17,
        input_names=names,
        output_names=["means"],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in names} | {"means": {0: "texts"}},
    )
    quantize_dynamic(whole, quantised, weight_type=QuantType.QInt8, per_channel=True)
    return whole, quantised


def session(path: Path) -> Encode:
    """Return a function that encodes with ONNX Runtime, on as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    run = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)

    def encode(texts: list[str]) -> np.ndarray:
        ids = tokenizer(texts, truncation=True, max_length=256)["input_ids"]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        out = np.empty((len(ids), 384), dtype=np.float32)
        while order:
            size = max(1, BATCH_TOKENS // len(ids[order[0]]))
            part, order = order[:size], order[size:]
            batch = tokenizer.pad({"input_ids": [ids[row] for row in part]}, return_tensors="np")
            inputs = {"ids": batch["input_ids"], "mask": batch["attention_mask"]}
            out[part] = run(None, inputs)[0]
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    return encode


def compare(runs: dict[str, Encode], texts: list[str], rounds: int) -> None:
    """Print speed, vectors and weights of each against the first."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    vectors = {}
    for _ in range(rounds):
        for name, encode in runs.items():
            begin = time.perf_counter()
            vectors[name] = encode(texts)
            seconds[name].append(time.perf_counter() - begin)
    weights = {name: density_weights(knn_graph(X, 50)) for name, X in vectors.items()}
    first = next(iter(runs))
    print(f"| {len(texts):,} texts | prompts/s | in a round | least cosine | Spearman |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in runs:
        ratio = np.median(np.array(seconds[first]) / np.array(seconds[name]))
        cosine = float((vectors[name] * vectors[first]).sum(axis=1).min())
        rank = float(spearmanr(weights[name], weights[first]).statistic)
        rate = len(texts) / np.median(seconds[name])
        print(f"| {name} | {rate:,.0f} | {ratio:.2f} | {cosine:.4f} | {rank:.4f} |")
    print()


if __name__ == "__main__":
    main()
