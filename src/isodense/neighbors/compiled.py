"""What a round of nearest-neighbour descent does, compiled once per machine and kept by numba.

Importing this module imports numba and pynndescent; :mod:`isodense.neighbors.descent` does so when
a descent starts. pynndescent's own loop takes the distance as an argument, a function whose address
differs in each process, so that numba cannot keep what it compiles of it: half a minute in every
process. The functions here name the kernel instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import pynndescent
from pynndescent.kernels import KERNEL_SQEUCLIDEAN, generate_graph_update_array_batched
from pynndescent.utils import (
    apply_sorted_graph_update_array,
    build_candidates_owner,
    sort_updates_by_block,
)


def _compiled(version: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return both functions; numba keys what it keeps by what they close over, the version."""

    @numba.njit(cache=True)
    def choose(heap, most, random, parts, room):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        _ = version
        new, new_order, old, old_order, active, to, source, bounds = room
        return build_candidates_owner(
            heap, most, random, parts, new, new_order, old, old_order, active, to, source, bounds
        )

    @numba.njit(cache=True)
    def compare(X, heap, new, old, block, parts, room):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        _ = version
        updates, counts, ordered, offsets = room
        changed = 0
        for start in range(0, len(new), block):
            end = min(start + block, len(new))
            generate_graph_update_array_batched(
                updates, counts, new[start:end], old[start:end], heap, X, KERNEL_SQEUCLIDEAN, parts
            )
            sort_updates_by_block(updates, counts, ordered, offsets, len(X), parts)
            changed += apply_sorted_graph_update_array(heap, ordered, offsets, parts)
        return changed

    return choose, compare


choose, compare = _compiled(pynndescent.__version__)
