"""Known kinds of prompts: how much of the draws each gets, with the density deciding within.

Density can only guess what the kinds are, and where big kinds are also wide it guesses wrong.
Where a label, a source or another column says it, the mass of a kind is set instead: a power of
its share, as in the temperature sampling of languages (Conneau et al. 2020, XLM-R, arXiv
1911.02116), or a quota.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isodense.density.balance import coded
from isodense.pipeline.errors import IsodenseError
from isodense.prompts.reader import FEW_LABELS, iter_rows

UNKNOWN = ""  # kind of the prompts whose column is empty
NAMED = 5  # in an error


def kinds_of(rows: Iterable[Mapping[str, Any]], by: str) -> Iterator[str]:
    """Yield the kind of each prompt.

    Parameters
    ----------
    rows : iterable of dict
        As :class:`isodense.prompts.reader.PromptSet` has them.
    by : str
        ``source``: that of most of a prompt's occurrences, of equal ones the first; otherwise a
        column, as ``label``, of texts, whole numbers or truth values.

    Yields
    ------
    str
        ``""`` where the column is empty.

    Raises
    ------
    IsodenseError
        If a value cannot name a kind.
    """
    for row in rows:
        if by == "source":
            yield max(row["sources"], key=row["sources"].__getitem__)
            continue
        value = row.get(by)
        if not (value is None or isinstance(value, str | int)):
            message = f"density.balance_by: {by} is {value!r} in prompt {row['id']}"
            raise IsodenseError(message, "name a column of texts or whole numbers")
        yield UNKNOWN if value is None else str(value)


def load_kinds(folder: str | Path, by: str) -> list[str]:
    """Return the kind of each training prompt of ``data/prompts``, which is not checked; see above.

    Parameters
    ----------
    folder : str or Path
        The prompts artifact.
    by : str
        As for :func:`kinds_of`.

    Raises
    ------
    IsodenseError
        If no training prompt has the column, a value cannot name a kind, or the kinds are so many
        that hardly two prompts share one.
    """
    column = "sources" if by == "source" else by
    rows = iter_rows(folder, ("id", "split", column))
    kinds = list(kinds_of((row for row in rows if row["split"] == "train"), by))
    names = set(kinds)
    if names == {UNKNOWN}:
        message = f"density.balance_by: no training prompt has a column {by}"
        raise IsodenseError(
            message, "name source, label or a column of the data, or set it to null"
        )
    if len(names) > max(FEW_LABELS, len(kinds) / 2):
        message = (
            f"density.balance_by: {by} has {len(names)} values for {len(kinds)} training prompts"
        )
        raise IsodenseError(message, "name a column that many prompts have in common")
    return kinds


def shares(kinds: Sequence[str], weights: np.ndarray) -> list[dict[str, Any]]:
    """Return what each kind gets, that of most prompts first.

    Parameters
    ----------
    kinds : sequence of str
        Kind of each prompt.
    weights : ndarray of shape (n,)
        Sum 1.

    Returns
    -------
    list of dict
        ``name``, ``prompts``, and the shares of the draws ``uniform`` and ``weighted``.
    """
    kind, names = coded(kinds)
    sizes, mass = np.bincount(kind), np.bincount(kind, weights)
    return [
        {
            "name": names[place],
            "prompts": int(sizes[place]),
            "uniform": float(sizes[place] / len(kinds)),
            "weighted": float(mass[place]),
        }
        for place in np.argsort(-sizes, kind="stable")
    ]


def balance_kinds(
    weights: np.ndarray,
    kinds: Sequence[str],
    power: float,
    quotas: Mapping[str, float] | None,
) -> np.ndarray:
    """Return weights that give each kind its mass, and keep their proportions within a kind.

    Parameters
    ----------
    weights : ndarray of shape (n,), float64
        Positive.
    kinds : sequence of str
        Kind of each prompt.
    power : float
        b of mass ∝ share^(1 - b), where the share is that of the prompts: at 1 all kinds are
        alike, at 0 each has the draws of uniform sampling.
    quotas : mapping of str to float, optional
        Mass of each kind instead, of sum 1.

    Returns
    -------
    ndarray of shape (n,), float64
        Sum 1.

    Raises
    ------
    IsodenseError
        If there are not as many kinds as prompts, or `quotas` name other kinds.

    Examples
    --------
    >>> weights = np.array([0.1, 0.2, 0.3, 0.4])
    >>> balance_kinds(weights, ["a", "a", "a", "b"], 1.0, None).round(3).tolist()
    [0.083, 0.167, 0.25, 0.5]
    """
    if len(kinds) != len(weights):
        message = f"{len(kinds)} kinds for {len(weights)} prompts"
        raise IsodenseError(message, "pass one per row of the graph, in its order")
    kind, names = coded(kinds)
    mass = (np.bincount(kind) / len(kinds)) ** (1.0 - power)
    if quotas is not None:
        _require_same(names, quotas)
        mass = np.array([quotas[name] for name in names])
    shared = np.bincount(kind, weights=weights)
    return weights * (mass / mass.sum() / shared)[kind]


def _require_same(names: list[str], quotas: Mapping[str, float]) -> None:
    for wrong, what in (
        (set(quotas).difference(names), "density.quotas names what no training prompt is"),
        (set(names).difference(quotas), "density.quotas leaves out"),
    ):
        if wrong:
            shown = ", ".join(map(repr, sorted(wrong)[:NAMED]))
            more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
            some = ", ".join(map(repr, sorted(names)[:NAMED]))
            hint = f"name each of the {len(names)} kinds, {some}{', …' * (len(names) > NAMED)}"
            raise IsodenseError(f"{what}: {shown}{more}", hint)
