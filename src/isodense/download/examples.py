"""Examples: validation, ids, and reading the artifact ``data/examples``.

An example is a prompt (a conversation that ends with a user message or a tool's result), in any
number of them with two answers, one assistant message each, of which the first was preferred, and
whatever else the source has: a ground truth, a difficulty, tools. That is what TRL's trainers take,
with pairs or without. The id of an example is a hash of its exact content: unlike the id of a
prompt it does not fold white space.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isodense.download.messages import (
    ROLES,
    Message,
    Unusable,
    messages_fault,
    prompt_fault,
    within,
)
from isodense.pipeline.artifact import read_checked, read_manifest
from isodense.pipeline.errors import ArtifactError, DataError
from isodense.pipeline.tables import ORIGIN, read_rows, schema_of

# Columns with a meaning here.
OWN = ("id", "prompt", "chosen", "rejected", "source", "label", "heldout")

__all__ = [
    "OWN",
    "ROLES",
    "Message",
    "UnusableRow",
    "bad_row",
    "example_id",
    "fault",
    "from_dialogues",
    "has_pairs",
    "iter_examples",
    "kept_columns",
    "load_pairs",
    "messages_fault",
]


class UnusableRow(DataError):
    """A valid row that holds no example: both answers are equal, there is no text, or an image.

    Published data sets contain such rows, and users cannot correct them there, so the download
    stage counts them and continues, whatever ``download.on_bad_row`` is.

    Parameters
    ----------
    message, path, line, hint
        See :class:`isodense.pipeline.errors.DataError`.
    kind : str
        Name under which such rows are counted, such as ``"image parts"``.
    """

    def __init__(
        self,
        message: str,
        path: str | Path,
        line: int | None = None,
        hint: str = "",
        kind: str = "no example",
    ) -> None:
        super().__init__(message, path, line, hint)
        self.kind = kind


def bad_row(reason: str, path: str | Path, line: int | None = None, hint: str = "") -> DataError:
    """Return the error of a row that holds no example.

    It is an `UnusableRow` if the reason is :class:`isodense.download.messages.Unusable`.
    """
    if isinstance(reason, Unusable):
        return UnusableRow(str(reason), path, line, hint, reason.kind)
    return DataError(reason, path, line, hint)


def example_id(example: dict[str, Any]) -> str:
    """Return the id of an example: 32 hex digits of the SHA-256 of its content as JSON.

    Source, label and ``heldout`` do not count: they say where an example is from, of what kind it
    is, and what it is for.

    Examples
    --------
    >>> answer = [{"role": "assistant", "content": "4"}]
    >>> example_id({"prompt": [{"role": "user", "content": "2+2?"}], "chosen": answer,
    ...             "rejected": [{"content": "5", "role": "assistant"}], "source": "any"})
    'aacafefc011724ab2e69c28cbd381dea'
    """
    parts = {
        name: value
        for name, value in example.items()
        if value is not None and name not in ("id", "source", "label", "heldout", ORIGIN)
    }
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fault(pair: dict[str, Any]) -> str | None:
    """Return why `pair` is not a valid preference pair, or None if it is.

    Parameters
    ----------
    pair : dict
        With ``prompt``, ``chosen`` and ``rejected``, each expected to be a list of messages. One of
        the answers may be empty.
    """
    found = prompt_fault(pair.get("prompt"))
    if found:
        return within("prompt", found)
    for name in ("chosen", "rejected"):
        found = messages_fault(pair.get(name))
        if found:
            return f"{name}: {found}"
        if [message["role"] for message in pair[name]] != ["assistant"]:
            return f"{name}: not exactly one assistant message"
    if pair["chosen"] == pair["rejected"]:
        return Unusable("chosen and rejected are the same", "equal answers")
    return None


def from_dialogues(chosen: list[Message], rejected: list[Message]) -> dict[str, Any] | str:
    """Split two whole dialogues into their common prompt and one answer each.

    The prompt is the common prefix, and the answers are the first assistant messages that differ.
    Later messages are left out: after different answers they no longer reply to the same prompt.

    Parameters
    ----------
    chosen, rejected : list of dict
        Valid conversations, see :func:`messages_fault`.

    Returns
    -------
    dict or str
        The pair, or the reason why there is none.
    """
    if chosen == rejected:
        return Unusable("chosen and rejected are the same", "equal answers")
    shared = 0
    while chosen[shared : shared + 1] == rejected[shared : shared + 1]:
        shared += 1
    answers = [dialogue[shared : shared + 1] for dialogue in (chosen, rejected)]
    if any([message["role"] for message in answer] != ["assistant"] for answer in answers):
        message = "chosen and rejected part at a message that is not the assistant's"
        return Unusable(message, "no common prompt")
    if not shared:
        return Unusable("chosen and rejected share no prompt", "no common prompt")
    return {"prompt": chosen[:shared], "chosen": answers[0], "rejected": answers[1]}


def iter_examples(folder: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``data/examples`` in order.

    Parameters
    ----------
    folder : str or Path
        The artifact of the download stage.

    Yields
    ------
    dict
        ``id``, ``prompt``, ``source`` and, where there are any, ``chosen``, ``rejected``,
        ``label``, ``heldout`` (true: not to be trained on) and the source's other columns.

    Raises
    ------
    ArtifactError
        If the artifact is missing, incomplete, damaged, or holds other rows than its manifest says.
    """
    manifest, digest = read_checked(folder, "download"), hashlib.sha256()
    for number, row in enumerate(read_rows(folder)):
        digest.update((b"\n" if number else b"") + row["id"].encode())
        yield row
    if digest.hexdigest() != manifest["ids_sha256"]:
        message = f"{folder} does not hold the examples of its manifest"
        raise ArtifactError(message, "run `dvc repro download`")


def kept_columns(folder: str | Path) -> list[str]:
    """Return the names of the columns that the sources brought beside prompt, answers and label."""
    return [name for name in schema_of(folder).names if name not in OWN]


def load_pairs(folder: str | Path) -> list[dict[str, Any]]:
    """Return the examples with both answers, in order, of identical ones the first.

    Parameters
    ----------
    folder : str or Path
        The artifact of the download stage.

    Returns
    -------
    list of dict
        See :func:`iter_examples`; empty if the data has prompts only.

    Raises
    ------
    ArtifactError
        If the artifact is missing, incomplete or damaged.
    """
    if not has_pairs(folder):
        return []
    rows = (row for row in iter_examples(folder) if {"chosen", "rejected"} <= row.keys())
    return list({row["id"]: row for row in rows}.values())


def has_pairs(folder: str | Path) -> bool:
    """Return whether any example of ``data/examples`` has two answers, by its manifest."""
    return bool(read_manifest(folder, "download").get("pairs"))
