"""Preference pairs: validation, ids, and reading the artifact ``data/examples``.

A pair is a prompt (a conversation that ends with a user message) and two answers, one assistant
message each, of which the first was preferred: TRL's conversational preference format. The id of a
pair is a hash of the exact text: unlike the id of a prompt it does not fold white space, so only
pairs that are equal to the last character are duplicates.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

from isodense.pipeline.artifact import ids_sha256, read_manifest
from isodense.pipeline.errors import ArtifactError, DataError
from isodense.pipeline.jsonl import read_jsonl

FILE = "pairs.jsonl"
ROLES = ("system", "user", "assistant")

Message = dict[str, str]


class UnusableRow(DataError):
    """A valid row that holds no pair: both answers are equal, or there is no text.

    Published data sets contain such rows, and users cannot correct them there, so the download
    stage counts them and continues, whatever ``download.on_bad_row`` is.
    """


def pair_id(pair: dict[str, Any]) -> str:
    """Return the id of a pair: 32 hex digits of the SHA-256 of prompt and answers as JSON.

    Examples
    --------
    >>> answer = [{"role": "assistant", "content": "4"}]
    >>> pair_id({"prompt": [{"role": "user", "content": "2+2?"}], "chosen": answer,
    ...          "rejected": [{"content": "5", "role": "assistant"}], "source": "any"})
    'aacafefc011724ab2e69c28cbd381dea'
    """
    parts = {name: pair[name] for name in ("prompt", "chosen", "rejected")}
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fault(pair: dict[str, Any]) -> str | None:
    """Return why `pair` is not a valid preference pair, or None if it is.

    Parameters
    ----------
    pair : dict
        With ``prompt``, ``chosen`` and ``rejected``, each expected to be a list of messages. One of
        the answers may be empty.
    """
    for name in ("prompt", "chosen", "rejected"):
        found = messages_fault(pair.get(name))
        if found:
            return f"{name}: {found}"
    if pair["prompt"][-1]["role"] != "user":
        return f"prompt: ends with the {pair['prompt'][-1]['role']}, not with the user"
    for name in ("chosen", "rejected"):
        if [message["role"] for message in pair[name]] != ["assistant"]:
            return f"{name}: not exactly one assistant message"
    if pair["chosen"] == pair["rejected"]:
        return "chosen and rejected are the same"
    if not any(message["content"].strip() for message in pair["prompt"]):
        return "prompt: has no text"
    return None


def messages_fault(messages: Any) -> str | None:
    """Return why `messages` is not a valid conversation, or None if it is.

    A conversation is a list of ``{"role", "content"}`` mappings: optionally a system message, then
    user and assistant alternating.
    """
    if not isinstance(messages, list) or not messages:
        return "not a list of messages"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return f"message {number} is not a mapping with role and content"
        if message["role"] not in ROLES:
            return f"message {number} has the role {message['role']!r}, not one of {ROLES}"
        if not isinstance(message["content"], str):
            return f"the content of message {number} is {type(message['content']).__name__}"
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        return "a system message after the start"
    if any(one == other for one, other in itertools.pairwise(roles)):
        return f"user and assistant do not take turns ({', '.join(roles)})"
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
        return "chosen and rejected are the same"
    shared = 0
    while chosen[shared : shared + 1] == rejected[shared : shared + 1]:
        shared += 1
    answers = [dialogue[shared : shared + 1] for dialogue in (chosen, rejected)]
    if any([message["role"] for message in answer] != ["assistant"] for answer in answers):
        return "chosen and rejected part at a message that is not the assistant's"
    if not shared:
        return "chosen and rejected share no prompt"
    return {"prompt": chosen[:shared], "chosen": answers[0], "rejected": answers[1]}


def load_pairs(folder: str | Path) -> list[dict[str, Any]]:
    """Read the artifact of the download stage.

    Parameters
    ----------
    folder : str or Path
        ``data/examples``.

    Returns
    -------
    list of dict
        The pairs in order, with ``id``, ``prompt``, ``chosen``, ``rejected``, ``source`` and, if
        the source has one, ``label``.

    Raises
    ------
    ArtifactError
        If the artifact is missing, incomplete, or does not match the manifest.
    """
    manifest = read_manifest(folder, "download")
    path = Path(folder) / FILE
    pairs = []
    for line, row in read_jsonl(path):
        found = fault(row)
        if found:
            raise ArtifactError(f"{path}:{line}: {found}", "run `dvc repro download`")
        if not row.get("label"):
            row.pop("label", None)
        pairs.append(row)
    if ids_sha256(pair.get("id", "") for pair in pairs) != manifest["ids_sha256"]:
        raise ArtifactError(
            f"{path} does not hold its manifest's pairs", "run `dvc repro download`"
        )
    return pairs
