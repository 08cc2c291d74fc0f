"""Reading ``params.yaml``: one section per stage, checked against a pydantic model.

The model, a :class:`Params`, is in the stage's package (``isodense.<stage>.params``). It has no
defaults, so ``params.yaml`` (and with it ``dvc.lock``) holds every value there is. :func:`load`
reports every unknown, missing, mistyped and out-of-range key at once, with its line and the nearest
valid name.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from isodense.pipeline.errors import IsodenseError, ParamsError, fault_lines

Key = tuple[str | int, ...]  # names of mappings and numbers of list items, from the outside in

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
    "difficulty",
    "train",
    "evaluate",
)


class Params(BaseModel):
    """A section of ``params.yaml``, or a mapping in one: every key is there, none is converted."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


T = TypeVar("T", bound=Params)


class CrossFieldError(ValueError):
    """Faults between fields, for a model's validator to raise.

    Parameters
    ----------
    faults : list of str
        One line per fault.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, as DVC reads it: 010 is ten, yes is a string, 1e-5 is a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [one for one in found if not one[0].endswith((":bool", ":int", ":float"))]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


for _kind, _form, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]{1,300}|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"({_form})$"), [*_first]
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def load(path: str | Path, section: str, cls: type[T]) -> T:
    """Read and check one section.

    Parameters
    ----------
    path : str or Path
        The params file.
    section : str
        Its top-level key.
    cls : type
        The section's model.

    Returns
    -------
    Params
        An instance of `cls`.

    Raises
    ------
    ParamsError
        With all faults of the section and of the top level.
    """
    path = Path(path)
    data, lines = _read(path)
    faults = [
        f"{_where(lines, (key,))}unknown section {key!r}{_nearest(key, SECTIONS)}"
        for key in data
        if key not in SECTIONS
    ]
    value = data.get(section)
    if not isinstance(value, dict):
        raise ParamsError(path, [*faults, f"section {section!r} is missing"])
    try:
        built = cls.model_validate(value)
    except ValidationError as error:
        for key, text in _faults(cls, error):
            faults.append(f"{_where(lines, (section, *key))}{_dotted((section, *key))}: {text}")
    if faults:
        raise ParamsError(path, faults)
    return built


def build(cls: type[T], values: Mapping[str, Any], what: str) -> T:
    """Make params of values that come from a caller, not from ``params.yaml``.

    Parameters
    ----------
    cls : type
        The model.
    values : mapping of str to Any
    what : str
        Names the values in the error.

    Raises
    ------
    IsodenseError
        With all faults.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        found = [f"{_dotted(key)}: {text}" if key else text for key, text in _faults(cls, error)]
    raise IsodenseError(fault_lines(what, found), "correct them and call it again")


def value_of(text: str) -> Any:
    """Return the value that a text stands for in ``params.yaml``.

    Raises
    ------
    yaml.YAMLError
        If it is no YAML.

    Examples
    --------
    >>> value_of("1e-3"), value_of("null"), value_of("[a, 010]")
    (0.001, None, ['a', 10])
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)


def as_dict(params: Params) -> dict[str, Any]:
    """Return a params object as the plain mapping that manifests record."""
    return params.model_dump()


# --- the file -------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(path, ["no such file; run the stage from the project's root"]) from None
    except UnicodeDecodeError as error:
        raise ParamsError(path, [f"not UTF-8: {error}"]) from None
    except OSError as error:
        raise ParamsError(path, [f"cannot be read: {error.strerror}"]) from None
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (
        yaml.YAMLError,
        ValueError,
        AttributeError,
    ) as error:  # a tag that its value does not fit
        raise ParamsError(path, [f"not YAML: {error}"]) from None
    except RecursionError:
        raise ParamsError(path, ["nested too deeply, or a mapping that holds itself"]) from None
    if not isinstance(data, dict):
        raise ParamsError(path, ["the top level is not a mapping of sections"])
    lines: dict[Key, int] = {}
    try:
        twice = _collect_lines(node, (), lines)
    except RecursionError:
        raise ParamsError(path, ["nested too deeply, or a mapping that holds itself"]) from None
    if twice:
        raise ParamsError(path, twice)
    return data, lines


def _collect_lines(node: Any, key: Key, lines: dict[Key, int]) -> list[str]:
    """Note the line of every key and list item; return a fault for each key that stands twice."""
    faults = []
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*key, index] = item.start_mark.line + 1
            faults += _collect_lines(item, (*key, index), lines)
    for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
        child, line = (*key, str(name.value)), name.start_mark.line + 1
        if child in lines:
            faults.append(f"line {line}: {_dotted(child)} stands on line {lines[child]} already")
        lines[child] = line
        faults += _collect_lines(value, child, lines)
    return faults


def _where(lines: dict[Key, int], key: Key) -> str:
    while key and key not in lines:
        key = key[:-1]
    return f"line {lines[key]}: " if key else ""


# --- the faults -----------------------------------------------------------------------------------


def _faults(cls: type[Params], error: ValidationError) -> list[tuple[Key, str]]:
    """Return the key and the text of every fault that pydantic found in a model's values."""
    found: list[tuple[Key, str]] = []
    for fault in error.errors(include_url=False):
        key = fault["loc"][:-1] if fault["loc"][-1:] == ("[key]",) else fault["loc"]
        if fault["type"] == "invalid_key" or key != fault["loc"]:  # a key that is no string
            key = (*key[:-1], str(key[-1]))
        raised = fault.get("ctx", {}).get("error")
        texts = raised.faults if isinstance(raised, CrossFieldError) else [_text(cls, fault)]
        found += [(key, text) for text in texts]
    return found


def _text(cls: type[Params], fault: Any) -> str:
    """Return one of pydantic's errors in the words of ``params.yaml``."""
    key, value, limits = fault["loc"], fault["input"], fault.get("ctx", {})
    match fault["type"]:
        case "missing":
            return f"missing; expected {_describe(_hint(cls, key))}"
        case "extra_forbidden" | "invalid_key":
            return f"unknown key{_nearest(key[-1], _hint(cls, key[:-1]).model_fields)}"
        case "greater_than_equal":
            return f"{value!r} is below the minimum, {limits['ge']}"
        case "less_than_equal":
            return f"{value!r} is above the maximum, {limits['le']}"
        case "greater_than":
            return f"{value!r} is not above {limits['gt']}"
        case "less_than":
            return f"{value!r} is not below {limits['lt']}"
        case "too_short":
            items = "1 item" if limits["min_length"] == 1 else f"{limits['min_length']} items"
            return f"{value!r} is below the minimum, {items}"
        case _:
            return f"{value!r} is not {_describe(_hint(cls, key))}"


def _hint(cls: type[Params], key: Key) -> Any:
    """Return the type of what is at `key`."""
    hint: Any = cls
    for name in key:
        if isinstance(hint, type) and issubclass(hint, Params):
            hint = hint.model_fields[str(name)].annotation
        elif typing.get_origin(hint) is list:
            hint = typing.get_args(hint)[0]
        else:  # a key of a plain mapping
            return str
    return hint


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


def _nearest(name: Any, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _dotted(key: Key) -> str:
    """Return a key as people write it.

    Examples
    --------
    >>> _dotted(("download", "sources", 1))
    'download.sources[1]'
    """
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return "".join(parts).removeprefix(".")
