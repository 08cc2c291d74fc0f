"""Handing prompts, weights and vectors to other code, without DVC or isodense on the other side.

``prototype`` writes the four files that the research prototype's training script reads; ``parquet``
and ``jsonl`` write one table for ``datasets``, pandas or DuckDB. All hold the training prompts
only, in the order of ``data/prompts``; the artifacts are joined by the hash of their prompt ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from isodense.artifacts import publishing, require_same_ids, write_json
from isodense.errors import ArtifactError, IsodenseError, ModelError
from isodense.promptset import PromptSet, load_prompts
from isodense.records import write_jsonl
from isodense.vectors import load_vectors
from isodense.weights import Weights, load_weights

Format = Literal["prototype", "parquet", "jsonl"]
ROWS = 1024  # of a parquet row group, and of a block of vectors


@dataclass(frozen=True)
class _Training:
    """The training prompts with what belongs to them, in their order.

    `vectors` has the rows of all prompts, held-out ones too, and no column where none are wanted;
    `positions` are its training rows.
    """

    prompts: PromptSet
    weights: Weights
    vectors: np.ndarray
    positions: np.ndarray

    def blocks(self) -> Iterator[slice]:
        """Yield the rows in blocks of `ROWS`."""
        for start in range(0, len(self.prompts), ROWS):
            yield slice(start, start + ROWS)


def export(
    data: Path, fmt: Format, out: Path, vectors: bool = False, encoder: Path | None = None
) -> dict[str, Any]:
    """Write the training prompts of a data folder for other code.

    Parameters
    ----------
    data : Path
        A folder with the artifacts ``prompts``, ``density`` and, where vectors are wanted,
        ``embeddings``.
    fmt : {"prototype", "parquet", "jsonl"}
        ``prototype``: a folder with ``embeddings.npy``, ``density_weights.npy``,
        ``prompts_list.json`` and ``embeddings_metadata.json``. ``parquet`` and ``jsonl``: one file
        with the columns ``id``, ``prompt``, ``text``, ``count``, ``label`` (if all prompts have
        one), ``weight`` and ``density``.
    out : Path
        The new folder or file.
    vectors : bool, default False
        Add the column ``embedding``. The prototype's folder always has the vectors.
    encoder : Path, optional
        The encoder's folder, whose ``config.json`` gives the prototype's ``model_vocab_size`` and
        ``model_n_embd``; null without it.

    Returns
    -------
    dict
        ``format``, ``rows`` and ``dim`` (0 without vectors).

    Raises
    ------
    ArtifactError
        If `out` exists, or the artifacts are incomplete or belong to different prompts.
    """
    if fmt not in ("prototype", "parquet", "jsonl"):
        raise IsodenseError(f"no format {fmt!r}", "use prototype, parquet or jsonl")
    if out.exists():
        raise ArtifactError(f"{out} exists already", "name a new one, or remove this one")
    training = _load(data, vectors or fmt == "prototype")
    if fmt == "prototype":
        _write_prototype(training, out, _model_sizes(encoder))
    else:
        _write_table(training, fmt, out)
    return {"format": fmt, "rows": len(training.prompts), "dim": training.vectors.shape[1]}


def _load(data: Path, with_vectors: bool) -> _Training:
    prompts = load_prompts(data / "prompts")
    train = prompts.split("train")
    weights = load_weights(data / "density")
    require_same_ids(train.ids_sha256, weights.metadata, f"the weights in {data / 'density'}")
    vectors = np.empty((len(prompts), 0), dtype=np.float32)
    if with_vectors:
        vectors, manifest = load_vectors(data / "embeddings")
        where = f"the vectors in {data / 'embeddings'}"
        require_same_ids(prompts.ids_sha256, manifest, where)
    return _Training(train, weights, vectors, np.array(prompts.positions("train"), dtype=np.intp))


def _model_sizes(encoder: Path | None) -> dict[str, int | None]:
    """Return vocabulary and hidden size of the encoder, in the prototype's words."""
    config: dict[str, Any] = {}
    if encoder is not None:
        try:
            config = json.loads((encoder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            message = f"{encoder} holds no model (no readable config.json)"
            raise ModelError(message, "run `dvc repro models`") from None
    return {
        "model_vocab_size": config.get("vocab_size"),
        "model_n_embd": config.get("hidden_size"),
    }


def _write_prototype(training: _Training, out: Path, sizes: dict[str, int | None]) -> None:
    weights = training.weights.weights
    shape = len(training.prompts), training.vectors.shape[1]
    with publishing(out) as scratch:
        path = scratch / "embeddings.npy"
        target = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        for rows in training.blocks():
            target[rows] = training.vectors[training.positions[rows]]
        target.flush()
        np.save(scratch / "density_weights.npy", weights.astype(np.float32), allow_pickle=False)
        write_json(scratch / "prompts_list.json", training.prompts.texts)
        metadata = _prototype_metadata(shape, weights, sizes)
        write_json(scratch / "embeddings_metadata.json", metadata)


def _prototype_metadata(
    shape: tuple[int, int], weights: np.ndarray, sizes: dict[str, int | None]
) -> dict[str, Any]:
    wide = weights.astype(np.float64)
    return {
        "n_prompts": shape[0],
        "embedding_dim": shape[1],
        "embedding_dtype": "float32",
        "weights_dtype": "float32",
        **sizes,
        "normalization": "L2 unit vectors",
        "weights_min": float(wide.min()),
        "weights_max": float(wide.max()),
        "weights_mean": float(wide.mean()),
        "weights_std": float(wide.std()),
    }


def _write_table(training: _Training, fmt: Format, out: Path) -> None:
    """Write one file through a temporary name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(out.name + ".tmp")
    if fmt == "parquet":
        _write_parquet(training, scratch)
    else:
        write_jsonl(scratch, (_plain(row) for rows in _row_groups(training) for row in rows))
    scratch.replace(out)


def _row_groups(training: _Training) -> Iterator[list[dict[str, Any]]]:
    """Yield the table in blocks of rows; an embedding is an array of shape (dim,), float32."""
    labels = training.prompts.labels
    for block in training.blocks():
        rows = [_columns(row) for row in training.prompts.rows[block]]
        added: dict[str, Any] = {} if labels is None else {"label": labels[block]}
        added["weight"] = training.weights.weights[block].tolist()
        added["density"] = training.weights.density[block].tolist()
        if training.vectors.shape[1]:
            added["embedding"] = training.vectors[training.positions[block]]
        for name, values in added.items():
            for row, value in zip(rows, values, strict=True):
                row[name] = value
        yield rows


def _columns(row: dict[str, Any]) -> dict[str, Any]:
    messages = [{name: message[name] for name in ("role", "content")} for message in row["prompt"]]
    return {"id": row["id"], "prompt": messages, "text": row["text"], "count": row["count"]}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return `row` as JSON can hold it."""
    return row | {"embedding": row["embedding"].tolist()} if "embedding" in row else row


def _write_parquet(training: _Training, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    types = {
        "id": pa.string(),
        "prompt": pa.list_(message),
        "text": pa.string(),
        "count": pa.int64(),
        "label": pa.string(),
        "weight": pa.float32(),
        "density": pa.float32(),
        "embedding": pa.list_(pa.float32()),
    }
    if training.prompts.labels is None:
        del types["label"]
    if not training.vectors.shape[1]:
        del types["embedding"]
    schema = pa.schema(list(types.items()))
    with pq.ParquetWriter(path, schema) as writer:
        for rows in _row_groups(training):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
