"""From a row of any known or mapped shape to an example.

:func:`shape_of` decides by the first row of a file; :meth:`Shape.example` reads every row.

- Strings are user messages, unless they hold messages as JSON text or another model's chat markup
  (:mod:`isodense.download.markup`).
- A column ``system`` (or ``system_prompt``) is put in front as a system message.
- A conversation that ends with the assistant is a prompt and, in the column ``completion``, the
  text of that last answer.
- All columns that did not become prompt or answer are kept under their own names; a name that
  isodense uses itself gets an underscore: ``source_``.
"""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isodense.download import examples
from isodense.download.messages import (
    TEXT_ONLY,
    Message,
    Unusable,
    empty_fault,
    prompt_fault,
    tool_schemas,
    within,
)
from isodense.download.shapes.columns import RESERVED, ColumnMap, free
from isodense.download.shapes.known import KNOWN, Known
from isodense.download.shapes.text import Text
from isodense.download.shapes.unknown import as_yaml, kind_of, unknown_shape
from isodense.pipeline.errors import DataError

log = logging.getLogger("isodense")

Row = dict[str, Any]

SYSTEM = ("system", "system_prompt")
MEDIA = {"image": "image", "images": "image", "audio": "audio", "audios": "audio"}
MEDIA |= {"video": "video", "videos": "video"}
ELSEWHERE = {"label": "ground_truth", "tools": "tool_names"}  # names for what they cannot be
VOTES = {"model_a": (0, 1), "model_b": (1, 0)}  # the preferred answer, and the other


def shape_of(
    row: Row,
    columns: Mapping[str, str | None],
    where: str | Path,
    params: str = "download.local",
) -> Shape:
    """Return the shape of a file by its first row.

    Parameters
    ----------
    row : dict
        The first row, with values of plain Python types.
    columns : mapping of str to str or None
        The column map, see :mod:`isodense.download.shapes.columns`; may be empty.
    where : str or Path
        The file, for errors.
    params : str
        Place of the map in ``params.yaml``, for errors.

    Raises
    ------
    DataError
        If the columns are of no known shape, the map does not fit them, or the label is none.
    """
    mapped = ColumnMap(columns)
    mapped.check(row, where, params)
    for name in mapped.displaced(row):
        log.info("column %s is kept as %s_: columns gives its name to another", name, name)
    view = mapped.view(row)
    known = next((shape for shape in KNOWN if shape.fits(view)), None)
    if known is None:
        raise unknown_shape(row, where, params)
    if known.mapped:
        mapped, known = ColumnMap({**known.mapped, **columns}), known.named()
        view = mapped.view(row)
    if not known.answers and {"chosen", "rejected"} <= view.keys():
        kinds = f"{kind_of(view['chosen'])} and {kind_of(view['rejected'])}"
        message = f"chosen and rejected are {kinds}, not strings or messages"
        hint = f"name other columns in {params}.columns, or leave these out: {{chosen: null, …}}"
        raise DataError(message, where, hint=hint)
    shape = Shape(known, mapped, view)
    for column, fault in shape.faults(view).items():
        raise DataError(fault, where, hint=shape.remedy(column, params))
    return shape


class Shape:
    """What the columns of a file hold.

    Parameters
    ----------
    known : Known
        The known shape, after mapping.
    columns : ColumnMap
        The column map.
    view : dict
        The first row, mapped.

    Attributes
    ----------
    name : str
        Name of the known shape.
    """

    def __init__(self, known: Known, columns: ColumnMap, view: Row) -> None:
        self.name = known.name
        self._known = known
        self._columns = columns
        self._kinds = {name: _kind(view[name]) for name in known.used if view[name] is not None}
        self._noted: set[str] = set()
        self._splits = known.kind == "conversation" or "prompt" in columns.given

    def __repr__(self) -> str:
        return f"Shape({self.name!r})"

    def example(self, row: Row) -> dict[str, Any] | str:
        """Return the example of a row, or the reason why it holds none.

        The reason is :class:`isodense.download.messages.Unusable` if the row is valid:
        :func:`isodense.download.examples.bad_row` makes the right error of either.
        """
        view = self._columns.view(row)
        found = self._difference(view) or _media(view)
        if found:
            return found
        example = self._read(view)
        if isinstance(example, str):
            return example
        for column, fault in self.faults(view).items():
            return f"{fault} ({self.remedy(column)})"
        label, tools = self._label(view)[0], tool_schemas(view.get("tools"))
        example |= ({"label": label} if label else {}) | ({"tools": tools} if tools else {})
        return example | self._kept(view, example)

    def faults(self, view: Row) -> dict[str, str]:
        """Return what is wrong with the columns ``label`` and ``tools`` of a mapped row."""
        label, tools = self._label(view)[1], tool_schemas(view.get("tools"))
        faults = {"label": label} if label else {}
        return faults | ({"tools": tools} if isinstance(tools, str) else {})

    def remedy(self, column: str, params: str = "") -> str:
        """Return what to do about a fault of ``label`` or ``tools``.

        Parameters
        ----------
        column : {"label", "tools"}
        params : str, optional
            Place of the map in ``params.yaml``; if given, lines to paste are returned.
        """
        if column in self._columns.given:
            return f"map another column to {column}"
        columns = {ELSEWHERE[column]: column}
        if params:
            return f"another name keeps it:\n{as_yaml(columns, params)}"
        return f"columns: {{{ELSEWHERE[column]}: {column}}} keeps it under another name"

    def _label(self, view: Row) -> tuple[str, str]:
        """Return the label of a mapped row, empty if it has none, and what is wrong with it."""
        value, is_mapped = view.get("label"), "label" in self._columns.given
        if isinstance(value, float) and value.is_integer():  # an integer column with nulls
            value = int(value)
        if value is None or value != value or self._is_verdict(value):  # NaN is none, too
            return "", ""
        if isinstance(value, str | int) and (is_mapped or not isinstance(value, bool)):
            return _name(value), ""
        items = value if isinstance(value, list) else [value]
        if is_mapped and all(isinstance(item, str | int | float) for item in items):
            return ", ".join(filter(None, map(_name, items))), ""
        return "", f"label is {kind_of(value)}, not the name of the prompt's kind"

    def _is_verdict(self, value: Any) -> bool:
        """Return whether a label says if an answer was desirable, not of what kind a prompt is."""
        return self.name == "unpaired preference" and isinstance(value, bool)

    def _difference(self, view: Row) -> str | None:
        """Return how the columns differ from those of the file's first row, or None."""
        for name in self._known.used:
            is_needed = name == self._known.prompt or self._known.prompt is None
            kind, first = _kind(view.get(name)), self._kinds.get(name)
            if kind == "null" and not is_needed:
                continue
            if kind != first and first is not None:
                return f"{name} is {kind}, not {first} as in the file's first row ({self.name})"
        return None

    def _read(self, view: Row) -> dict[str, Any] | str:
        if self._known.kind == "votes":
            return self._votes(view)
        prompt = None
        if self._known.prompt is not None:
            prompt = Text(self._prompt(view), self._noted)
        answers = [view.get(name) for name in self._known.answers]
        given = sum(answer is not None for answer in answers)
        if given == 1:
            name = self._known.answers[0 if answers[0] is None else 1]
            return f"{name} is null, and the other answer is not"
        if prompt is None or given:
            return self._pair(prompt, answers, view)
        return self._single(prompt, view)

    def _prompt(self, view: Row) -> Any:
        value = view.get(self._known.prompt or "")
        more = view.get(self._known.more) if self._known.more else None
        if isinstance(value, str) and isinstance(more, str) and more.strip():
            return f"{value}\n\n{more}"
        return value

    def _single(self, prompt: Text, view: Row) -> dict[str, Any] | str:
        name = self._known.prompt or "prompt"
        if prompt.reason:
            return within(name, prompt.reason)
        messages, completion = prompt.messages, None
        if self._splits and messages[-1]["role"] == "assistant":
            messages, completion = messages[:-1], _answer_text(messages[-1])
        elif messages[-1]["role"] == "assistant":
            tip = f"columns: {{messages: {name}}} takes the prompt of such conversations"
            return f"{name}: ends with the assistant, not with the user ({tip})"
        if not messages:
            return f"{name}: holds an answer and no prompt"
        whole = _with_system(messages, view)
        if isinstance(whole, str):
            return whole
        found = _prompt_fault(prompt.family, whole)
        if found:
            return within(name, found)
        example: dict[str, Any] = {"prompt": whole}
        if completion is not None:
            example[free("completion", view)] = completion
        return example

    def _pair(self, prompt: Text | None, answers: list[Any], view: Row) -> dict[str, Any] | str:
        family = prompt.family if prompt else ""
        texts = [Text(answer, self._noted, family, whole=True) for answer in answers]
        for name, text in zip(self._known.answers, texts, strict=True):
            found = text.reason or (None if text.family == "HH" else empty_fault(text.messages))
            if not found and prompt is None and isinstance(text.value, str) and not text.family:
                found = r"does not start with '\n\nHuman:' or other chat markup"
            if found:
                return within(name, found)
        chosen, rejected = (text.messages for text in texts)
        if prompt is None or _are_whole(prompt, chosen, rejected):
            return self._implicit(prompt, chosen, rejected, view)
        found = prompt.reason or _prompt_fault(prompt.family, prompt.messages)
        if found:
            return within(self._known.prompt or "prompt", found)
        return _finished({"prompt": prompt.messages, "chosen": chosen, "rejected": rejected}, view)

    def _implicit(
        self, prompt: Text | None, chosen: list[Message], rejected: list[Message], view: Row
    ) -> dict[str, Any] | str:
        for name, messages in zip(self._known.answers, (chosen, rejected), strict=True):
            if messages[-1]["role"] != "assistant":
                return f"{name}: ends with the {messages[-1]['role']}, not with the assistant"
        pair = examples.from_dialogues(chosen, rejected)
        if isinstance(pair, str):
            return pair
        found = _finished(pair, view)
        value = prompt.value if prompt else None
        texts = {(message["content"] or "").strip() for message in chosen}
        if isinstance(found, dict) and isinstance(value, str) and value.strip() not in {"", *texts}:
            found[free(self._known.prompt or "prompt", RESERVED)] = value
        return found

    def _votes(self, view: Row) -> dict[str, Any] | str:
        winner = view.get("winner")
        if not isinstance(winner, str):
            return f"winner is {kind_of(winner)}, not a string"
        if "tie" in winner or "both" in winner:
            return Unusable(f"winner is {winner!r}: no answer was preferred", "tie")
        if winner not in VOTES:
            return f"winner is {winner!r}, not model_a, model_b or a tie"
        answers = [view.get(name) for name in self._known.answers]
        return self._pair(None, [answers[index] for index in VOTES[winner]], view)

    def _kept(self, view: Row, example: Row) -> Row:
        """Return the columns that are neither prompt nor answer, under names that are free."""
        used = {*self._known.used, _system_of(view), "tools"}
        if not self._is_verdict(view.get("label")):
            used.add("label")
        if isinstance(view.get(self._known.more or ""), str):
            used.add(self._known.more)
        kept: Row = {}
        for name, value in view.items():
            if name in used or value is None or (name in SYSTEM and not _is_filled(value)):
                continue
            own = free(name, {*RESERVED, *example, *kept, *view}) if name in RESERVED else name
            if own != name:
                self._note(f"column {name} is kept as {own}: isodense uses the name itself")
            kept[own] = value
        return kept

    def _note(self, line: str) -> None:
        if line not in self._noted:
            self._noted.add(line)
            log.info("%s", line)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _system_of(view: Row) -> str | None:
    """Return the name of the column that holds the system message, or None."""
    return next((name for name in SYSTEM if _is_filled(view.get(name))), None)


def _is_filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _with_system(messages: list[Message], view: Row) -> list[Message] | str:
    """Return the prompt with the column ``system`` in front."""
    name = _system_of(view)
    if not isinstance(view.get("system"), str | None):
        kind = kind_of(view["system"])
        return f"system is {kind}, not a string: columns: {{other: system}} keeps it as a column"
    if name is None:
        return messages
    held = [message["content"] for message in messages if message["role"] == "system"]
    if not held:
        return [{"role": "system", "content": view[name]}, *messages]
    if " ".join(held[0].split()) != " ".join(view[name].split()):
        return f"{name}: differs from the system message that the prompt has already"
    return messages


def _prompt_fault(family: str, messages: list[Message]) -> str | None:
    """Return what is wrong with a prompt; HH's may have empty turns."""
    return prompt_fault(messages) or (None if family == "HH" else empty_fault(messages))


def _finished(pair: Row, view: Row) -> Row | str:
    """Return a pair with the column ``system`` in front of its prompt, or what is wrong with it."""
    prompt = _with_system(pair["prompt"], view)
    if isinstance(prompt, str):
        return prompt
    return examples.fault(pair | {"prompt": prompt}) or pair | {"prompt": prompt}


def _are_whole(prompt: Text, chosen: list[Message], rejected: list[Message]) -> bool:
    """Return whether the answers are whole conversations, which hold the prompt as well."""
    if all(messages[0]["role"] == "assistant" for messages in (chosen, rejected)):
        return False
    if prompt.reason and not isinstance(prompt.value, str):
        return False
    return isinstance(prompt.value, str) or all(
        messages[: len(prompt.messages)] == prompt.messages for messages in (chosen, rejected)
    )


def _answer_text(message: Message) -> str:
    """Return the text of an answer, or its tool calls as JSON."""
    calls = message.get("tool_calls")
    return message["content"] or json.dumps(calls, ensure_ascii=False)


def _name(value: Any) -> str:
    """Return a label as the others of its kind are written: NFC, without white space around it."""
    return unicodedata.normalize("NFC", str(value)).strip()


def _media(view: Row) -> str | None:
    """Return the reason why a row with images, audio or video in a column is refused, or None."""
    for name, kind in MEDIA.items():
        value = view.get(name)
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, bytes | dict):
            return Unusable(f"column {name} holds {kind}: {TEXT_ONLY}", f"{kind} parts")
    return None
