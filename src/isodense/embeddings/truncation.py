"""Prompts that differ, but not in the tokens that the encoder reads.

The encoder keeps the end of a long prompt. If many prompts end alike (instructions after the
question, say), they have the same vector and become one duplicate cluster, and their weights mean
nothing. So a finished shard keeps two hashes of each cut prompt, of its tokens as read and as they
were, and the shards are compared before anything is published.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from isodense.pipeline.cache import sequences_sha256
from isodense.pipeline.errors import ModelError

MOST = 0.05  # share of prompts that may be equal only after cutting
DIGITS = 16  # of a hash; a million prompts have two equal ones by chance once in 10^7 runs

Pair = tuple[str, str]


def cut_prompts(
    ids: Sequence[Sequence[int]], whole: dict[int, list[int]], max_tokens: int
) -> list[Pair]:
    """Return the hashes of the tokens that are read, and of all, of each prompt that may be equal.

    Parameters
    ----------
    ids : sequence of sequence of int
        Tokens that the encoder reads, of each prompt of a shard.
    whole : dict
        Tokens before cutting, of each prompt that was cut, by row.
    max_tokens : int
        Where prompts are cut. One of just that length may equal what is left of another.
    """
    rows = [row for row in range(len(ids)) if row in whole or len(ids[row]) == max_tokens]
    return [(_hash(ids[row]), _hash(whole.get(row, ids[row]))) for row in rows]


def equal_after_cutting(pairs: Iterable[Pair]) -> int:
    """Return how many prompts are read as another prompt is whose tokens were others.

    Examples
    --------
    >>> equal_after_cutting([("a", "1"), ("a", "2"), ("b", "3"), ("b", "3"), ("c", "4")])
    2
    """
    hashes = np.array([[int(one, 16) for one in pair] for pair in pairs], dtype=np.uint64)
    if not len(hashes):
        return 0
    _, group, sizes = np.unique(hashes[:, 0], return_inverse=True, return_counts=True)
    distinct = np.unique(np.column_stack([group.ravel(), hashes[:, 1]]), axis=0)
    kinds = np.bincount(distinct[:, 0].astype(np.int64), minlength=len(sizes))
    return int(sizes[kinds > 1].sum())


def require_few(equal: int, prompts: int, max_tokens: int) -> None:
    """Raise if so many prompts are equal only after cutting that the weights mean nothing.

    Raises
    ------
    ModelError
        If their share is above `MOST`.
    """
    if equal > MOST * prompts:
        message = f"{equal} of {prompts} prompts ({equal / prompts:.0%}) are equal only after "
        message += f"cutting: the encoder reads their last {max_tokens} tokens"
        hint = "set embeddings.long: windows, which reads all of a prompt, or raise "
        hint += "embeddings.max_tokens, as far as the encoder reads"
        raise ModelError(message, hint)


def _hash(tokens: Sequence[int]) -> str:
    return sequences_sha256([tokens])[:DIGITS]
