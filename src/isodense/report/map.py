"""The map's points as the report's script reads them: one compressed block for all columns."""

from __future__ import annotations

import base64
import gzip
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from isodense.report.prompts import Prompts, one_line
from isodense.report.regions import Region

LONGEST = 100  # characters of a prompt that hovering shows
NAMES = 65_535  # different sources or labels that are kept apart
NO_REGION = 255
OTHERS = "(others)"


def packed_map(
    prompts: Prompts,
    coordinates: np.ndarray,
    regions: Sequence[Region] = (),
    region: np.ndarray | None = None,
) -> tuple[dict[str, Any], str]:
    """Return what the script draws the map from.

    Parameters
    ----------
    prompts : Prompts
    coordinates : ndarray of shape (n, 2), float32
        Coordinates of the prompts on the map.
    regions : sequence of Region
    region : ndarray of shape (n,), int64, optional
        Number of each prompt's region, -1 for none.

    Returns
    -------
    names : dict
        ``rows``; ``sources`` and ``labels``, most frequent first, and
        ``regions``, that the columns number; ``places``, where each region's name is written.
    block : str
        Base64 of gzip of the columns, one after another, little-endian, in this order: x, y and
        weight over the mean weight (NaN: held out), float32; count, uint32; source and label,
        uint16; whether held out and the region (255: none), uint8; the 16 bytes of the id; the
        texts, a line each.
    """
    sources, source = _numbered(prompts.sources)
    labels, label = _numbered(prompts.labels)
    number = np.full(len(prompts), -1) if region is None else region
    columns = (
        coordinates[:, 0].astype("<f4"),
        coordinates[:, 1].astype("<f4"),
        prompts.relative.astype("<f4"),
        np.minimum(prompts.counts, 2**32 - 1).astype("<u4"),
        source,
        label,
        prompts.heldout.astype(np.uint8),
        np.where(number < 0, NO_REGION, number).astype(np.uint8),
        np.frombuffer(bytes.fromhex("".join(prompts.ids)), np.uint8),
    )
    texts = "\n".join(one_line(text, LONGEST) for text in prompts.texts)
    block = b"".join(column.tobytes() for column in columns) + texts.encode()
    names = {
        "rows": len(prompts),
        "sources": sources,
        "labels": labels,
        "regions": [one.name for one in regions],
        "places": [[one.x, one.y] for one in regions],
    }
    return names, base64.b64encode(gzip.compress(block, 6, mtime=0)).decode()


def _numbered(values: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the different values, most frequent first, and each row's number among them."""
    counted = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    kept = [value for value, _ in counted[:NAMES]]
    number = {value: index for index, value in enumerate(kept)}
    rows = [number.get(value, len(kept)) for value in values]
    names = [one_line(value, LONGEST) for value in kept]
    return names + [OTHERS] * (len(counted) > NAMES), np.array(rows, dtype="<u2")
