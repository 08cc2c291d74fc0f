"""Tables of examples and prompts as tests need them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from isodense.pipeline.artifact import publishing, write_manifest
from isodense.pipeline.tables import read_rows, write_rows
from isodense.prompts.deduplicate import publish, write
from isodense.prompts.params import PromptsParams
from tests.damage import reseal

Row = dict[str, Any]


def publish_prompts(examples: Iterable[Row], folder: Path, heldout: float, **params: Any) -> Row:
    """Publish the prompts of rows of ``data/examples`` as the stage does; return the statistics."""
    rows = list(examples)
    section = {"heldout": heldout, "heldout_by": "id", "near_duplicate": None}
    section |= {"drop_conflicting": [], **params}
    return publish(lambda: rows, PromptsParams(**section), "0" * 64, folder)


def write_prompts(folder: Path, rows: Iterable[Row]) -> Row:
    """Write ``data/prompts`` of given rows and return the manifest."""
    with publishing(folder) as made:
        return write(rows, {}, None, made)


def write_examples(folder: Path, rows: Iterable[Row]) -> None:
    """Write ``data/examples`` of given rows."""
    from isodense.pipeline.artifact import ids_sha256

    rows = list(rows)
    pairs = sum({"chosen", "rejected"} <= row.keys() for row in rows)
    with publishing(folder) as made:
        write_rows(made, rows)
        ids = ids_sha256(row["id"] for row in rows)
        write_manifest(made, "download", rows=len(rows), pairs=pairs, ids_sha256=ids, params={})


def stored_rows(folder: Path) -> list[Row]:
    """Return the rows of a table."""
    return list(read_rows(folder))


def tamper(folder: Path, change: Callable[[list[Row]], list[Row]]) -> None:
    """Change the rows of a table and let the manifest's files fit, but not its ids."""
    rows = change(stored_rows(folder))
    for path in folder.glob("shard-*.parquet"):
        path.unlink()
    write_rows(folder, rows)
    reseal(folder)
