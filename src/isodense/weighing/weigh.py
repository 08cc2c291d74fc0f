"""``isodense.weigh``: from prompts to weights with the library calls of the stages.

The artifacts of the stages are made in a folder of their own. What is costly is kept in the cache
(:mod:`isodense.pipeline.cache`): shards of vectors, blocks of neighbours, the map, the encoder. A
run that was cut off goes on from there, and one with other density params computes nothing anew.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from isodense.density import artifact as density_artifact
from isodense.density.balance import label_statistics
from isodense.density.estimate import Estimate, estimate, heldout_density, reached_ess
from isodense.density.kinds import load_kinds
from isodense.density.opinion import judge
from isodense.embeddings.build import embed
from isodense.embeddings.reader import load_vectors
from isodense.map import layout
from isodense.map.reader import load_coordinates
from isodense.models import publish as models
from isodense.neighbors import build as neighbors
from isodense.neighbors.graph import Graph, load_graph, load_heldout_graph
from isodense.pipeline import stage
from isodense.pipeline.artifact import (
    MANIFEST,
    content_sha256,
    ids_sha256,
    publishing,
    read_manifest,
    write_json,
    write_manifest,
)
from isodense.pipeline.cache import Store, cache_key, require_writable
from isodense.pipeline.errors import DataError, IsodenseError
from isodense.pipeline.extras import require
from isodense.pipeline.params import as_dict, build
from isodense.pipeline.storage import beside
from isodense.pipeline.tables import MixedTypes, read_rows, write_rows
from isodense.prompts import deduplicate
from isodense.prompts.params import PromptsParams
from isodense.prompts.reader import Columns, load_columns
from isodense.weighing.data import parts_of
from isodense.weighing.reading import OnBadRow, Reading
from isodense.weighing.result import Weighed
from isodense.weighing.settings import Settings, settings
from isodense.weighing.summary import describe

ALL_TRAINED = {
    "heldout": 0.0,
    "heldout_by": "id",
    "near_duplicate": None,
    "drop_conflicting": [],
}  # section `prompts`: every prompt gets a weight
UNLABELLED = ("id", "prompt", "tools", "source")  # columns of examples
ARTIFACTS = ("examples", "prompts", "encoder", "embeddings", "neighbors", "map", "density")
WITH_TARGET = ("soft_count", "knn")  # density.method: those that reach for an ess
MAP, ENCODER = "map", "encoder"  # pieces of the cache, and artifacts

log = logging.getLogger("isodense.weigh")


def weigh(
    data: Any,
    column: str | None = None,
    *,
    split: str = "train",
    config: str | None = None,
    label: str | None = None,
    encoder: str | Path | None = None,
    k: int | None = None,
    ess: float | None = None,
    seed: int | None = None,
    on_bad_row: OnBadRow = "error",
    params: Mapping[str, Any] | None = None,
    report: str | Path | None = None,
    work: str | Path | None = None,
) -> Weighed:
    """Weigh prompts inversely to their local density, without a project.

    Parameters
    ----------
    data : path, str, data set, data frame, or list of str, of messages or of dict
        JSON, JSONL, parquet, CSV, TSV, text and Arrow files, plain or compressed, a folder or
        pattern of them; ``owner/name`` or ``owner/name@revision`` of the Hub; an object of
        ``datasets``; a pandas or pyarrow table; texts, conversations or rows.
    column : str, optional
        The column that holds the prompts, nested ones with dots. By default the shape decides, as
        for the source ``local``: ``prompt``, ``problem``, ``question``, ``messages``, …
    split, config : str
        Of a data set of the Hub; `split` also of a ``DatasetDict``.
    label : str, optional
        The column that names the kinds of prompts, for the opinion and the report; by default
        ``label``, where there is one.
    encoder : str or Path, optional
        A model folder, or ``owner/name`` or ``owner/name@revision`` of the Hub; by default
        all-MiniLM-L6-v2, from PyPI.
    k : int, optional
        Neighbours used (50).
    ess : float, optional
        Target of the effective sample size, as a share of the distinct prompts (0.8).
    seed : int, optional
        Of the map, and of an approximate search for neighbours (0).
    on_bad_row : {"error", "skip"}
        What to do with rows without a prompt; those that are skipped are counted.
    params : mapping of str to Any, optional
        Other params by their names in ``params.yaml``, such as ``embeddings.precision``, of the
        sections base, embeddings, neighbors, map and density.
    report : str or Path, optional
        HTML page to write; needs ``isodense[report]``.
    work : str or Path, optional
        Folder that keeps the artifacts, in the formats of a project's ``data``, and the encoder:
        ``isodense.load_weights(work / "density")`` reads the weights of the different prompts.

    Returns
    -------
    Weighed
        One entry for each row of the data, in their order.

    Raises
    ------
    DataError
        If a row holds no prompt, no column is known to, or there are no rows.
    IsodenseError
        If a param is none, or a model or data set cannot be fetched.

    Examples
    --------
    >>> import isodense
    >>> texts = ["How do I boil an egg?", "How do I boil eggs?", "Name a volcano"]
    >>> w = isodense.weigh(texts, encoder="models/encoder", params={"embeddings.max_tokens": 64})
    >>> w.weights.shape, round(float(w.weights.sum()), 6)
    ((3,), 1.0)
    """
    named = {"density.k": k, "density.ess": ess, "base.seed": seed}
    changes = {name: value for name, value in named.items() if value is not None}
    chosen = settings(changes | dict(params or {}), encoder)
    if ess is not None and chosen.density.method not in WITH_TARGET:
        message = f"ess has no effect with density.method {chosen.density.method}"
        raise IsodenseError(message, "leave one of them out")
    if chosen.density.balance_by not in (None, "source", "label"):
        label = _kinds_column(chosen.density.balance_by, label)
        density = chosen.density.model_copy(update={"balance_by": "label"})
        chosen = replace(chosen, density=density)
    cache = cache_folder()
    require_writable(cache)
    if report is not None:
        require("report")
    with _folder(work, cache) as folder:
        with _timed("read"):
            reading = _read(data, column, split, config, label, on_bad_row, folder / "examples")
        return _weighed(reading, chosen, cache, folder, report, keep=work is not None)


def _kinds_column(by: str, label: str | None) -> str:
    """Return the column of the kinds, of which there is one."""
    if label not in (None, by):
        message = f"density.balance_by is {by}, and the label is another column, {label}"
        raise IsodenseError(message, "name one column for both")
    return by


def cache_folder() -> Path:
    """Return the cache: ``ISODENSE_CACHE``, a project's, or the user's ``~/.cache/isodense``."""
    if "ISODENSE_CACHE" in os.environ or Path("dvc.yaml").is_file():
        return stage.cache()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isodense"


@contextmanager
def _folder(work: str | Path | None, cache: Path) -> Iterator[Path]:
    """Give the folder of the artifacts, which is gone at the end unless it is `work`."""
    if work is not None:
        if (Path(work).absolute().parent / "dvc.yaml").is_file():
            message = f"{work} is a folder of a project, whose artifacts DVC guards"
            raise IsodenseError(message, "name another folder")
        _require_ours(Path(work))
        yield Path(work)
        return
    with beside(cache / "weigh") as folder:
        yield folder


def _require_ours(work: Path) -> None:
    """Raise if the artifacts would take the place of something else."""
    if work.exists() and not work.is_dir():
        raise IsodenseError(f"{work} is not a folder", "name another one")
    for path in (work / name for name in ARTIFACTS):
        empty = path.is_dir() and not any(path.iterdir())
        if os.path.lexists(path) and not empty and not (path / MANIFEST).is_file():
            message = f"{path} is no artifact, and one would take its place"
            raise IsodenseError(message, "name another folder, or move it")


def _read(
    data: Any,
    column: str | None,
    split: str,
    config: str | None,
    label: str | None,
    on_bad_row: OnBadRow,
    out: Path,
) -> Reading:
    """Read the rows, and write their prompts as ``data/examples``."""
    source, parts = parts_of(data, split, config)
    reading = Reading(parts, source, column, label, on_bad_row)
    with publishing(out) as staging:
        rows = tqdm(reading.examples(), desc="rows", unit=" rows", **stage.progress())
        try:
            write_rows(staging, rows)
        except MixedTypes as error:  # messages of tools that do not go together
            raise DataError(str(error), source, hint="weigh such rows apart") from None
        ids = ids_sha256(row["id"] for row in read_rows(staging, ["id"]))
        facts = {"rows": len(reading.ids), "pairs": 0, "ids_sha256": ids}
        write_manifest(staging, "download", params={}, **facts)
    return reading


def _weighed(
    reading: Reading,
    chosen: Settings,
    cache: Path,
    folder: Path,
    report: str | Path | None,
    keep: bool,
) -> Weighed:
    examples, section = folder / "examples", build(PromptsParams, ALL_TRAINED, "prompts")
    digest = content_sha256(read_manifest(examples, "download"))
    used = None if reading.has_kinds or chosen.density.balance_by else UNLABELLED
    counts = deduplicate.publish(
        lambda: read_rows(examples, used), section, digest, folder / "prompts"
    )
    prompts = load_columns(folder / "prompts")
    encoder = _encoder(chosen, cache, folder)
    if keep and encoder != folder / ENCODER:  # new prompts are embedded by it
        with publishing(folder / ENCODER) as staging:
            shutil.copytree(encoder, staging, dirs_exist_ok=True)
    device, seed_of = chosen.base.device, chosen.base.seed_of
    with _timed("embedded"):
        embed(
            folder / "prompts",
            encoder,
            chosen.embeddings,
            device,
            cache,
            folder / "embeddings",
        )
    with _timed("neighbours found"):
        neighbors.publish(
            folder / "embeddings",
            prompts,
            chosen.neighbors,
            device,
            seed_of("neighbors"),
            cache,
            folder / "neighbors",
        )
    with _timed("laid out"):
        _map(prompts, chosen, seed_of("map"), cache, folder)
    found, graph, facts = _density(prompts, chosen, folder)
    rows = {
        "rows": len(reading.ids),
        "skipped": reading.skipped,
        "repeated": len(reading.ids) - len(prompts),
    }
    facts = rows | facts
    if report is not None:
        with _timed("report written"):
            write_json(folder / "metrics.json", {"prompts": counts, "density": facts})
            _report(folder, encoder, Path(report))
    return _by_row(reading, prompts, found, graph, facts, load_coordinates(folder / "map")[0])


def _encoder(chosen: Settings, cache: Path, folder: Path) -> Path:
    """Publish the encoder: in the cache where its bytes are pinned, else beside the others."""
    if chosen.encoder.sha256 is None:
        models.publish("encoder", chosen.encoder, folder / ENCODER, cache)
        return folder / ENCODER
    store = Store(cache, "encoders")
    key = cache_key(
        inputs={}, params=as_dict(chosen.encoder), code=("models",), libraries=(), device=None
    )
    entry = store.entry(key)
    if not entry.holds(ENCODER):
        log.info("fetching %s %s from PyPI", chosen.encoder.name, chosen.encoder.version)
        with entry.writing(ENCODER) as out:
            models.publish("encoder", chosen.encoder, out, cache)
    store.clean()
    with publishing(folder / ENCODER) as staging:  # which one it was, without its bytes
        shutil.copyfile(entry.path(ENCODER) / MANIFEST, staging / MANIFEST)
    return entry.path(ENCODER)


def _map(prompts: Columns, chosen: Settings, seed: int, cache: Path, folder: Path) -> None:
    graph = content_sha256(read_manifest(folder / "neighbors", "neighbors"))
    store = Store(cache, "maps")
    key = cache_key(
        inputs={"neighbors": graph},
        params=as_dict(chosen.map) | {"seed": seed},
        code=("map",),
        libraries=("umap-learn", "numba", "numpy", "scipy"),
        device=None,
    )
    entry = store.entry(key)
    if not entry.holds(MAP):
        with entry.writing(MAP) as out:
            layout.publish(prompts, folder / "neighbors", chosen.map, seed, out)
    with publishing(folder / "map") as staging:
        shutil.copytree(entry.path(MAP), staging, dirs_exist_ok=True)
    store.clean()


def _density(
    prompts: Columns, chosen: Settings, folder: Path
) -> tuple[Estimate, Graph, dict[str, Any]]:
    """Write ``data/density``; return what was found, the graph, and the measures."""
    params = chosen.density
    graph, manifest = load_graph(folder / "neighbors")
    vectors = load_vectors(folder / "embeddings")[0] if params.method == "clusters" else None
    by = params.balance_by
    kinds = load_kinds(folder / "prompts", by) if by else None
    found = estimate(graph, params, prompts.counts, vectors, kinds)
    known = {}
    if prompts.labels_are_kinds and prompts.labels:
        known = {"label": label_statistics(found.weights, prompts.labels)}
    opinion = judge(found, graph, params, known, kinds, prompts.counts)
    held = load_heldout_graph(folder / "neighbors")  # of no prompt
    density_artifact.publish(
        found,
        heldout_density(found, held, params),
        np.zeros(0, dtype=np.bool_),
        prompts.ids,
        params,
        opinion,
        manifest,
        content_sha256(manifest),
        folder / "density",
    )
    facts = density_artifact.statistics(found, graph, params, prompts.counts, kinds)
    facts |= {"recall": manifest["recall"], "opinion": opinion}
    facts |= {
        "neighbors": {"asked": params.k, "used": graph.first(params.k).k},
        "target": {
            "ess_share": params.ess,
            "reached": reached_ess(found, params),
            "of": len(prompts) if params.method == "knn" else int(found.clusters.max()) + 1,
            "alpha_max": params.alpha_max,
        },
    }
    facts |= {"labels": known["label"]} if known else {}
    return found, graph, facts


def _report(folder: Path, encoder: Path, out: Path) -> None:
    from isodense.report.page import Sources, write_report

    made = [folder / name for name in ("prompts", "embeddings", "neighbors", "map", "density")]
    sources = Sources(
        folder / "prompts",
        folder / "density",
        folder / "neighbors",
        folder / "map",
        metrics=[folder / "metrics.json"],
        manifests=[path / "manifest.json" for path in (encoder, *made)],
        standalone=True,
    )
    write_report(sources, out)


def _by_row(
    reading: Reading,
    prompts: Columns,
    found: Estimate,
    graph: Graph,
    facts: dict[str, Any],
    coordinates: np.ndarray,
) -> Weighed:
    """Return what was found of each prompt for each row of the data."""
    number = {identifier: place for place, identifier in enumerate(prompts.ids)}
    place = np.fromiter(map(number.__getitem__, reading.ids), np.int64, len(reading.ids))
    shared = found.weights[place] / np.bincount(place)[place]
    return Weighed(
        weights=shared / shared.sum(),
        rows=np.array(reading.rows, dtype=np.int64),
        ids=reading.ids,
        density=found.density[place].astype(np.float32),
        clusters=found.clusters[place].astype(np.int32),
        coordinates=np.array(coordinates)[place],
        graph=Graph(np.array(graph.indices), np.array(graph.distances)),
        prompts=place,
        facts=facts,
        opinion=describe(facts),
        inputs=reading.table(),
    )


@contextmanager
def _timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    log.info("%s (%.1f s)", what, time.perf_counter() - start)
