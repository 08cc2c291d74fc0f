"""Params that hold fields of another library's settings, by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any


def wrong_names(
    key: str, given: Iterable[str], config: type[Any], own: Mapping[str, str]
) -> list[str]:
    """Return a fault for each name that is not a field, or is set by another param.

    Parameters
    ----------
    key : str
        The param that holds the names.
    given : iterable of str
        The names.
    config : type
        The dataclass whose fields they are meant to be.
    own : mapping of str to str
        Fields that may not be given, with what sets them.
    """
    known = {field.name for field in fields(config)} - set(own)
    faults = []
    for name in given:
        if name in own:
            faults.append(f"{key}.{name} is set by {own[name]}")
        elif name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            faults.append(f"{key}.{name} is not a field of {config.__name__}{hint}")
    return faults
