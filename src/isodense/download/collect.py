"""The download stage: pairs from every source in use, as one file in TRL's preference format.

Rows are written as they are read, so a source may be larger than the memory; what is kept of them
is 16 bytes of each pair's id, to leave out exact repeats of a whole pair (prompts may repeat: their
counts matter later). Sources come in the order of ``download.sources``, so adding one at the end
appends.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from isodense.download.pairs import FILE, UnusableRow, pair_id
from isodense.download.sources.hh import HhParams
from isodense.download.sources.local import LocalParams
from isodense.download.sources.sample import SampleParams
from isodense.download.sources.stack_exchange import StackExchangeParams
from isodense.download.sources.ultrafeedback import UltrafeedbackParams
from isodense.pipeline import stage
from isodense.pipeline.artifact import publishing, write_manifest
from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import dumps
from isodense.pipeline.params import as_dict, param

log = logging.getLogger("isodense")

DRAWN = {"sample"}  # sources that are made by chance: nothing is read, so no row is bad
SHOWN = 5  # skipped rows that are named in the log; the rest are counted


@dataclass(frozen=True)
class DownloadParams:
    """Section ``download`` of ``params.yaml``; only the sources listed are read."""

    sources: list[Literal["sample", "hh", "ultrafeedback", "stack_exchange", "local"]] = param(
        minimum=1
    )
    on_bad_row: Literal["error", "skip"] = param()
    sample: SampleParams = param()
    hh: HhParams = param()
    ultrafeedback: UltrafeedbackParams = param()
    stack_exchange: StackExchangeParams = param()
    local: LocalParams = param()

    def faults(self) -> list[str]:
        """Return what is wrong across fields."""
        named: dict[str, list[Any]] = {
            "sources": self.sources,
            "hh.subsets": self.hh.subsets,
            "stack_exchange.sites": self.stack_exchange.sites,
            "local.files": self.local.files,
        }
        faults = [
            f"{key} names {item!r} {count} times"
            for key, items in named.items()
            for item, count in Counter(items).items()
            if count > 1
        ]
        if "local" in self.sources and not self.local.files:
            faults.append("sources names 'local', but local.files is []: list your files there")
        return faults

    def in_use(self) -> dict[str, Any]:
        """Return the section without the sources that are not listed, as manifests record it.

        Absolute paths of local files, which differ between machines, are cut to their names.
        """
        section = as_dict(self)
        used = {name: section[name] for name in ("sources", "on_bad_row", *self.sources)}
        if "local" in used:
            files = [Path(file) for file in self.local.files]
            used["local"]["files"] = [f.name if f.is_absolute() else f.as_posix() for f in files]
        return used


@dataclass
class Tally:
    """What was read and what was left out.

    Parameters
    ----------
    on_bad_row : {"error", "skip"}
        What a malformed row does.
    """

    on_bad_row: str
    sources: Counter[str] = field(default_factory=Counter)
    bad_rows: int = 0
    unusable_rows: int = 0
    repeated: int = 0

    def bad_row(self, error: DataError) -> None:
        """Count a row that is no pair, or raise `error` in mode ``error``."""
        if isinstance(error, UnusableRow):
            self.unusable_rows += 1
            return
        if self.on_bad_row == "error":
            raise error
        self.bad_rows += 1
        if self.bad_rows <= SHOWN:
            log.warning("skipped %s", str(error).splitlines()[0])

    def metrics(self) -> dict[str, Any]:
        """Return the stage's metrics, nested under its name."""
        counts = {name: getattr(self, name) for name in ("bad_rows", "unusable_rows", "repeated")}
        pairs = {"pairs": self.sources.total(), "sources": dict(self.sources)}
        return {"download": pairs | counts}


def collect(
    params: DownloadParams, rng_for: Callable[[str], np.random.Generator], tally: Tally
) -> Iterator[dict[str, Any]]:
    """Yield the distinct pairs of all sources in use, as they are written.

    Parameters
    ----------
    params : DownloadParams
        The section.
    rng_for : callable
        Gives the random generator of a source by name, for those that draw.
    tally : Tally
        Counts what is yielded and left out.

    Yields
    ------
    dict
        ``id, prompt, chosen, rejected, source`` and, if the source gave one, ``label``.
    """
    seen: set[bytes] = set()
    for source in params.sources:
        tally.sources[source] = 0
        load = importlib.import_module(f"isodense.download.sources.{source}").load
        needs = rng_for(source) if source in DRAWN else tally.bad_row
        for pair in load(getattr(params, source), needs):
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
    """Write the artifact ``data/pairs``.

    Parameters
    ----------
    params : DownloadParams
        The section.
    rng_for : callable
        Gives the random generator of a source by name.
    out : str or Path
        The artifact's folder; it is replaced only if all went well.

    Returns
    -------
    dict
        The metrics.

    Raises
    ------
    DataError
        If a source fails, a row is malformed in mode ``error``, or there is no pair at all.
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
