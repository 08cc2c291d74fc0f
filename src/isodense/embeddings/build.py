"""Embedding every prompt once, in shards that can be resumed, appended to and shared.

A shard is computed from its own prompts alone, so its bytes depend on those, the encoder and the
params, and on nothing else. A finished shard is kept in :mod:`isodense.pipeline.cache`: a run that
was cut off, or whose prompts have grown, computes only what is not there. Workers
(:mod:`isodense.pipeline.executor`) embed parts of shards. Prompts are read a shard at a time, so
memory does not grow with their number.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isodense.embeddings import postprocess
from isodense.embeddings.params import EmbeddingsParams
from isodense.embeddings.preflight import preflight
from isodense.embeddings.reader import embedding_bytes, ids_name, shard_name
from isodense.embeddings.truncation import cut_prompts, equal_after_cutting, require_few
from isodense.pipeline.artifact import (
    content_sha256,
    load_array,
    publishing,
    read_checked,
    read_manifest,
    write_manifest,
)
from isodense.pipeline.cache import Entry, Store, cache_key
from isodense.pipeline.errors import ArtifactError, ModelError, TextError
from isodense.pipeline.executor import compute, device_of_workers, workers
from isodense.pipeline.params import as_dict
from isodense.pipeline.runtime import bfloat16_gain, one_thread
from isodense.pipeline.storage import require_space
from isodense.pipeline.tables import read_rows
from isodense.pipeline.tasks import Job, Task, Workers

if TYPE_CHECKING:
    from isodense.embeddings.encoder import Encoder

log = logging.getLogger("isodense")

PART = 512  # prompts that a worker embeds at once; no row depends on it
SAMPLE = 200  # prompts whose cosines show the error of a projection
LONG = 20_000  # prompts that take minutes to embed
TRUNCATED = 0.05  # share of cut prompts above which the stage warns
RECIPE = 1  # to be raised with any change to a row's values; see tests/recipes.py
RECIPES = {"logits": 2}  # of spaces whose rows changed alone
LIBRARIES = ("torch", "transformers")
ROWS, COUNTS = "rows.npy", "counts.json"  # pieces of a finished shard, in the cache
CUT = "cut_prompts"  # of the counts: hashes, where prompts were cut
WINDOWS = "windows"  # of the counts: how many prompts were read in windows, most of one
NOT_IN_ROWS = ("batch_tokens", "rows_per_shard", "postprocess", "components", "fit_rows")


@dataclass(frozen=True)
class Shard:
    """One shard of the set.

    Attributes
    ----------
    number : int
    rows : int
    entry : Entry
        Where its vectors and token counts are kept once finished.
    """

    number: int
    rows: int
    entry: Entry


def embed(
    prompts: Path, encoder: Path, params: EmbeddingsParams, device: str, cache: Path, out: Path
) -> dict[str, Any]:
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

    Raises
    ------
    ArtifactError
        If the prompts are not those of their manifest.
    ModelError
        If the encoder fails its preflight, gives a prompt no vector, or cuts many prompts to the
        same tokens.
    """
    model, where = read_manifest(encoder, "models"), device_of_workers(device)
    manifest = read_checked(prompts, "prompts")
    store = Store(cache, "embeddings")

    def key(texts: list[str]) -> str:
        return _key(texts, model, params, where)

    shards = _plan(prompts, manifest, params.rows_per_shard, key, store)
    missing = [shard for shard in shards if not _is_finished(shard)]
    if missing:
        _suggest_faster(params.precision, where, sum(shard.rows for shard in missing))
        settings = {"params": params, "device": where}
        room = partial(_require_space, missing, shards, params.dtype, store.folder, out)
        with workers(Job(Embedding, {"encoder": encoder}, settings, where)) as found:
            _compute(prompts, missing, params, found, room)
    log.info("%d of %d shards computed, the rest were in %s", len(missing), len(shards), cache)
    equal = equal_after_cutting(pair for shard in shards for pair in _counts(shard).get(CUT, ()))
    require_few(equal, manifest["rows"], params.max_tokens)
    report = _publish(prompts, encoder, manifest, model, shards, params, where, out)
    store.clean()
    return report | ({"equal_after_cutting": equal} if equal else {})


def _require_space(
    missing: list[Shard], shards: list[Shard], dtype: str, cache: Path, out: Path, dim: int
) -> None:
    kept, published = (
        embedding_bytes(sum(shard.rows for shard in some), dim, dtype) for some in (missing, shards)
    )
    require_space("embeddings", {cache: kept, out: published})


def _suggest_faster(precision: str, device: str, prompts: int) -> None:
    """Say which precision would be faster, where embedding takes minutes."""
    if prompts <= LONG or precision == "bfloat16":
        return
    if precision == "float64":
        message = "%d prompts in float64, whose bytes are the same on any processor; "
        log.info(message + "embeddings.precision: float32 is up to four times as fast", prompts)
    if device == "cpu" and (gain := bfloat16_gain()):
        message = "embeddings.precision: bfloat16 is about %.1f times as fast as float32 on this "
        log.info(message + "processor, and gives nearly the same weights", gain)


def load_with(folder: Path, params: dict[str, Any], device: str) -> Encoder:
    """Load an encoder with the params of an embeddings artifact, those for speed as by default."""
    from isodense.embeddings.encoder import load_encoder

    names = ("pooling", "layer", "max_tokens", "long", "batch_tokens", "space", "projection")
    known = {name: params[name] for name in (*names, "precision") if name in params}
    prefix = params.get("prefix", "")  # artifacts made before there was the param have none
    return load_encoder(folder, device=device, prefix=prefix, **known)


def _key(texts: list[str], encoder: dict[str, Any], params: EmbeddingsParams, device: str) -> str:
    """Return the key of a shard of `texts`."""
    return cache_key(
        inputs={"encoder": encoder, "texts": texts},
        params={**_shaping(params), "dtype": params.dtype},
        code=RECIPES.get(params.space, RECIPE),
        libraries=LIBRARIES,
        device=device,
    )


def _shaping(params: EmbeddingsParams) -> dict[str, Any]:
    """Return the params that decide a row's bytes."""
    unused = {*NOT_IN_ROWS, *(() if params.space == "logits_projected" else ("projection",))}
    if params.long == "cut":  # so that shards made before there was the param stay valid
        unused.add("long")
    return {name: value for name, value in as_dict(params).items() if name not in unused}


def _chunks(prompts: Path, size: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of the prompts artifact, a shard's worth at a time."""
    rows = read_rows(prompts, ("id", "text", "split"))
    while chunk := list(islice(rows, size)):
        yield chunk


def _plan(
    prompts: Path,
    manifest: dict[str, Any],
    size: int,
    key: Callable[[list[str]], str],
    store: Store,
) -> list[Shard]:
    """Return all shards, having checked that the prompts are those of their manifest."""
    ids = hashlib.sha256()
    shards: list[Shard] = []
    for number, chunk in enumerate(_chunks(prompts, size)):
        ids.update(("\n" * (number > 0) + "\n".join(row["id"] for row in chunk)).encode())
        entry = store.entry(key([row["text"] for row in chunk]))
        shards.append(Shard(number, len(chunk), entry))
    if not shards or ids.hexdigest() != manifest["ids_sha256"]:
        message = f"{prompts} does not hold the prompts of its manifest"
        raise ArtifactError(message, "run `dvc repro prompts`")
    return shards


class Embedding:
    """What embeds texts in a worker, having tried the encoder on the first ones.

    Parameters
    ----------
    encoder : Path
        The encoder's folder.
    params : EmbeddingsParams
    device : {"cpu", "cuda"}
    """

    def __init__(self, encoder: Path, params: EmbeddingsParams, device: str) -> None:
        self._encoder, self._params = load_with(encoder, as_dict(params), device), params
        self._checked = False

    def __call__(
        self, texts: list[str], first: int, tokens_only: bool
    ) -> tuple[np.ndarray | None, dict[str, Any]]:
        """Return the vectors of texts and what is kept beside them.

        Parameters
        ----------
        texts : list of str
        first : int
            Row of the first one among all prompts.
        tokens_only : bool
            Whether the vectors are known, and None is returned for them.

        Raises
        ------
        TextError
            If a text has no vector, with its row among all prompts.
        """
        if not self._checked:
            preflight(self._encoder, texts)
            self._checked = True
        ids, whole = self._encoder.tokenize_whole(texts)
        try:
            rows = None if tokens_only else self._encoder.encode_tokens(ids)
        except TextError as error:
            error.row += first
            raise
        counts = _counted(ids, whole, self._params, self._encoder)
        if not first and self._params.space == "logits_projected":
            counts["projection_error"] = self._encoder.projection_error(ids[:SAMPLE])
        return None if rows is None else rows.astype(self._params.dtype), counts


def _counted(
    ids: list[list[int]], whole: dict[int, list[int]], params: EmbeddingsParams, encoder: Encoder
) -> dict[str, Any]:
    """Return what is kept beside the vectors of a shard, from the tokens of its prompts."""
    counts: dict[str, Any] = {"cut": len(whole), "tokens": sum(map(len, ids))}
    if params.long == "windows":
        windows = encoder.windows(ids).counts
        if several := int((windows > 1).sum()):
            counts[WINDOWS] = {"prompts": several, "most": int(windows.max())}
    elif pairs := cut_prompts(ids, whole, params.max_tokens):
        counts[CUT] = pairs
    if encoder.padded:
        counts["padded"] = encoder.padded
    return counts


def _compute(
    prompts: Path,
    shards: list[Shard],
    params: EmbeddingsParams,
    found: Workers,
    require_room: Callable[[int], None],
) -> None:
    """Embed the prompts of shards; a shard is kept as soon as all its parts are there.

    `require_room` takes the columns of a vector, which the first one shows.
    """
    wanted = {shard.number: shard for shard in shards}
    parts: dict[int, dict[int, Any]] = {number: {} for number in wanted}
    tasks, total = _tasks(prompts, wanted, params.rows_per_shard), sum(s.rows for s in shards)
    checked = False
    try:
        for task, (rows, counts) in compute(found, tasks, total, "prompt"):
            if not checked and rows is not None:
                require_room(rows.shape[1])
                checked = True
            number, start = divmod(task.args[1], params.rows_per_shard)
            parts[number][start] = rows, counts
            if len(parts[number]) == -(-wanted[number].rows // PART):
                _keep(wanted[number], [part for _, part in sorted(parts.pop(number).items())])
    except TextError as error:
        row = next(islice(read_rows(prompts, ("id",)), error.row, None))
        message = f"{prompts}, row {error.row} (id {row['id']}): {error.message}"
        raise ModelError(message, error.hint) from None


def _tasks(prompts: Path, wanted: dict[int, Shard], size: int) -> Iterator[Task]:
    """Yield the parts of the wanted shards: their texts, and the row of the first."""
    for number, chunk in enumerate(_chunks(prompts, size)):
        if number not in wanted:
            continue
        known = wanted[number].entry.holds(ROWS)  # of a version that kept no hashes
        for start in range(0, len(chunk), PART):
            texts = [row["text"] for row in chunk[start : start + PART]]
            first = number * size + start
            name = f"prompts {first} to {first + len(texts) - 1}"
            yield Task(name, len(texts), (texts, first, known))


def _keep(shard: Shard, parts: list[tuple[np.ndarray | None, dict[str, Any]]]) -> None:
    rows = [part for part, _ in parts if part is not None]
    if rows:
        with shard.entry.writing(ROWS) as path, path.open("wb") as stream:
            np.save(stream, np.concatenate(rows), allow_pickle=False)
    with shard.entry.writing(COUNTS) as path:
        path.write_text(json.dumps(_together([counts for _, counts in parts])), encoding="utf-8")


def _together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the counts of a shard from those of its parts."""
    counts: dict[str, Any] = {name: sum(part[name] for part in parts) for name in ("cut", "tokens")}
    if windows := [part[WINDOWS] for part in parts if WINDOWS in part]:
        counts[WINDOWS] = _windows(windows)
    if pairs := [pair for part in parts for pair in part.get(CUT, ())]:
        counts[CUT] = pairs
    for part in parts:
        counts |= {name: part[name] for name in ("padded", "projection_error") if name in part}
    return counts


def _windows(counts: list[dict[str, int]]) -> dict[str, int]:
    return {
        "prompts": sum(count["prompts"] for count in counts),
        "most": max(count["most"] for count in counts),
    }


def _is_finished(shard: Shard) -> bool:
    if not (shard.entry.holds(COUNTS) and shard.entry.holds(ROWS)):
        return False
    counts = _counts(shard)
    return not counts["cut"] or CUT in counts


def _counts(shard: Shard) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads(shard.entry.path(COUNTS).read_text(encoding="utf-8"))
    return counts


def _publish(
    prompts: Path,
    encoder: Path,
    manifest: dict[str, Any],
    model: dict[str, Any],
    shards: list[Shard],
    params: EmbeddingsParams,
    device: str,
    out: Path,
) -> dict[str, Any]:
    dim = load_array(shards[0].entry.path(ROWS), mmap=True).shape[1]
    with publishing(out) as staging:
        for shard, chunk in zip(shards, _chunks(prompts, params.rows_per_shard), strict=True):
            shutil.copyfile(shard.entry.path(ROWS), staging / shard_name(shard.number))
            ids = "\n".join(row["id"] for row in chunk)
            (staging / ids_name(shard.number)).write_text(ids, encoding="ascii")
        write_manifest(
            staging,
            "embeddings",
            rows=sum(shard.rows for shard in shards),
            dim=dim,
            dtype=params.dtype,
            rows_per_shard=params.rows_per_shard,
            ids_sha256=manifest["ids_sha256"],
            device=device,
            params=_shaping(params),
            transform=_fit(prompts, encoder, shards, params, staging),
            inputs={"encoder": content_sha256(model), "prompts": content_sha256(manifest)},
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
        yield load_array(shard.entry.path(ROWS), mmap=True)[train]
        left -= len(train)
        if not left:
            return


def _report(shards: list[Shard], dim: int) -> dict[str, Any]:
    counts = [_counts(shard) for shard in shards]
    rows = sum(shard.rows for shard in shards)
    truncated = sum(count["cut"] for count in counts) / rows
    if truncated > TRUNCATED:
        message = "%.0f%% of the prompts exceed embeddings.max_tokens and are cut; "
        message += "embeddings.long: windows reads all of them"
        log.warning(message, 100 * truncated)
    report = {
        "prompts": rows,
        "dim": dim,
        "shards": len(shards),
        "tokens_mean": round(sum(count["tokens"] for count in counts) / rows, 2),
        "truncated_share": round(truncated, 6),
    }
    if windows := [count[WINDOWS] for count in counts if WINDOWS in count]:
        report[WINDOWS] = _windows(windows)
    reasons = (count["padded"] for count in counts if "padded" in count)
    if reason := next(reasons, None):
        report["padded"] = reason
    error = counts[0].get("projection_error")
    return report | ({"projection_error": error} if error else {})
