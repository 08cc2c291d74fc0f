"""The error for columns of no known shape: what there is, and the params that would map it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from isodense.download.shapes.known import KNOWN, is_dialogue, is_messages, is_prompt
from isodense.pipeline.errors import DataError

Row = dict[str, Any]

ALIASES = {
    "prompt": ("prompt", "question", "problem", "instruction", "query", "user", "task", "input"),
    "chosen": ("chosen", "chosen_response", "preferred", "accepted", "better", "winner", "win"),
    "rejected": ("rejected", "rejected_response", "dispreferred", "refused", "worse", "lose"),
}
WIDTH = 8  # keys of a nested column that are shown


def kind_of(value: Any, depth: int = 0) -> str:
    """Return the type of a value in words.

    Examples
    --------
    >>> kind_of([{"role": "user", "content": "Hi"}])
    'list of dict: role, content'
    """
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"list of {kind_of(value[0], depth)}" if value else "empty list"
    if isinstance(value, dict):
        names = ", ".join(list(value)[:WIDTH]) + (", …" if len(value) > WIDTH else "")
        return f"dict: {names}" if names else "empty dict"
    return type(value).__name__


def unknown_shape(row: Row, where: str | Path, params: str) -> DataError:
    """Return the error for a row of no known shape.

    Parameters
    ----------
    row : dict
    where : str or Path
        The file.
    params : str
        Place of the map in ``params.yaml``, such as ``download.local``.
    """
    listed = ", ".join(f"{name} ({kind_of(value)})" for name, value in row.items()) or "none"
    message = f"the columns are of no known shape: {listed}"
    guess = _guess(row)
    if not guess:
        known = ", ".join(dict.fromkeys(shape.prompt for shape in KNOWN if shape.prompt))
        text = f"no column holds text or messages; a prompt is looked for in {known}"
        return DataError(message, where, hint=text)
    nearest = "preference" if "chosen" in guess else "prompt-only"
    hint = f"the nearest shape is {nearest}; if the names are right, set\n{as_yaml(guess, params)}"
    return DataError(message, where, hint=hint)


def as_yaml(columns: dict[str, str], params: str) -> str:
    """Return the params that map the columns, ready to paste."""
    inline = yaml.safe_dump(columns, default_flow_style=True, sort_keys=False, width=1000).strip()
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(params.split("."))]
    return "\n".join([*lines, f"{'  ' * len(lines)}columns: {inline}"])


def _guess(row: Row) -> dict[str, str]:
    """Return the map that would most likely fit, empty if no column can be the prompt."""
    flat = _flat(row)
    answers: dict[str, str] = {}
    for name in ("chosen", "rejected"):
        found = _nearest([column for column in flat if column not in answers.values()], name)
        if found:
            answers[name] = found
    if len(answers) < 2:
        answers = {}
    elif all(is_dialogue(flat[column]) for column in answers.values()):
        return answers
    left = {name: value for name, value in flat.items() if name not in answers.values()}
    conversations = [name for name, value in left.items() if is_messages(value)]
    strings = [name for name, value in left.items() if isinstance(value, str)]
    named = _nearest([*conversations, *strings], "prompt")
    longest = max(strings, key=lambda name: len(left[name]), default=None)
    prompt = named or next(iter(conversations), longest)
    return {"prompt": prompt, **answers} if prompt else {}


def _flat(row: Row) -> Row:
    """Return the columns that may hold a prompt, nested ones under names with dots."""
    flat: Row = {}
    for name, value in row.items():
        inner = value.items() if isinstance(value, dict) else ()
        flat |= {f"{name}.{key}": part for key, part in inner if is_prompt(part)}
        if is_prompt(value):
            flat[name] = value
    return flat


def _nearest(names: list[str], meaning: str) -> str | None:
    """Return the column whose name is most like one of a meaning's usual names."""
    last = {name.split(".")[-1].lower(): name for name in reversed(names)}
    for alias in ALIASES[meaning]:
        near = difflib.get_close_matches(alias, last, n=1, cutoff=0.75)
        if near:
            return last[near[0]]
    return None
