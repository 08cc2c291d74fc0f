"""Which prompts are held out: near-duplicates stay together, and appending moves none.

Prompts are decided in row order, each by those before it. One without near-duplicates among them
(:mod:`isodense.prompts.near_duplicates`) is held out by its id. One with any is held out if one of
these is, and trained on otherwise. So no prompt is trained on that is a near-duplicate of a
held-out prompt before it, and a larger share of held-out prompts only adds some.

What is left is a prompt with near-duplicates on both sides. To move those would change a split that
others rely on, and to train on it would spoil held-out prompts, so it is held out itself and marked
as *leaked*: figures on held-out prompts are also given without such.

Prompts that the data holds out itself, a published test set say, are held out and move no others.
Those with near-duplicates among the training prompts, before or after them, are leaked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from isodense.prompts.by_label import choose
from isodense.prompts.conversations import is_heldout
from isodense.prompts.near_duplicates import WordPairs
from isodense.prompts.params import HeldoutBy

Near = tuple[int, np.ndarray]

DECIDED = ("leaked", "heldout")  # columns of a row that this module gives, if true


@dataclass(frozen=True)
class Split:
    """What is decided of each prompt, in row order.

    Attributes
    ----------
    heldout : ndarray of shape (n,), bool
    leaked : ndarray of shape (n,), bool
        Held out although a training prompt is a near-duplicate.
    first : ndarray of shape (n,), int64
        The prompt that was the first of its near-duplicates, followed from each to its earliest;
        its own number for a prompt without any.
    marked : ndarray of shape (n,), bool
        Held out by the data itself.
    sought : bool
        Whether near-duplicates were sought.
    """

    heldout: np.ndarray
    leaked: np.ndarray
    first: np.ndarray
    marked: np.ndarray
    sought: bool

    def metrics(self, kept: np.ndarray) -> dict[str, Any]:
        """Return counts of near-duplicates among the prompts that `kept`, a mask, has."""
        if not self.sought:
            return {}
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
        marks = {"leaked": self.leaked[number], "heldout": self.marked[number]}
        true = {name: True for name, value in marks.items() if value}
        return {"split": "heldout" if self.heldout[number] else "train", **true}


def split(
    ids: Sequence[str],
    texts: WordPairs | None,
    heldout: float,
    near_duplicate: float | None,
    heldout_by: HeldoutBy = "id",
    labels: Sequence[str | None] = (),
    marked: np.ndarray | None = None,
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
        Share of prompts held out, in [0, 1); by label also a number of each label, from 1 on.
    near_duplicate : float or None
        Similarity of near-duplicates; None for a split by ids alone.
    heldout_by : {"id", "label"}
        Whether the share is of all prompts or of every label (:mod:`isodense.prompts.by_label`).
    labels : sequence of str or None
        Label of each prompt, for a split by label.
    marked : ndarray of shape (n,), bool, optional
        Which prompts the data holds out itself.
    decided : sequence of mapping
        Rows of the first prompts, which stay as they are.

    Raises
    ------
    DataError
        If the split is by label and there are no labels that name kinds of prompts.
    """
    marked = np.zeros(len(ids), dtype=bool) if marked is None else marked
    new, held, leaked = ~marked, marked.copy(), np.zeros(len(ids), dtype=bool)
    for number, kept in enumerate(decided):
        new[number] = False
        held[number] |= kept["split"] == "heldout"
        leaked[number] = bool(kept.get("leaked"))
    sought = texts is not None and near_duplicate is not None and bool(heldout or marked.any())
    near: Iterable[Near] = ()
    if texts is not None and near_duplicate is not None and sought:
        near = texts.near_duplicates(near_duplicate)
    if heldout and heldout_by == "label":
        near = list(near)
        known = np.flatnonzero(~marked).tolist()
        clusters = _clusters(near, marked)[known]
        names, kinds = [ids[row] for row in known], [labels[row] for row in known]
        held[known] = choose(names, kinds, clusters, heldout, held[known], new[known])
    else:
        held[new] = [is_heldout(ids[row], heldout) for row in np.flatnonzero(new).tolist()]
    first = np.arange(len(ids))
    for row, earlier in near:
        first[row] = first[earlier[0]]
        others = earlier[~marked[earlier]]
        if marked[row]:
            leaked[row] |= not held[earlier].all()
        elif new[row] and len(others):
            held[row] = held[others].any()
            leaked[row] = held[row] and not held[others].all()
        if not held[row]:
            leaked[earlier[marked[earlier]]] = True
    return Split(held, leaked, first, marked, sought)


def _clusters(near: Iterable[Near], marked: np.ndarray) -> np.ndarray:
    """Return the near-duplicate cluster of each prompt, those that are `marked` left out."""
    pairs = [(row, int(one)) for row, earlier in near for one in earlier]
    rows, others = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    kept = ~(marked[rows] | marked[others])
    shape = (len(marked), len(marked))
    links = csr_array((np.ones(kept.sum(), dtype=bool), (rows[kept], others[kept])), shape=shape)
    found: np.ndarray = connected_components(links, directed=False)[1]
    return found


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
    found = split(
        list(rows),
        texts,
        params["heldout"],
        params.get("near_duplicate"),  # which older artifacts do not have
        params.get("heldout_by", "id"),
        [row.get("label") for row in rows.values()],
        np.array([bool(row.get("heldout")) for row in rows.values()], dtype=bool),
        list(rows.values())[:kept],
    )
    for number, row in enumerate(rows.values()):
        yield {**{k: v for k, v in row.items() if k not in DECIDED}, **found.column(number)}
