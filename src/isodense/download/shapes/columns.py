"""The column map: ``columns: {prompt: question, ground_truth: reward_model.ground_truth}``.

A map gives names of ours, or any other name, to columns of the data. Applied to a row it yields a
row in which the column has the new name, as if the data had been published so. The rules:

- A column that gets a name loses its old one, except where it becomes the label: ``{label:
  domain}`` copies it, since rewards and exports may want it as well.
- A nested column is named with dots and copied. Of ``prompt``, ``system`` and ``tools`` the nested
  original is left out of the column around it, so that no text is kept twice.
- ``{name: null}`` leaves a column out.
- A column that stood under a name that another one gets is kept as ``<name>_``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from isodense.pipeline.errors import DataError

Row = dict[str, Any]

TAKEN = ("prompt", "system", "tools")  # names whose nested original is not kept
RESERVED = frozenset(
    "id prompt chosen rejected source label text count sources split leaked heldout prompt_id "
    "prompts completions completion_ids trainer_state log_metric log_extra environments".split()
)
MAPPABLE = frozenset(("prompt", "chosen", "rejected", "label"))  # reserved names with a meaning


class ColumnMap:
    """A column map, applied to rows.

    Parameters
    ----------
    columns : mapping of str to str or None
        Names and the data's columns.
    """

    def __init__(self, columns: Mapping[str, str | None]) -> None:
        self.columns = columns
        self.given = {name: column for name, column in columns.items() if column is not None}
        moved = {column for name, column in self.given.items() if name != "label"}
        left_out = {name for name, column in columns.items() if column is None}
        self._gone = moved | left_out | ({"label"} if self.given.get("label") == "label" else set())

    def check(self, row: Row, where: str | Path, params: str) -> None:
        """Raise if the map does not fit the columns of a file's first row.

        Parameters
        ----------
        row : dict
            The first row.
        where : str or Path
            For the error: the file.
        params : str
            For the error: the place of the map in ``params.yaml``.

        Raises
        ------
        DataError
            If the map names an absent column, or gives a name that isodense uses itself.
        """
        used = sorted(name for name in self.given if name in RESERVED - MAPPABLE)
        if used:
            message = f"columns gives a column the name {used[0]}, which isodense uses itself"
            raise DataError(message, where, hint=f"choose another name in {params}.columns")
        left_out = self.columns.keys() - self.given.keys() - set(self.given.values())
        wanted = [*self.given.values(), *sorted(left_out)]
        found = [fault for fault in (_absent(column, row) for column in wanted) if fault]
        if found:
            raise DataError("; ".join(found), where, hint=f"correct {params}.columns")

    def displaced(self, row: Row) -> list[str]:
        """Return the columns whose name another one gets, and which get none themselves."""
        return [name for name in row if name in self.given and name not in self._gone]

    def view(self, row: Row) -> Row:
        """Return a row with the columns under their new names."""
        if not self.columns:
            return row
        view: Row = {}
        names: dict[str, str] = {}
        for name, value in row.items():
            if name not in self._gone:
                names[name] = self._kept(name, row)
                view[names[name]] = value
        for column in self._gone - row.keys():
            outer, *inner = column.split(".")
            if self.columns.get(column, "") is None and outer in names:
                view[names[outer]] = without(view[names[outer]], inner)
        for name, column in self.given.items():
            if column in row:
                view[name] = row[column]
                continue
            view[name] = lookup(row, column)
            outer = names.get(column.split(".")[0], "")
            if name in TAKEN and outer in view:
                view[outer] = without(view[outer], column.split(".")[1:]) or None
        return view

    def _kept(self, name: str, row: Row) -> str:
        """Return under which name a column stays: another one where its own is given away."""
        return free(name, {*self.given, *row} - ({name} - self.given.keys()))


def free(name: str, taken: Iterable[str]) -> str:
    """Return `name` with as many underscores behind it as make it differ from those taken."""
    while name in taken:
        name += "_"
    return name


def lookup(row: Any, column: str) -> Any:
    """Return a column's value by its name, nested ones with dots, None if it is absent.

    Examples
    --------
    >>> lookup({"reward_model": {"ground_truth": "4"}}, "reward_model.ground_truth")
    '4'
    """
    if column in row:
        return row[column]
    for name in column.split("."):
        row = row.get(name) if isinstance(row, dict) else None
    return row


def without(value: Any, path: list[str]) -> Any:
    """Return a nested column without the entry at `path`."""
    if not isinstance(value, dict) or not path:
        return value
    first, *rest = path
    kept = {name: part for name, part in value.items() if name != first}
    if rest and first in value:
        kept[first] = without(value[first], rest)
    return kept


def _absent(column: str, row: Row) -> str | None:
    """Return what is wrong with the name of a column, or None."""
    here, names = row, column.split(".")
    if column in row:
        return None
    for depth, name in enumerate(names):
        if name not in here:
            outer = ".".join(names[:depth])
            near = difflib.get_close_matches(name, here, n=1, cutoff=0.5)
            path = ".".join([*names[:depth], *near])
            guess = f" (did you mean {path}?)" if near else ""
            held = f"{outer} holds" if outer else "the columns are"
            return f"columns names {column}, which the data lacks{guess}; {held} {', '.join(here)}"
        if here[name] is None:
            return None
        if not isinstance(here[name], dict):
            inner = ".".join(names[: depth + 1])
            return None if depth == len(names) - 1 else f"{inner} holds no columns, so no {column}"
        here = here[name]
    return None
