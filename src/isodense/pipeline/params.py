"""Reading ``params.yaml``: one section per stage, checked against a frozen dataclass.

The dataclass sits beside the code that it configures and has no defaults, so ``params.yaml`` (and
with it ``dvc.lock``) holds every value there is. :func:`load` reports every unknown, missing,
mistyped and out-of-range key at once, with its line and the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from isodense.pipeline.errors import ParamsError

T = TypeVar("T")

SECTIONS = (
    "base",
    "download",
    "models",
    "prompts",
    "embeddings",
    "neighbors",
    "map",
    "density",
    "reward",
    "train",
    "evaluate",
)


def param(minimum: float | None = None, maximum: float | None = None) -> Any:
    """Declare a params field with its inclusive range.

    Parameters
    ----------
    minimum, maximum : float, optional
        Bounds of a number, or of the length of a list.
    """
    return dataclasses.field(metadata={"minimum": minimum, "maximum": maximum})


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats (``1e-5``), as DVC writes them; PyYAML alone reads those as strings."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def load(path: str | Path, section: str, cls: type[T]) -> T:
    """Read and check one section.

    Parameters
    ----------
    path : str or Path
        The params file.
    section : str
        Its top-level key.
    cls : type
        Frozen dataclass of the section. Its optional method ``faults()``, and those of the
        dataclasses in it, return cross-field faults as a list of str.

    Returns
    -------
    object
        An instance of `cls`.

    Raises
    ------
    ParamsError
        With all faults of the section and of the top level.
    """
    path = Path(path)
    data, lines = _read(path)
    faults = [
        f"{_where(path, lines, (key,))}unknown section {key!r}{_nearest(key, SECTIONS)}"
        for key in data
        if key not in SECTIONS
    ]
    value = data.get(section)
    if not isinstance(value, dict):
        raise ParamsError(path, [*faults, f"section {section!r} is missing"])
    found: list[tuple[tuple[str, ...], str]] = []
    built = _build(cls, value, (section,), found)
    faults += [f"{_where(path, lines, key)}{'.'.join(key)}: {text}" for key, text in found]
    if faults:
        raise ParamsError(path, faults)
    return built


def as_dict(params: Any) -> dict[str, Any]:
    """Return a params object as the plain mapping that manifests record."""
    return dataclasses.asdict(params)


def _read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(path, ["no such file; run the stage from the project's root"]) from None
    except UnicodeDecodeError as error:
        raise ParamsError(path, [f"not UTF-8: {error}"]) from None
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ParamsError(path, [f"not YAML: {error}"]) from None
    if not isinstance(data, dict):
        raise ParamsError(path, ["the top level is not a mapping of sections"])
    lines: dict[tuple[str, ...], int] = {}
    twice = _collect_lines(node, (), lines)
    if twice:
        raise ParamsError(path, twice)
    return data, lines


def _collect_lines(node: Any, key: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> list[str]:
    """Note the line of every key; return a fault for each that stands twice."""
    faults = []
    for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
        child, line = (*key, str(name.value)), name.start_mark.line + 1
        if child in lines:
            faults.append(f"line {line}: {'.'.join(child)} stands on line {lines[child]} already")
        lines[child] = line
        faults += _collect_lines(value, child, lines)
    return faults


def _where(path: Path, lines: dict[tuple[str, ...], int], key: tuple[str, ...]) -> str:
    while key and key not in lines:
        key = key[:-1]
    return f"line {lines[key]}: " if key else ""


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _build(
    cls: type[T], data: dict[str, Any], key: tuple[str, ...], faults: list[tuple[Any, str]]
) -> T:
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in data:
        if name not in fields:
            faults.append(((*key, str(name)), f"unknown key{_nearest(name, fields)}"))
    values = {}
    for name, field in fields.items():
        if name not in data:
            faults.append(((*key, name), f"missing; expected {_describe(hints[name])}"))
        else:
            values[name] = _check(hints[name], data[name], field.metadata, (*key, name), faults)
    if len(values) < len(fields) or any(name[: len(key)] == key for name, _ in faults):
        return None  # type: ignore[return-value]
    built = cls(**values)
    if hasattr(built, "faults"):
        faults += [(key, text) for text in built.faults()]
    return built


def _check(
    hint: Any, value: Any, bounds: Any, key: tuple[str, ...], faults: list[tuple[Any, str]]
) -> Any:
    if dataclasses.is_dataclass(hint):
        if isinstance(value, dict):
            return _build(typing.cast("type[Any]", hint), value, key, faults)
        faults.append((key, f"{value!r} is not a mapping"))
        return value
    if not _matches(hint, value):
        faults.append((key, f"{value!r} is not {_describe(hint)}"))
        return value
    if isinstance(value, int | float | list) and not isinstance(value, bool):
        size = len(value) if isinstance(value, list) else value
        low, high = bounds.get("minimum"), bounds.get("maximum")
        what = "items" if isinstance(value, list) else ""
        if low is not None and not size >= low:
            faults.append((key, f"{value!r} is below the minimum, {low} {what}".rstrip()))
        elif high is not None and not size <= high:
            faults.append((key, f"{value!r} is above the maximum, {high} {what}".rstrip()))
    return float(value) if hint is float else value


def _matches(hint: Any, value: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args and not (isinstance(value, bool) and True not in args)
    if origin in (types.UnionType, typing.Union):
        return any(_matches(arg, value) for arg in args)
    if origin is list:
        return isinstance(value, list) and all(_matches(args[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    if hint in names:
        return names[hint]
    if origin is Literal:
        return "one of " + ", ".join(repr(arg) for arg in args)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if arg is type(None) else _describe(arg) for arg in args)
    if origin is list:
        return f"a list, each {_describe(args[0])}"
    return "a mapping"
