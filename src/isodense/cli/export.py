"""Handing prompts, weights and vectors to other code, without DVC or isodense on the other side.

``prototype`` writes the four files that the research prototype's training script reads; ``parquet``
and ``jsonl`` write one table for TRL, ``datasets``, pandas or DuckDB; ``verl`` and ``openrlhf``
write one as those trainers read it. All hold the training prompts only, in the order of
``data/prompts``, or a plan of draws from them; a second file may hold the held-out prompts. The
artifacts are joined by the hash of their prompt ids.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from isodense.cli.trainer_formats import (
    FORMATS,
    LAYOUTS,
    SUFFIXES,
    Format,
    Shape,
    Truth,
    find_truth,
)
from isodense.cli.trainer_tables import write_parquet
from isodense.embeddings.reader import load_vectors
from isodense.pipeline.artifact import publishing, replacing, require_same_ids, write_json
from isodense.pipeline.errors import ArtifactError, IsodenseError, ModelError
from isodense.pipeline.jsonl import write_jsonl
from isodense.pipeline.tables import plain
from isodense.prompts.reader import PromptSet, Split, load_prompts
from isodense.sampling.difficulty import load_difficulty
from isodense.sampling.schemes import BY_DIFFICULTY, Sampling, prompt_weights
from isodense.sampling.weights import Weights, load_weights

ROWS = 1024  # of a parquet row group, and of a block of vectors


@dataclass(frozen=True)
class Draws:
    """A plan: which prompts are drawn, and how often.

    Attributes
    ----------
    size : int
        Number of draws.
    seed : int
        Names the stream of draws; see :func:`isodense.sampling.draw.draw`.
    sampling : Sampling
        What the odds of a draw follow; see :func:`isodense.sampling.schemes.prompt_weights`.
    floor : float
        Least factor of the difficulty.
    """

    size: int
    seed: int = 0
    sampling: Sampling = "density"
    floor: float = 0.0


@dataclass(frozen=True)
class _Table:
    """The prompts of a split with what belongs to them, and the order in which to write them.

    `order` has row numbers of `prompts`: those of the draws where `drawn`, else all, rising.
    `measures` are arrays of shape (len(prompts),) by column: weight and density, and none for
    held-out prompts. `vectors` has the rows of both splits, and no column where none are wanted;
    `positions` are those of `prompts`.
    """

    prompts: PromptSet
    measures: dict[str, np.ndarray]
    vectors: np.ndarray
    positions: np.ndarray
    order: np.ndarray
    drawn: bool = False

    def blocks(self) -> Iterator[slice]:
        """Yield the rows to write in blocks of `ROWS`."""
        for start in range(0, len(self.order), ROWS):
            yield slice(start, start + ROWS)


def export(
    data: Path,
    fmt: Format,
    out: Path,
    vectors: bool = False,
    encoder: Path | None = None,
    draws: Draws | None = None,
    heldout: Path | None = None,
    ground_truth: str | None = None,
) -> dict[str, Any]:
    """Write the training prompts of a data folder, or draws from them, for other code.

    Parameters
    ----------
    data : Path
        A folder with the artifacts ``prompts``, ``density`` and, where vectors are wanted,
        ``embeddings``.
    fmt : {"prototype", "parquet", "jsonl", "verl", "openrlhf"}
        ``prototype``: a folder with ``embeddings.npy``, ``density_weights.npy``,
        ``prompts_list.json`` and ``embeddings_metadata.json``. ``parquet`` and ``jsonl``: one file
        with the columns ``id``, ``prompt``, ``text``, ``count``, ``label`` (if all prompts have
        one), ``weight``, ``density`` and those that the data came with. ``verl`` (parquet) and
        ``openrlhf`` (JSONL): one file in the trainer's own columns, see
        :mod:`isodense.cli.trainer_formats`.
    out : Path
        The new folder or file.
    vectors : bool, default False
        Add the column ``embedding`` to ``parquet`` or ``jsonl``. The prototype's folder always has
        the vectors.
    encoder : Path, optional
        The encoder's folder, whose ``config.json`` gives the prototype's ``model_vocab_size`` and
        ``model_n_embd``; null without it.
    draws : Draws, optional
        Write one row per draw, in the order of the draws and with its number as ``draw``, instead
        of one per prompt. ``weight`` stays the prompt's own, whatever the sampling.
    heldout : Path, optional
        A second new file with the held-out prompts, which have no weight and no density.
    ground_truth : str, optional
        The column of the ground truth, for ``verl`` and ``openrlhf``; see
        :func:`isodense.cli.trainer_formats.find_truth`.

    Returns
    -------
    dict
        ``format``, ``rows``, ``dim`` (0 without vectors); with a second file ``heldout``, its
        rows; of ``verl`` and ``openrlhf`` also ``ground_truth``, its column or None, and ``met``,
        numbers of rows by what became of their ground truth.

    Raises
    ------
    IsodenseError
        If the format has no place for what is asked, its trainer could not read a file of that
        name, or no prompt has the column of the ground truth.
    ArtifactError
        If `out` or `heldout` exists, no prompt is held out, or the artifacts are incomplete or
        belong to different prompts.
    """
    _check(fmt, out, vectors, draws, heldout, ground_truth)
    prompts = load_prompts(data / "prompts")
    truth = find_truth(prompts, ground_truth) if fmt in SUFFIXES else Truth(None)
    train = _load(data, prompts, vectors or fmt == "prototype", draws)
    dim = train.vectors.shape[1]
    report: dict[str, Any] = {"format": fmt, "rows": len(train.order), "dim": dim}
    if fmt == "prototype":
        _write_prototype(train, out, _model_sizes(encoder))
        return report
    tables = {out: train}
    if heldout is not None:
        tables[heldout] = _heldout(prompts, train.vectors)
        report["heldout"] = len(tables[heldout].order)
    shape = Shape(tuple(prompts.columns), prompts.labels is not None, truth)
    met = _write_tables(tables, fmt, shape)
    return report | ({"ground_truth": truth.column, "met": met} if fmt in SUFFIXES else {})


def _check(
    fmt: Format,
    out: Path,
    vectors: bool,
    draws: Draws | None,
    heldout: Path | None,
    ground_truth: str | None,
) -> None:
    if fmt not in FORMATS:
        raise IsodenseError(f"no format {fmt!r}", "use " + ", ".join(FORMATS))
    if fmt == "prototype" and (draws or heldout):
        message = "the prototype's folder holds every training prompt once, and no other"
        raise IsodenseError(message, "use another format for draws and held-out prompts")
    if fmt not in SUFFIXES and ground_truth is not None:
        message = f"{fmt} has no column for a ground truth: the data's columns are kept as they are"
        raise IsodenseError(message, "leave out --ground-truth, or use verl or openrlhf")
    if fmt in SUFFIXES and vectors:
        raise IsodenseError(f"{fmt} has no use for vectors", "use parquet or jsonl")
    if out == heldout:
        raise IsodenseError(f"{out} cannot hold both splits", "name two files")
    for path in (out, heldout):
        if path is None:
            continue
        if path.exists():
            raise ArtifactError(f"{path} exists already", "name a new one, or remove this one")
        if path.suffix != SUFFIXES.get(fmt, path.suffix):
            raise IsodenseError(f"{fmt} does not read {path}", f"end its name in {SUFFIXES[fmt]}")


def _load(data: Path, prompts: PromptSet, with_vectors: bool, draws: Draws | None) -> _Table:
    train = prompts.split("train")
    weights = load_weights(data / "density")
    require_same_ids(train.ids_sha256, weights.metadata, f"the weights in {data / 'density'}")
    vectors = np.empty((len(prompts), 0), dtype=np.float32)
    if with_vectors:
        vectors, manifest = load_vectors(data / "embeddings")
        where = f"the vectors in {data / 'embeddings'}"
        require_same_ids(prompts.ids_sha256, manifest, where)
    order = np.arange(len(train)) if draws is None else _drawn(data, train, weights, draws)
    measures = {"weight": weights.weights, "density": weights.density}
    positions = _positions(prompts, "train")
    return _Table(train, measures, vectors, positions, order, drawn=draws is not None)


def _drawn(data: Path, train: PromptSet, weights: Weights, draws: Draws) -> np.ndarray:
    from isodense.sampling.draw import draw

    by_difficulty = draws.sampling in BY_DIFFICULTY
    difficulty = load_difficulty(data / "difficulty") if by_difficulty else None
    odds = prompt_weights(train, weights, draws.sampling, difficulty, draws.floor)
    return draw(odds, draws.size, draws.seed)


def _heldout(prompts: PromptSet, vectors: np.ndarray) -> _Table:
    heldout = prompts.split("heldout")
    if not len(heldout):
        message = "no prompt is held out"
        raise ArtifactError(message, "raise prompts.heldout and run `dvc repro`, or leave it out")
    positions = _positions(prompts, "heldout")
    return _Table(heldout, {}, vectors, positions, np.arange(len(heldout)))


def _positions(prompts: PromptSet, split: Split) -> np.ndarray:
    return np.array(prompts.positions(split), dtype=np.intp)


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


def _write_prototype(train: _Table, out: Path, sizes: dict[str, int | None]) -> None:
    weights = train.measures["weight"]
    shape = len(train.prompts), train.vectors.shape[1]
    with publishing(out) as staging:
        path = staging / "embeddings.npy"
        target = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        for rows in train.blocks():
            target[rows] = train.vectors[train.positions[rows]]
        target.flush()
        np.save(staging / "density_weights.npy", weights.astype(np.float32), allow_pickle=False)
        write_json(staging / "prompts_list.json", train.prompts.texts)
        metadata = _prototype_metadata(shape, weights, sizes)
        write_json(staging / "embeddings_metadata.json", metadata)


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


def _write_tables(tables: dict[Path, _Table], fmt: Format, shape: Shape) -> dict[str, int]:
    """Write the files under temporary names, and rename them when all are complete.

    Returns numbers of rows by what became of their ground truth.
    """
    met = Counter[str]()
    with ExitStack() as stack:
        for out, table in tables.items():
            staging = stack.enter_context(replacing(out))
            if fmt in ("parquet", "verl"):
                measures = {*table.measures, "embedding"}
                write_parquet(partial(_row_groups, table, fmt, shape), measures, staging)
            else:
                groups = _row_groups(table, fmt, shape)
                write_jsonl(staging, (plain(row) for rows in groups for row in rows))
            met.update(shape.truth.met)
    return dict(met)


def _row_groups(table: _Table, fmt: Format, shape: Shape) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows in blocks; an embedding is an array of shape (dim,), float32."""
    layout = LAYOUTS[fmt]
    shape.truth.met.clear()
    for block in table.blocks():
        picked = table.order[block]
        columns = _columns(table, picked, block.start)
        yield [
            layout(table.prompts.rows[row], dict(zip(columns, values, strict=True)), number, shape)
            for number, (row, *values) in enumerate(
                zip(picked.tolist(), *columns.values(), strict=True), block.start
            )
        ]


def _columns(table: _Table, picked: np.ndarray, start: int) -> dict[str, Any]:
    """Return what belongs to the `picked` prompts, by column; `start` is the first one's row."""
    columns = {name: values[picked].tolist() for name, values in table.measures.items()}
    if table.drawn:
        columns["draw"] = range(start, start + len(picked))
    if table.vectors.shape[1]:
        columns["embedding"] = table.vectors[table.positions[picked]]
    return columns
