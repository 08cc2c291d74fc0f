"""Embedding every prompt once, in shards that can be resumed, appended to and shared.

A shard is computed from its own prompts alone, so its bytes depend on those, the encoder and the
params, and on nothing else. A finished shard is kept in a scratch folder outside the DVC outputs,
named by the hash of all it depends on: a run that was cut off, or whose prompts have grown,
computes only what is not there.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from isodense.artifacts import (
    FORMAT_VERSION,
    content_sha256,
    load_array,
    publishing,
    read_manifest,
    sha256_file,
    write_manifest,
)
from isodense.errors import ArtifactError
from isodense.params import as_dict, param
from isodense.promptset import PromptSet
from isodense.stage import progress
from isodense.vectors import shard_name

if TYPE_CHECKING:
    from isodense.encoders import Encoder


log = logging.getLogger("isodense")

TRUNCATED = 0.05  # share of cut prompts above which a person is told


@dataclass(frozen=True)
class EmbeddingsParams:
    """Section ``embeddings`` of ``params.yaml``; see :func:`isodense.encoders.load_encoder`.

    Attributes
    ----------
    rows_per_shard : int
        Prompts per shard file.
    dtype : {"float32", "float16"}
        Of the stored vectors.
    """

    pooling: Literal["auto", "mean", "cls", "last"] = param()
    layer: int | None = param(minimum=1)
    max_tokens: int = param(minimum=8)
    batch_tokens: int = param(minimum=64)
    rows_per_shard: int = param(minimum=1)
    dtype: Literal["float32", "float16"] = param()


def embed(
    prompts: PromptSet,
    encoder: Encoder,
    encoder_folder: Path,
    params: EmbeddingsParams,
    prompts_sha256: str,
    cache: Path,
    out: Path,
) -> dict[str, Any]:
    """Write ``data/embeddings`` and return what the metrics report.

    Parameters
    ----------
    prompts : PromptSet
        All prompts, held-out ones too.
    encoder : Encoder
        Loaded from `encoder_folder`.
    encoder_folder : Path
        The encoder's artifact; its manifest identifies it.
    params : EmbeddingsParams
        The stage's section.
    prompts_sha256 : str
        Hash of the prompts' content.
    cache : Path
        Where finished shards are kept.
    out : Path
        The artifact's folder.
    """
    texts = prompts.texts
    recipe = _recipe(encoder_folder, encoder.device, params)
    starts = range(0, len(texts), params.rows_per_shard)
    computed = 0
    with publishing(out) as scratch, tqdm(total=len(texts), unit="prompt", **progress()) as bar:
        for number, start in enumerate(starts):
            part = texts[start : start + params.rows_per_shard]
            finished = cache / "embeddings" / _key(recipe, part)
            if not _sound(finished, (len(part), encoder.dim), params.dtype):
                _compute(part, encoder, params.dtype, finished, bar)
                computed += 1
            else:
                bar.update(len(part))
            shutil.copyfile(finished, scratch / shard_name(number))
        write_manifest(
            scratch,
            "embeddings",
            rows=len(texts),
            dim=encoder.dim,
            dtype=params.dtype,
            rows_per_shard=params.rows_per_shard,
            ids_sha256=prompts.ids_sha256,
            device=encoder.device,
            params=recipe["params"],
            inputs={"encoder": recipe["encoder"], "prompts": prompts_sha256},
        )
    log.info("%d of %d shards computed, the rest were in %s", computed, len(starts), cache)
    truncated = encoder.tokenize(texts)[1] / len(texts)
    if truncated > TRUNCATED:
        log.warning("%.0f%% of the prompts exceed embeddings.max_tokens", 100 * truncated)
    return {
        "prompts": len(texts),
        "dim": encoder.dim,
        "shards": len(starts),
        "truncated_share": round(truncated, 6),
    }


def _recipe(encoder_folder: Path, device: str, params: EmbeddingsParams) -> dict[str, Any]:
    """Return what a shard's bytes depend on besides its prompts."""
    from isodense import encoders

    settings = as_dict(params)
    del settings["batch_tokens"], settings["rows_per_shard"]  # they change no byte of a row
    return {
        "format_version": FORMAT_VERSION,
        "code": sha256_file(encoders.__file__),
        "versions": [importlib.metadata.version(name) for name in ("torch", "transformers")],
        "device": device,
        "encoder": content_sha256(read_manifest(encoder_folder, "models")),
        "params": settings,
    }


def _key(recipe: dict[str, Any], texts: list[str]) -> str:
    digest = hashlib.sha256(json.dumps([recipe, texts], sort_keys=True).encode())
    return f"{digest.hexdigest()[:40]}.npy"


def _compute(texts: list[str], encoder: Encoder, dtype: str, path: Path, bar: Any) -> None:
    rows = encoder.encode(texts, lambda count, tokens: bar.update(count)).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as stream:
        np.save(stream, rows, allow_pickle=False)
    Path(stream.name).replace(path)  # whole or absent, also where experiments run side by side


def _sound(path: Path, shape: tuple[int, int], dtype: str) -> bool:
    """Return whether a finished shard is there and readable; a power cut can leave a stump."""
    try:
        rows = load_array(path, mmap=True)
    except ArtifactError:
        return False
    return rows.shape == shape and rows.dtype == dtype
