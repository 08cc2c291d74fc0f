"""The download stage: pairs from every source in use, as one file in TRL's preference format.

Rows are written as they are read, so a source may be larger than memory; only the 16-byte ids of
pairs are kept, to leave out duplicates of a whole pair (prompts may repeat: their occurrences
matter later). Sources come in the order of ``download.sources``, so adding one at the end appends.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from isodense.download.examples import FILE, UnusableRow, pair_id
from isodense.download.params import DownloadParams
from isodense.download.sources import hh, local, sample, stack_exchange, ultrafeedback
from isodense.pipeline import stage
from isodense.pipeline.artifact import publishing, write_manifest
from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import dumps

log = logging.getLogger("isodense")

LOADERS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "sample": sample.load,
    "hh": hh.load,
    "ultrafeedback": ultrafeedback.load,
    "stack_exchange": stack_exchange.load,
    "local": local.load,
}
DRAWN = {"sample"}  # sources that are drawn: nothing is read, so no row is bad
SHOWN = 5  # at most so many skipped rows are logged; all are counted


@dataclass
class Tally:
    """Counts of rows that were read and that were left out.

    Attributes
    ----------
    on_bad_row : {"error", "skip"}
        Whether a malformed row raises an error or is counted.
    sources : Counter
        Pairs of each source.
    bad_rows : int
        Malformed rows that were skipped.
    unusable_rows : int
        Valid rows that hold no pair, see :class:`isodense.download.examples.UnusableRow`.
    repeated : int
        Duplicates of an earlier pair.
    """

    on_bad_row: str
    sources: Counter[str] = field(default_factory=Counter)
    bad_rows: int = 0
    unusable_rows: int = 0
    repeated: int = 0

    def bad_row(self, error: DataError) -> None:
        """Count a row without a pair; in mode ``error``, raise `error` if the row is malformed."""
        if isinstance(error, UnusableRow):
            self.unusable_rows += 1
            return
        if self.on_bad_row == "error":
            raise error
        self.bad_rows += 1
        if self.bad_rows <= SHOWN:
            log.warning("skipped %s", str(error).splitlines()[0])

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of the stage, nested under ``download``."""
        counts = {name: getattr(self, name) for name in ("bad_rows", "unusable_rows", "repeated")}
        pairs = {"pairs": self.sources.total(), "sources": dict(self.sources)}
        return {"download": pairs | counts}


def collect(
    params: DownloadParams, rng_for: Callable[[str], np.random.Generator], tally: Tally
) -> Iterator[dict[str, Any]]:
    """Yield the distinct pairs of all sources in use, in the form in which they are written.

    Parameters
    ----------
    params : DownloadParams
        The stage's section.
    rng_for : callable
        Returns the random generator of a source by name, for those that draw.
    tally : Tally
        Counts the rows that are yielded and left out.

    Yields
    ------
    dict
        ``id, prompt, chosen, rejected, source`` and, if the source has one, ``label``.
    """
    seen: set[bytes] = set()
    for source in params.sources:
        tally.sources[source] = 0
        needs = rng_for(source) if source in DRAWN else tally.bad_row
        for pair in LOADERS[source](getattr(params, source), needs):
            identifier = pair_id(pair)
            if bytes.fromhex(identifier) in seen:
                tally.repeated += 1
                continue
            seen.add(bytes.fromhex(identifier))
            tally.sources[source] += 1
            row = {"id": identifier}
            row |= {name: pair[name] for name in ("prompt", "chosen", "rejected")}
            row["source"] = source
            yield row | {"label": pair["label"]} if pair.get("label") else row


def publish(
    params: DownloadParams, rng_for: Callable[[str], np.random.Generator], out: str | Path
) -> dict[str, Any]:
    """Write the artifact ``data/examples``.

    Parameters
    ----------
    params : DownloadParams
        The stage's section.
    rng_for : callable
        Returns the random generator of a source by name.
    out : str or Path
        The artifact's folder; it is replaced only if no error occurs.

    Returns
    -------
    dict
        The metrics of the stage.

    Raises
    ------
    DataError
        If a source fails, a row is malformed in mode ``error``, or there are no pairs.
    """
    tally = Tally(params.on_bad_row)
    with publishing(out) as folder:
        rows = collect(params, rng_for, tally)
        bar = tqdm(rows, desc="pairs", unit=" pairs", **stage.progress())
        digest = _write(folder / FILE, bar)
        if not tally.sources.total():
            raise _no_pairs(params, tally)
        facts = {"rows": tally.sources.total(), "ids_sha256": digest, "params": params.in_use()}
        write_manifest(folder, "download", **facts)
    return tally.metrics()


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Write `rows` and return the SHA-256 of their newline-joined ids."""
    digest = hashlib.sha256()
    labelled = 0
    first: dict[str, Any] = {}
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for number, row in enumerate(rows):
            first = first or row
            digest.update((b"\n" if number else b"") + row["id"].encode())
            labelled += "label" in row
            stream.write(dumps(row) + "\n")
    if labelled and "label" not in first:
        _label_first(path, first)
    return digest.hexdigest()


def _label_first(path: Path, first: dict[str, Any]) -> None:
    """Give the first row an empty label.

    ``datasets`` takes the columns of a JSON file from its first 10 MB and refuses a column that
    turns up later, so a file whose labels start late would not load.
    """
    whole = path.with_name(path.name + ".part")
    with path.open("rb") as source, whole.open("wb") as target:
        source.readline()
        target.write((dumps({**first, "label": ""}) + "\n").encode())
        shutil.copyfileobj(source, target)
    whole.replace(path)


def _no_pairs(params: DownloadParams, tally: Tally) -> DataError:
    counts = f"{tally.bad_rows} bad rows, {tally.unusable_rows} unusable rows"
    message = f"no valid pairs ({counts} in {', '.join(params.sources)})"
    hint = "look at the files, or set download.on_bad_row: error to see the first bad row"
    return DataError(message, "download.sources", hint=hint)
