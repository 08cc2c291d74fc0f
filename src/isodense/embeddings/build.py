"""Embedding every prompt once, in shards that can be resumed, appended to and shared.

A shard is computed from its own prompts alone, so its bytes depend on those, the encoder and the
params, and on nothing else. A finished shard is kept in a scratch folder outside the DVC outputs,
named by the hash of all it depends on: a run that was cut off, or whose prompts have grown,
computes only what is not there. Ranks started by torchrun take turns at the missing shards and
share nothing but that folder. Prompts are read a shard at a time, so memory does not grow with
their number.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isodense.embeddings import postprocess
from isodense.embeddings.params import EmbeddingsParams
from isodense.embeddings.preflight import preflight
from isodense.embeddings.reader import ids_name, shard_name
from isodense.pipeline.artifact import (
    FORMAT_VERSION,
    content_sha256,
    load_array,
    publishing,
    read_manifest,
    sha256_file,
    write_manifest,
)
from isodense.pipeline.errors import ArtifactError, ModelError, TextError
from isodense.pipeline.executor import Progress, Rank
from isodense.pipeline.jsonl import read_jsonl
from isodense.pipeline.params import as_dict
from isodense.pipeline.runtime import one_thread, resolve_device
from isodense.prompts.reader import FILE as PROMPTS

if TYPE_CHECKING:
    from isodense.embeddings.encoder import Encoder

log = logging.getLogger("isodense")

SAMPLE = 200  # prompts whose cosines show the error of a projection
TRUNCATED = 0.05  # share of cut prompts above which a person is told
CODE = (  # modules that decide a row's bytes
    "embeddings.encoder",
    "embeddings.packing",
    "embeddings.dense",
    "embeddings.logits",
    "models.backbone",
)
NOT_IN_ROWS = ("batch_tokens", "rows_per_shard", "postprocess", "components", "fit_rows")


@dataclass(frozen=True)
class Shard:
    """One shard of the set.

    Attributes
    ----------
    number : int
    rows : int
    path : Path
        Where it is kept once finished; beside it ``.json`` with its hash and token counts.
    """

    number: int
    rows: int
    path: Path


def embed(
    prompts: Path,
    encoder: Path,
    params: EmbeddingsParams,
    device: str,
    cache: Path,
    out: Path,
    load: Callable[[], Encoder] | None = None,
    rank: Rank | None = None,
) -> dict[str, Any] | None:
    """Write ``data/embeddings`` and return what the metrics report.

    Parameters
    ----------
    prompts : Path
        The prompts artifact; held-out prompts are embedded too.
    encoder : Path
        The encoder's artifact.
    params : EmbeddingsParams
        The stage's section.
    device : str
        Param ``base.device``.
    cache : Path
        Where finished shards are kept.
    out : Path
        The artifact's folder.
    load : callable, optional
        Loads the encoder; by default from its folder. Called only if a shard is missing.
    rank : Rank, optional
        This process among those that torchrun started; ranks but the first publish nothing.

    Returns
    -------
    dict or None
        None on ranks but the first.

    Raises
    ------
    ArtifactError
        If the prompts are not those of their manifest.
    ModelError
        If the encoder fails its preflight or gives a prompt no vector.
    """
    rank = rank or Rank.current()
    load = load or (lambda: load_with(encoder, as_dict(params), device))
    recipe = _recipe(encoder, resolve_device(device), params)
    manifest = read_manifest(prompts, "prompts")
    shards = _plan(prompts, manifest, params.rows_per_shard, recipe, cache / "embeddings")
    watched = shards[rank.index :: rank.world] if rank.index else shards  # the first waits for all
    missing = [shard for shard in watched if not _is_valid(shard, params)]
    mine = [shard for shard in missing if shard.number % rank.world == rank.index]
    run = cache / "embeddings" / "runs" / _digest(recipe, manifest["ids_sha256"])
    with Progress(run, rank, sum(shard.rows for shard in missing)) as bar:
        if mine:
            _compute(prompts, mine, params, load(), bar)
        if rank.index:
            return None
        bar.wait([s.number for s in missing], lambda number: _is_valid(shards[number], params))
    log.info("%d of %d shards computed, the rest were in %s", len(missing), len(shards), cache)
    return _publish(prompts, encoder, manifest, shards, params, recipe, out)


def load_with(folder: Path, params: dict[str, Any], device: str) -> Encoder:
    """Load an encoder with the params of an embeddings artifact, those for speed as by default."""
    from isodense.embeddings.encoder import load_encoder

    names = ("pooling", "layer", "max_tokens", "batch_tokens", "space", "projection", "precision")
    return load_encoder(folder, device=device, **{n: params[n] for n in names if n in params})


def _recipe(encoder: Path, device: str, params: EmbeddingsParams) -> dict[str, Any]:
    """Return what a shard's bytes depend on besides its prompts."""
    specs = [importlib.util.find_spec(f"isodense.{name}") for name in CODE]  # none is imported
    settings = {key: value for key, value in as_dict(params).items() if key not in NOT_IN_ROWS}
    if params.space != "logits_projected":
        del settings["projection"]
    return {
        "format_version": FORMAT_VERSION,
        "code": [sha256_file(str(spec and spec.origin)) for spec in specs],
        "versions": [importlib.metadata.version(name) for name in ("torch", "transformers")],
        "device": device,
        "encoder": content_sha256(read_manifest(encoder, "models")),
        "params": settings,
    }


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def _chunks(prompts: Path, size: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of the prompts artifact, a shard's worth at a time."""
    rows = (row for _, row in read_jsonl(prompts / PROMPTS))
    while chunk := list(islice(rows, size)):
        yield chunk


def _plan(
    prompts: Path, manifest: dict[str, Any], size: int, recipe: dict[str, Any], store: Path
) -> list[Shard]:
    """Return all shards, having checked that the prompts are those of their manifest."""
    ids = hashlib.sha256()
    shards: list[Shard] = []
    for number, chunk in enumerate(_chunks(prompts, size)):
        ids.update(("\n" * (number > 0) + "\n".join(row["id"] for row in chunk)).encode())
        key = _digest(recipe, [row["text"] for row in chunk])
        shards.append(Shard(number, len(chunk), store / f"{key}.npy"))
    if not shards or ids.hexdigest() != manifest["ids_sha256"]:
        message = f"{prompts / PROMPTS} does not hold the prompts of its manifest"
        raise ArtifactError(message, "run `dvc repro prompts`")
    return shards


def _compute(
    prompts: Path, shards: list[Shard], params: EmbeddingsParams, encoder: Encoder, bar: Progress
) -> None:
    wanted = {shard.number: shard for shard in shards}
    for number, chunk in enumerate(_chunks(prompts, params.rows_per_shard)):
        if number not in wanted:
            continue
        texts = [row["text"] for row in chunk]
        if number == shards[0].number:
            preflight(encoder, texts)
        try:
            ids, cut = encoder.tokenize(texts)
            rows = encoder.encode_tokens(ids, bar.add).astype(params.dtype)
        except TextError as error:
            line = number * params.rows_per_shard + error.row + 1
            message = f"{prompts / PROMPTS}, line {line}: {error.message}"
            raise ModelError(message, error.hint) from None
        counts: dict[str, Any] = {"cut": cut, "tokens": sum(map(len, ids))}
        if number == 0 and params.space == "logits_projected":
            counts["projection_error"] = encoder.projection_error(ids[:SAMPLE])
        _keep(wanted[number].path, rows, counts)


def _keep(path: Path, rows: np.ndarray, counts: dict[str, Any]) -> None:
    """Write a finished shard, whole or not at all, also where experiments run side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, suffix=".tmp") as folder:
        array, note = Path(folder, "rows.npy"), Path(folder, "counts.json")
        np.save(array, rows, allow_pickle=False)
        note.write_text(json.dumps({"sha256": sha256_file(array), **counts}), encoding="utf-8")
        note.replace(path.with_suffix(".json"))
        array.replace(path)


def _counts(shard: Shard) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads(shard.path.with_suffix(".json").read_text("utf-8"))
    return counts


def _is_valid(shard: Shard, params: EmbeddingsParams) -> bool:
    """Return whether a finished shard is there and whole; a power cut can leave a stump."""
    try:
        rows = load_array(shard.path, mmap=True)
        whole = _counts(shard)["sha256"] == sha256_file(shard.path)
    except (ArtifactError, OSError, ValueError, KeyError):
        return False
    return whole and rows.ndim == 2 and len(rows) == shard.rows and rows.dtype == params.dtype


def _publish(
    prompts: Path,
    encoder: Path,
    manifest: dict[str, Any],
    shards: list[Shard],
    params: EmbeddingsParams,
    recipe: dict[str, Any],
    out: Path,
) -> dict[str, Any]:
    dim = load_array(shards[0].path, mmap=True).shape[1]
    with publishing(out) as scratch:
        for shard, chunk in zip(shards, _chunks(prompts, params.rows_per_shard), strict=True):
            shutil.copyfile(shard.path, scratch / shard_name(shard.number))
            ids = "\n".join(row["id"] for row in chunk)
            (scratch / ids_name(shard.number)).write_text(ids, encoding="ascii")
        write_manifest(
            scratch,
            "embeddings",
            rows=sum(shard.rows for shard in shards),
            dim=dim,
            dtype=params.dtype,
            rows_per_shard=params.rows_per_shard,
            ids_sha256=manifest["ids_sha256"],
            device=recipe["device"],
            params=recipe["params"],
            transform=_fit(prompts, encoder, shards, params, scratch),
            inputs={"encoder": recipe["encoder"], "prompts": content_sha256(manifest)},
        )
    return _report(shards, dim)


def _fit(
    prompts: Path, encoder: Path, shards: list[Shard], params: EmbeddingsParams, out: Path
) -> dict[str, Any] | None:
    """Fit and write the post-processing, if there is to be any, and describe it."""
    decoder = not (encoder / "modules.json").is_file() and params.space == "hidden"
    if params.postprocess == "none" or (params.postprocess == "auto" and not decoder):
        return None
    with one_thread():
        blocks = _training_rows(prompts, shards, params)
        fitted = postprocess.fit(blocks, params.components)
    fitted.save(out)
    return {
        "method": "all_but_the_top",
        "components": params.components,
        "fit_rows": params.fit_rows,
    }


def _training_rows(
    prompts: Path, shards: list[Shard], params: EmbeddingsParams
) -> Iterator[np.ndarray]:
    """Yield the vectors of the first training prompts, as many as the fit is made on."""
    left = params.fit_rows
    for shard, chunk in zip(shards, _chunks(prompts, params.rows_per_shard), strict=False):
        train = [row for row, prompt in enumerate(chunk) if prompt["split"] == "train"][:left]
        yield load_array(shard.path, mmap=True)[train]
        left -= len(train)
        if not left:
            return


def _report(shards: list[Shard], dim: int) -> dict[str, Any]:
    counts = [_counts(shard) for shard in shards]
    rows = sum(shard.rows for shard in shards)
    truncated = sum(count["cut"] for count in counts) / rows
    if truncated > TRUNCATED:
        log.warning("%.0f%% of the prompts exceed embeddings.max_tokens", 100 * truncated)
    report = {
        "prompts": rows,
        "dim": dim,
        "shards": len(shards),
        "tokens_mean": round(sum(count["tokens"] for count in counts) / rows, 2),
        "truncated_share": round(truncated, 6),
    }
    error = counts[0].get("projection_error")
    return report | ({"projection_error": error} if error else {})
