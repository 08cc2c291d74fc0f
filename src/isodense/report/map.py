"""The map's points as the report's script reads them: one compressed block for all columns."""

from __future__ import annotations

import base64
import gzip
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from isodense.report.prompts import Prompts, one_line

LONGEST = 100  # characters of a prompt that hovering shows
NAMES = 65_535  # different sources or labels that are kept apart
OTHERS = "(others)"


def packed_map(prompts: Prompts, coordinates: np.ndarray) -> tuple[dict[str, Any], str]:
    """Return what the script draws the map from.

    Parameters
    ----------
    prompts : Prompts
    coordinates : ndarray of shape (n, 2), float32
        Coordinates of the prompts on the map.

    Returns
    -------
    names : dict
        ``rows``, and ``sources`` and ``labels``, most frequent first, that the columns number.
    block : str
        Base64 of gzip of the columns, one after another, little-endian, in this order: x, y and
        weight over the mean weight (NaN: held out), float32; count, uint32; the first four bytes
        of the id; source and label, uint16; whether held out, uint8; the texts, a line each.
    """
    sources, source = _numbered(prompts.sources)
    labels, label = _numbered(prompts.labels)
    columns = (
        coordinates[:, 0].astype("<f4"),
        coordinates[:, 1].astype("<f4"),
        prompts.relative.astype("<f4"),
        np.minimum(prompts.counts, 2**32 - 1).astype("<u4"),
        np.frombuffer(bytes.fromhex("".join(name[:8] for name in prompts.ids)), dtype=np.uint8),
        source,
        label,
        prompts.heldout.astype(np.uint8),
    )
    texts = "\n".join(one_line(text, LONGEST) for text in prompts.texts)
    block = b"".join(column.tobytes() for column in columns) + texts.encode()
    names = {"rows": len(prompts), "sources": sources, "labels": labels}
    return names, base64.b64encode(gzip.compress(block, 6, mtime=0)).decode()


def _numbered(values: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the different values, most frequent first, and each row's number among them."""
    counted = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    kept = [value for value, _ in counted[:NAMES]]
    number = {value: index for index, value in enumerate(kept)}
    rows = [number.get(value, len(kept)) for value in values]
    names = [one_line(value, LONGEST) for value in kept]
    return names + [OTHERS] * (len(counted) > NAMES), np.array(rows, dtype="<u2")
