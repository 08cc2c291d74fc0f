"""The download stage: examples from every source in use, as one table that TRL reads as it is.

Rows are written as they are read, so a source may be larger than memory; only the 16-byte ids of
examples are held, to count identical ones, which stay: how often a prompt was asked matters later.
Sources come in the order of ``download.sources``, so adding one at the end appends.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from isodense.download.examples import UnusableRow, example_id
from isodense.download.params import DownloadParams
from isodense.download.sources import (
    hh,
    hub,
    local,
    sample,
    stack_exchange,
    ultrafeedback,
)
from isodense.pipeline import stage
from isodense.pipeline.artifact import ids_sha256, publishing, write_manifest
from isodense.pipeline.errors import DataError
from isodense.pipeline.tables import ORIGIN, MixedTypes, read_batches, write_rows
from isodense.synthetic import requests

log = logging.getLogger("isodense")

LOADERS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "sample": sample.load,
    "skills": requests.load,
    "hh": hh.load,
    "ultrafeedback": ultrafeedback.load,
    "stack_exchange": stack_exchange.load,
    "hub": hub.load,
    "local": local.load,
}
DRAWN = {"sample", "skills"}  # sources that are drawn: nothing is read, so no row is bad
SHOWN = 5  # at most so many skipped rows are logged; all are counted


@dataclass
class Tally:
    """Counts of rows that were read and that were left out.

    Attributes
    ----------
    on_bad_row : {"error", "skip"}
        Whether a malformed row raises an error or is counted.
    sources : Counter
        Examples of each source.
    pairs : int
        Examples with two answers.
    bad_rows : int
        Malformed rows that were skipped.
    unusable : Counter
        Valid rows that hold no example, by why:
        see :class:`isodense.download.examples.UnusableRow`.
    repeated : int
        Examples that are identical to an earlier one; they are kept, as occurrences.
    """

    on_bad_row: str
    sources: Counter[str] = field(default_factory=Counter)
    pairs: int = 0
    bad_rows: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    repeated: int = 0

    def bad_row(self, error: DataError) -> None:
        """Count a row without an example; in mode ``error``, raise `error` if it is malformed."""
        if isinstance(error, UnusableRow):
            self.unusable[error.kind] += 1
            return
        if self.on_bad_row == "error":
            raise error
        self.bad_rows += 1
        if self.bad_rows <= SHOWN:
            log.warning("skipped %s", str(error).splitlines()[0])

    def mixed(self, row: dict[str, Any], error: MixedTypes) -> None:
        """Take back a row whose types do not go with those of earlier rows."""
        hint = "give the column one type, or leave it out: columns: {its name: null}"
        where, line = row.get(ORIGIN, (f"source {row['source']}", None))
        self.bad_row(DataError(str(error), where, line, hint))
        self.sources[row["source"]] -= 1
        self.pairs -= _is_pair(row)

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of the stage, nested under ``download``."""
        return {
            "download": {
                "examples": self.sources.total(),
                "sources": dict(self.sources),
                "pairs": self.pairs,
                "repeated": self.repeated,
                "bad_rows": self.bad_rows,
                "unusable_rows": self.unusable.total(),
                "unusable": dict(self.unusable.most_common()),
            }
        }


def collect(
    params: DownloadParams, rng_for: Callable[[str], np.random.Generator], tally: Tally
) -> Iterator[dict[str, Any]]:
    """Yield the examples of all sources in use, in the form in which they are written.

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
        ``id, prompt, source`` and, if the source has them, ``chosen``, ``rejected``, ``label``,
        ``heldout`` and other columns.
    """
    for source in params.sources:
        tally.sources[source] = 0
        needs = rng_for(source) if source in DRAWN else tally.bad_row
        for example in LOADERS[source](getattr(params, source), needs):
            try:
                identifier = example_id(example)
            except UnicodeEncodeError:
                where, line = example.get(ORIGIN, (source, None))
                message, hint = "a text holds half of a surrogate pair", "mend or remove the row"
                tally.bad_row(DataError(message, where, line, hint))
                continue
            tally.sources[source] += 1
            tally.pairs += _is_pair(example)
            yield {"id": identifier, **example, "source": source}


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
        If a source fails, a row is malformed in mode ``error``, too many were skipped, or there
        are no examples.
    """
    tally = Tally(params.on_bad_row)
    with publishing(out) as folder:
        rows = collect(params, rng_for, tally)
        bar = tqdm(rows, desc="examples", unit=" examples", **stage.progress())
        try:
            write_rows(folder, bar, tally.mixed)
        except MixedTypes as error:  # in rows that were taken already, as a later one showed
            hint = "give the column one type, or leave it out: columns: {its name: null}"
            raise DataError(str(error), "download.sources", hint=hint) from None
        _check(params, tally)
        tally.repeated = tally.sources.total() - len({bytes.fromhex(one) for one in _ids(folder)})
        facts = {
            "rows": tally.sources.total(),
            "pairs": tally.pairs,
            "ids_sha256": ids_sha256(_ids(folder)),
            "params": params.in_use(),
        }
        write_manifest(folder, "download", **facts)
    return tally.metrics()


def _is_pair(example: dict[str, Any]) -> bool:
    return example.get("chosen") is not None and example.get("rejected") is not None


def _ids(folder: Path) -> Iterator[str]:
    for batch in read_batches(folder, ["id"]):
        yield from batch.column("id").to_pylist()


def _check(params: DownloadParams, tally: Tally) -> None:
    """Raise if there are no examples, or more skipped rows than allowed."""
    examples, counts = tally.sources.total(), f"{tally.bad_rows} bad rows"
    if not examples:
        counts += f", {tally.unusable.total()} unusable rows"
        message = f"no valid examples ({counts} in {', '.join(params.sources)})"
        hint = "look at the files, or set download.on_bad_row: error to see the first bad row"
        raise DataError(message, "download.sources", hint=hint)
    share = tally.bad_rows / (tally.bad_rows + examples)
    if share > params.max_skipped:
        message = f"{counts} of {tally.bad_rows + examples:,} were skipped ({share:.1%})"
        hint = f"mend them, or raise download.max_skipped, which is {params.max_skipped}"
        raise DataError(message, "download.sources", hint=hint)
