"""Validation of params that are passed on as fields of another library's config class."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any


def wrong_names(
    key: str, names: Iterable[str], config: type[Any], reserved: Mapping[str, str]
) -> list[str]:
    """Return a fault for each name that is not a field, or is set by another param.

    Parameters
    ----------
    key : str
        The param that holds the names, for messages.
    names : iterable of str
        Names of fields in the param.
    config : type
        The dataclass with the fields.
    reserved : mapping of str to str
        Fields that are set by another param, with the name of that param.

    Returns
    -------
    list of str
        Faults, a line each.
    """
    known = {field.name for field in fields(config)} - set(reserved)
    faults = []
    for name in names:
        if name in reserved:
            faults.append(f"{key}.{name} is set by {reserved[name]}")
        elif name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            faults.append(f"{key}.{name} is not a field of {config.__name__}{hint}")
    return faults
