r"""Messages: the many ways in which conversations are published, as one form.

A message of ours is ``{"role", "content"}`` with ``name``, ``tool_calls`` and ``tool_call_id``
where it has them, of the roles system, developer, user, assistant and tool. :func:`normalised`
makes it of

- OpenAI's chat messages, with content as a list of text parts (joined by a line break), tool calls
  whose arguments are JSON text, and the legacy ``function_call`` and role ``function``;
- items of OpenAI's Responses API (``function_call``, ``function_call_output``);
- ShareGPT's ``{"from", "value"}`` with human, gpt, function_call and observation.

Images, audio, video and files are refused by name, since isodense embeds text.
:func:`messages_fault` says what is wrong with messages of that form.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

Message = dict[str, Any]

INSTRUCTIONS = ("system", "developer")  # at the start only, and never embedded
ROLES = (*INSTRUCTIONS, "user", "assistant", "tool")
ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "environment": "tool",
    "ipython": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
CALLS = ("function_call", "tool_call")  # roles of ShareGPT, under which the text is a call
KEYS = {"role", "content", "from", "value", "name", "tool_calls", "tool_call_id", "function_call"}
ITEM_KEYS = {"type", "id", "status", "call_id", "arguments", "output"}  # of the Responses API
MEDIA = {"image": "image", "audio": "audio", "video": "video", "file": "file", "document": "file"}
TEXTS = ("text", "input_text", "output_text", "refusal")  # types of parts that are text
TEXT_ONLY = "isodense embeds text only"
NEXT = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant")}


class Unusable(str):
    """Why a valid row holds no example, as opposed to a malformed one.

    Parameters
    ----------
    text : str
        The reason.
    kind : str
        Name under which such rows are counted, such as ``"image parts"``.
    """

    __slots__ = ("kind",)
    kind: str

    def __new__(cls, text: str, kind: str) -> Unusable:
        """Return the reason with its kind."""
        reason = super().__new__(cls, text)
        reason.kind = kind
        return reason

    def __reduce__(self) -> tuple[type[Unusable], tuple[str, str]]:
        """Return what copies and pickles are made of."""
        return Unusable, (str(self), self.kind)


def within(where: str, reason: str) -> str:
    """Return `reason` with `where` in front, unusable if it was."""
    text = f"{where}: {reason}"
    return Unusable(text, reason.kind) if isinstance(reason, Unusable) else text


def normalised(value: Any, left_out: set[str] | None = None) -> list[Message] | str:
    """Return published messages in our form, or the reason why they have none.

    Parameters
    ----------
    value : list of dict
        Messages of any of the forms named in the module's docstring.
    left_out : set of str, optional
        Gets the keys of messages that have no place in our form, such as ``weight``.
    """
    if not isinstance(value, list) or not value:
        return "not a list of messages"
    messages: list[Message] = []
    for number, entry in enumerate(value, start=1):
        try:
            message = _normal(entry)
        except _Refused as error:
            return error.reason(number)
        if left_out is not None:
            known = KEYS | ITEM_KEYS if "type" in entry else KEYS
            left_out |= {key for key, held in entry.items() if held not in (None, [], "")} - known
        if messages and _continues(entry, messages[-1]):
            messages[-1].setdefault("tool_calls", []).extend(message["tool_calls"])
        else:
            messages.append(message)
    return messages


class _Refused(ValueError):
    """A message that has no form of ours: ``{}`` in the text stands for ``message 3``."""

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.text, self.kind = text, kind

    def reason(self, number: int) -> str:
        text = self.text.replace("{}", f"message {number}", 1)
        return Unusable(text, self.kind) if self.kind else text


def _continues(entry: Message, before: Message) -> bool:
    """Return whether an entry is one more call of the assistant's turn before it."""
    is_call = entry.get("type") == "function_call" or entry.get("from") in CALLS
    return is_call and before["role"] == "assistant"


def _normal(entry: Any) -> Message:
    if not isinstance(entry, dict):
        raise _Refused("{} is not a mapping with role and content")
    entry = _item(entry)
    held = {key: value for key, value in entry.items() if value is not None}
    written = held.get("role", held.get("from"))
    key = "content" if "content" in entry or "role" in entry else "value"
    if not isinstance(written, str):
        raise _Refused("{} is not a mapping with role and content")
    role = ALIASES.get(written.lower(), written.lower())
    if role not in ROLES:
        raise _Refused(f"{{}} has the role {written!r}, not one of {ROLES}")
    is_call = written.lower() in CALLS
    given = held.get("tool_calls") or held.get("function_call")
    calls = _calls(held.get(key) if is_call else given)
    if not calls and key not in entry:
        raise _Refused("{} is not a mapping with role and content")
    content = None if is_call else _text(held.get(key), role)
    if content is None and not calls:
        raise _Refused("the content of {} is NoneType")
    message = {"role": role, "content": content} | ({"tool_calls": calls} if calls else {})
    for name in ("name", "tool_call_id"):
        if not isinstance(held.get(name, ""), str):
            raise _Refused(f"the {name} of {{}} is {type(held[name]).__name__}")
        message |= {name: held[name]} if held.get(name) else {}
    return message


def _item(entry: Message) -> Message:
    """Return an item of the Responses API as a message, other entries as they are."""
    if entry.get("type") == "function_call":
        return {"role": "function_call", "content": entry}
    if entry.get("type") == "function_call_output":
        link = entry.get("call_id")
        return {"role": "tool", "content": entry.get("output"), "tool_call_id": link}
    return entry


def _text(content: Any, role: str) -> str | None:
    """Return the content of a message as one text."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, dict) and isinstance(content.get("type"), str):
        content = [content]
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        if role != "tool" or all(isinstance(part.get("type"), str) for part in content):
            return "\n".join(map(_part, content))
    if role == "tool":
        return json.dumps(content, ensure_ascii=False, default=str)
    kind = type(content).__name__
    if isinstance(content, list):
        kind = f"list of {type(content[0]).__name__}, not of text parts"
    raise _Refused(f"the content of {{}} is {kind}")


def _part(part: Message) -> str:
    held = {key: value for key, value in part.items() if value is not None}
    kind = str(held.get("type") or next(iter(held), "nothing"))
    media = next((name for word, name in MEDIA.items() if word in kind), None)
    if media:
        raise _Refused(f"{{}} has {media} parts: {TEXT_ONLY}", f"{media} parts")
    text = held.get("refusal" if kind == "refusal" else "text")
    if kind not in TEXTS or not isinstance(text, str):
        raise _Refused(f"{{}} has parts of type {kind!r}, not text")
    return text


def _calls(given: Any) -> list[Message]:
    """Return the tool calls of a message, none or more."""
    given = decoded(given)
    calls = []
    for call in given if isinstance(given, list) else [given] if given else []:
        found = _call(decoded(call))
        if found is None:
            raise _Refused("{} has a tool call that is no function with name and arguments")
        calls.append(found)
    return calls


def _call(call: Any) -> Message | None:
    if not isinstance(call, dict):
        return None
    inner = call.get("function")
    function = inner if isinstance(inner, dict) else call
    name = function.get("name")
    if not isinstance(name, str) or not name:
        return None
    arguments = function.get("arguments", function.get("parameters"))
    arguments = decoded(arguments) if isinstance(arguments, str) else without_null(arguments)
    own = call.get("id") if isinstance(inner, dict) else call.get("call_id", call.get("id"))
    if not is_json(arguments) or not isinstance(own, str | None):
        return None
    return {
        **({"id": own} if own else {}),
        "type": "function",
        "function": {"name": name, "arguments": {} if arguments in (None, "") else arguments},
    }


def decoded(value: Any) -> Any:
    """Return the object or list that `value` holds as JSON text; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def json_messages(text: str) -> list[Message] | None:
    """Return the messages that a string holds as JSON text, not yet normalised, or None."""
    found = decoded(text) if text.lstrip().startswith("[") else None
    if not isinstance(found, list) or not found:
        return None
    for entry in found:
        if not isinstance(entry, dict) or not (
            {"role", "content"} <= entry.keys() or "from" in entry
        ):
            return None
        role = str(entry.get("role", entry.get("from"))).lower()
        if ALIASES.get(role, role) not in ROLES:
            return None
    return found


def is_json(value: Any) -> bool:
    """Return whether a value can be written as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def without_null(value: Any) -> Any:
    """Return `value` without null entries of objects, which Parquet adds to fill its types."""
    if isinstance(value, dict):
        return {key: without_null(part) for key, part in value.items() if part is not None}
    return [without_null(part) for part in value] if isinstance(value, list) else value


def tool_schemas(value: Any) -> list[Message] | str:
    """Return the column ``tools`` as a list of JSON schemas, or the reason why it is none.

    Examples
    --------
    >>> tool_schemas('[{"name": "calc", "parameters": {}}]')
    [{'type': 'function', 'function': {'name': 'calc', 'parameters': {}}}]
    """
    if value in (None, "", []):
        return []
    found = decoded(value)
    given = found if isinstance(value, str) else without_null(found)
    tools = []
    for tool in given if isinstance(given, list) else [given]:
        schema = decoded(tool)
        if isinstance(schema, dict) and isinstance(schema.get("name"), str):
            schema = {key: part for key, part in schema.items() if key != "type"}
            schema = {"type": "function", "function": schema}
        is_schema = isinstance(schema, dict) and isinstance(schema.get("function"), dict)
        if not is_schema or not is_json(schema):
            return "tools are not JSON schemas of functions"
        tools.append(schema)
    return tools


def messages_fault(messages: Any) -> str | None:
    """Return why `messages` is not a valid conversation of our form, or None if it is.

    A conversation may start with a system and a developer message. User and assistant alternate,
    and results of tools follow an assistant message.
    """
    if not isinstance(messages, list) or not messages:
        return "not a list of messages"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return f"message {number} is not a mapping with role and content"
        if message["role"] not in ROLES:
            return f"message {number} has the role {message['role']!r}, not one of {ROLES}"
        if message["content"] is None and message.get("tool_calls"):
            continue
        if not isinstance(message["content"], str):
            return f"the content of message {number} is {type(message['content']).__name__}"
    return _turns_fault([message["role"] for message in messages], messages)


def _turns_fault(roles: list[str], messages: list[Message]) -> str | None:
    rest = list(itertools.dropwhile(lambda role: role in INSTRUCTIONS, roles))
    start = roles[: len(roles) - len(rest)]
    if len(set(start)) < len(start):
        return f"more than one {start[0]} message at the start"
    late = next((role for role in rest if role in INSTRUCTIONS), None)
    if late:
        return f"a {late} message after the start"
    if rest and rest[0] == "tool":
        return "a tool message without a call before it"
    if any(other not in NEXT[one] for one, other in itertools.pairwise(rest)):
        return f"user and assistant do not take turns ({', '.join(roles)})"
    for one, other in itertools.pairwise(messages):
        if one.get("tool_calls") and other["role"] != "tool":
            return "a tool call without a result after it"
    return None


def empty_fault(messages: list[Message]) -> str | None:
    """Return which message of a user or of the assistant is empty, or None."""
    for number, message in enumerate(messages, start=1):
        if message["role"] in ("user", "assistant") and not message.get("tool_calls"):
            if not message["content"].strip():
                return f"the content of message {number} is empty"
    return None


def prompt_fault(messages: Any) -> str | None:
    """Return why `messages` is not a prompt, or None: it ends with a user or tool message."""
    found = messages_fault(messages)
    if found:
        return found
    if not has_text(messages):
        return Unusable("has no user text", "no user text")
    last = messages[-1]["role"]
    return None if last in ("user", "tool") else f"ends with the {last}, not with the user"


def has_text(messages: list[Message]) -> bool:
    """Return whether anything beside the system and developer messages can be embedded."""
    return any(
        message["role"] not in INSTRUCTIONS
        and ((message["content"] or "").strip() or message.get("tool_calls"))
        for message in messages
    )
