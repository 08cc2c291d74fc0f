"""Which prompts are held out: near-duplicates stay together, and appending moves none.

Prompts are decided in row order, each by those before it. One without near-duplicates among them
(:mod:`isodense.prompts.near_duplicates`) is held out by its id. One with any is held out if one of
these is, and trained on otherwise. So no prompt is trained on that is a near-duplicate of a
held-out prompt before it, and a larger share of held-out prompts only adds some.

What is left is a prompt with near-duplicates on both sides. To move those would change a split that
others rely on, and to train on it would spoil held-out prompts, so it is held out itself and marked
as *leaked*: figures on held-out prompts are also given without such.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isodense.prompts.conversations import is_heldout
from isodense.prompts.near_duplicates import WordPairs


@dataclass(frozen=True)
class Split:
    """What is decided of each prompt, in row order.

    Attributes
    ----------
    heldout : ndarray of shape (n,), bool
    leaked : ndarray of shape (n,), bool
        Held out although a training prompt before it is a near-duplicate.
    first : ndarray of shape (n,), int64
        The prompt that was the first of its near-duplicates, followed from each to its earliest;
        its own number for a prompt without any.
    """

    heldout: np.ndarray
    leaked: np.ndarray
    first: np.ndarray

    def metrics(self, kept: np.ndarray) -> dict[str, Any]:
        """Return counts of near-duplicates among the prompts that `kept`, a mask, has."""
        sizes = np.bincount(self.first[kept], minlength=len(self.first))
        several = sizes[sizes > 1]
        return {
            "near_duplicate_clusters": len(several),
            "prompts_in_near_duplicate_clusters": int(several.sum()),
            "largest_near_duplicate_cluster": int(several.max(initial=1)),
            "heldout_leaked": int(self.leaked[kept].sum()),
        }

    def column(self, number: int) -> dict[str, Any]:
        """Return the columns of a row that say how the prompt of that number was decided."""
        leaked = {"leaked": True} if self.leaked[number] else {}
        return {"split": "heldout" if self.heldout[number] else "train", **leaked}


def split(
    ids: Sequence[str],
    texts: WordPairs | None,
    heldout: float,
    near_duplicate: float | None,
    decided: Sequence[Mapping[str, Any]] = (),
) -> Split:
    """Decide which prompts are held out.

    Parameters
    ----------
    ids : sequence of str
        Ids of the prompts, in row order.
    texts : WordPairs or None
        Of their texts; not needed where nothing is held out or near-duplicates are not sought.
    heldout : float
        Share of prompts held out, in [0, 1).
    near_duplicate : float or None
        Similarity of near-duplicates; None for a split by ids alone.
    decided : sequence of mapping
        Rows of the first prompts, which stay as they are.
    """
    held = np.array([is_heldout(one, heldout) for one in ids], dtype=bool)
    leaked, first = np.zeros(len(ids), dtype=bool), np.arange(len(ids))
    held[: len(decided)] = [row["split"] == "heldout" for row in decided]
    leaked[: len(decided)] = [bool(row.get("leaked")) for row in decided]
    if texts is None or near_duplicate is None:
        return Split(held, leaked, first)
    for row, earlier in texts.near_duplicates(near_duplicate):
        beside = held[earlier]
        if row >= len(decided):
            held[row] = beside.any()
            leaked[row] = held[row] and not beside.all()
        first[row] = first[earlier[0]]
    return Split(held, leaked, first)


def split_again(
    rows: Mapping[str, dict[str, Any]], params: Mapping[str, Any], kept: int
) -> Iterator[dict[str, Any]]:
    """Yield rows of ``data/prompts``, by their ids, held out or not as :func:`split` decides.

    Parameters
    ----------
    rows : mapping of str to dict
        In order.
    params : mapping
        Those of the prompts stage, from the manifest.
    kept : int
        How many of the first rows stay as they are.
    """
    texts = WordPairs()
    for row in rows.values():
        texts.add(row["text"])
    near_duplicate = params.get("near_duplicate")  # which older artifacts do not have
    decided = list(rows.values())[:kept]
    found = split(list(rows), texts, params["heldout"], near_duplicate, decided)
    for number, row in enumerate(rows.values()):
        yield {**{k: v for k, v in row.items() if k != "leaked"}, **found.column(number)}
