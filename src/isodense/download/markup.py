r"""Chat markup of other models in strings, parsed into messages.

A string such as ``<|im_start|>user\nHi<|im_end|>`` was made by one model's chat template. Put into
another's as a user message it would be templated twice, so it is parsed back, by a strict grammar:
the whole string has to be turns of one family. Text that merely mentions a token (a question about
ChatML) does not start like markup and stays as it is; text that starts like markup and cannot be
parsed is refused.

====================  ====================================================
family                begins with
====================  ====================================================
ChatML                ``<|im_start|>user``
Llama 3, Llama 4      ``<|start_header_id|>user<|end_header_id|>``
Llama 2, Mistral      ``[INST]``, with ``<<SYS>>`` in it
Gemma                 ``<start_of_turn>user``
Zephyr, Phi, Tulu     ``<|user|>`` on a line of its own or before the text
DeepSeek              ``<｜User｜>`` or ``<|User|>``
Command R             ``<|START_OF_TURN_TOKEN|><|USER_TOKEN|>``
nanochat              ``<|user_start|>``
Alpaca                ``### Instruction:``, if it ends with ``### Response:``
Guanaco               ``### Human:``, if ``### Assistant:`` follows
HH                    an empty line and ``Human:``
====================  ====================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from isodense.download.messages import Message, messages_fault

ROLE = {
    "human": "user",
    "model": "assistant",
    "chatbot": "assistant",
    "ipython": "tool",
    "environment": "tool",
}
BOS = re.compile(
    r"\s*(?:<s>|<bos>|<\|bos\|>|<\|begin_of_text\|>|<\|endoftext\|>|<BOS_TOKEN>|\[gMASK\]<sop>"
    r"|<[|｜]begin[▁_]of[▁_]sentence[|｜]>)?\s*"
)
THINK = re.compile(r"\s*(?:<think>\s*(?:</think>\s*)?)?")  # which some templates open or skip


@dataclass(frozen=True)
class Family:
    """Markup in which every turn has a header that names its role.

    Attributes
    ----------
    name : str
    start : Pattern
        What a string of this family begins with.
    turn : Pattern
        The header of a turn, its role as the first group.
    end : Pattern or None
        The token at the end of a turn.
    closed : bool
        Whether every turn needs its end token.
    """

    name: str
    start: re.Pattern[str]
    turn: re.Pattern[str]
    end: re.Pattern[str] | None = None
    closed: bool = True


def _family(name: str, start: str, turn: str, end: str = "", closed: bool = True) -> Family:
    ends = re.compile(rf"\s*(?:{end})\s*") if end else None
    return Family(name, re.compile(start), re.compile(turn), ends, closed and bool(end))


FAMILIES = (
    _family(
        "ChatML",
        r"<\|im_start\|>",
        r"<\|im_start\|>(system|developer|user|assistant|tool|environment) *(?:\n|<\|im_sep\|>)",
        r"<\|im_end\|>",
    ),
    _family(
        "Llama 3",
        r"<\|start_header_id\|>",
        r"<\|start_header_id\|>(system|user|assistant|ipython)<\|end_header_id\|>",
        r"<\|eot_id\|>|<\|eom_id\|>",
    ),
    _family(
        "Llama 4",
        r"<\|header_start\|>",
        r"<\|header_start\|>(system|user|assistant|ipython)<\|header_end\|>",
        r"<\|eot\|>|<\|eom\|>",
    ),
    _family(
        "Gemma",
        r"<start_of_turn>",
        r"<start_of_turn>(system|user|model)\n",
        r"<end_of_turn>",
    ),
    _family(
        "Command R",
        r"<\|START_OF_TURN_TOKEN\|>",
        r"<\|START_OF_TURN_TOKEN\|><\|(SYSTEM|USER|CHATBOT)_TOKEN\|>",
        r"<\|END_OF_TURN_TOKEN\|>",
    ),
    _family(
        "nanochat",
        r"<\|(?:user|assistant)_start\|>",
        r"<\|(user|assistant)_start\|>",
        r"<\|(?:user|assistant)_end\|>",
    ),
    _family(
        "Zephyr",
        r"<\|(?:system|user|assistant)\|>",
        r"(?:^|(?<=\n)|(?<=</s>)|(?<=<\|end\|>))<\|(system|user|assistant)\|>",
        r"</s>|<\|end\|>|<\|endoftext\|>",
        closed=False,
    ),
    _family(
        "DeepSeek",
        r"<[|｜](?:User|Assistant)[|｜]>",
        r"<[|｜](User|Assistant)[|｜]>",
        r"<[|｜]end[▁_]of[▁_]sentence[|｜]>",
        closed=False,
    ),
    _family(
        "Guanaco",
        r"### Human:(?=(?s:.*)### Assistant:)",
        r"(?:^|(?<=\n)|(?<=\S))### (Human|Assistant):",
    ),
)
DEEPSEEK = next(family for family in FAMILIES if family.name == "DeepSeek")
REFUSED = {"<|start|>": "Harmony", "<|begin_of_text|>": "Llama 3", "[AVAILABLE_TOOLS]": "Mistral"}
HH_TURN = re.compile(r"\n\n(Human|Assistant):")
INST = re.compile(r"\[INST\](.*?)\[/INST\](.*?)(?=(?:<s>\s*)?\[INST\]|\Z)", re.DOTALL)
SYS = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>(.*)", re.DOTALL)
SYSTEM_PROMPT = re.compile(r"\[SYSTEM_PROMPT\](.*?)\[/SYSTEM_PROMPT\]\s*", re.DOTALL)
ALPACA = re.compile(
    r"\s*(Below is an instruction that describes a task[^\n]*\n+)?### Instruction:\s*(.+?)"
    r"(?:\n+### Input:\s*(.*?))?\n+### Response:\s*",
    re.DOTALL,
)


@dataclass(frozen=True)
class Parsed:
    """Messages that were parsed out of a string, and the name of the markup."""

    messages: list[Message]
    family: str


def parse(text: str, whole: bool = False) -> Parsed | str | None:
    r"""Return the messages of a string of chat markup.

    A turn of the assistant that is opened and empty, as a chat template ends a prompt, is left out.

    Parameters
    ----------
    text : str
    whole : bool
        Whether the string holds the answer too: in HH, which does not close turns, an empty last
        turn is an answer then.

    Returns
    -------
    Parsed, str or None
        The messages; or the reason why a string that starts like markup is refused; or None if the
        string is ordinary text.

    Examples
    --------
    >>> parse("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n").messages
    [{'role': 'user', 'content': 'Hi'}]
    >>> parse("What does <|im_start|>user mean?")
    """
    head = text[:64].lstrip()
    if head[:1] not in ("<", "[", "#", "H", "A", "B"):
        return None
    if text.startswith(("\n\nHuman:", "\n\nAssistant:")) or _is_bare_hh(text):
        found = hh_messages(text if text.startswith("\n") else f"\n\n{text}", not whole)
        return _said("HH", found)
    alpaca = ALPACA.fullmatch(text)
    if alpaca and text.count("### Response:") == text.count("### Instruction:") == 1:
        return Parsed(_alpaca(*alpaca.groups()), "Alpaca")
    begin = BOS.match(text)
    body = text[begin.end() if begin else 0 :]
    for family in FAMILIES:
        if family.start.match(body):
            return _said(family.name, _turns(body, family))
    if body.startswith(("[INST]", "[SYSTEM_PROMPT]")):
        return _said("Llama 2", _inst(body))
    return _bos_only(text, body, head)


def _bos_only(text: str, body: str, head: str) -> Parsed | str | None:
    """Parse text whose system message stands bare after DeepSeek's first token, or refuse it."""
    if head.startswith(("<｜begin▁of▁sentence｜>", "<|begin_of_sentence|>")):
        system, header, _ = body.partition("<｜User｜>")
        found = _turns(body[len(system) :], DEEPSEEK) if header else "has no turn of the user"
        if system.strip() and not isinstance(found, str):
            found = [{"role": "system", "content": system.strip()}, *found]
        return _said("DeepSeek", found)
    name = next((name for token, name in REFUSED.items() if head.startswith(token)), None)
    return f"is chat markup that cannot be parsed ({name})" if name else None


def _said(family: str, found: list[Message] | str) -> Parsed | str:
    fault = found if isinstance(found, str) else messages_fault(found)
    if isinstance(found, str) or fault:
        return f"{fault} (in the chat markup of {family})"
    return Parsed(found, family)


def _turns(text: str, family: Family) -> list[Message] | str:
    headers = list(family.turn.finditer(text))
    if not headers or headers[0].start():
        return "does not start with the role of a turn"
    ends = [header.start() for header in headers[1:]] + [len(text)]
    messages: list[Message] = []
    for header, end in zip(headers, ends, strict=True):
        role, body = ROLE.get(header[1].lower(), header[1].lower()), text[header.end() : end]
        last = end == len(text)
        if last and messages and role == "assistant" and THINK.fullmatch(body):
            break
        content = _content(body, family)
        if content is None:
            return "a turn has not exactly one end"
        messages.append({"role": role, "content": content})
    return messages


def _content(body: str, family: Family) -> str | None:
    """Return the text of a turn without its end token; None if there is not exactly one."""
    if family.end is None:
        return body.strip()
    tokens = list(family.end.finditer(body))
    if not tokens and not family.closed:
        return None if family.start.search(body) else body.strip()
    if len(tokens) != 1 or tokens[0].end() != len(body) or family.start.search(body):
        return None
    return body[: tokens[0].start()].strip()


def _inst(text: str) -> list[Message] | str:
    messages: list[Message] = []
    system = SYSTEM_PROMPT.match(text)
    if system:
        messages.append({"role": "system", "content": system[1].strip()})
        text = text[system.end() :]
    position = 0
    for turn in INST.finditer(text):
        if text[position : turn.start()].replace("<s>", "").strip():
            return "text outside a turn"
        position = turn.end()
        user, answer = turn.groups()
        inner = SYS.fullmatch(user)
        if inner and not messages:
            messages.append({"role": "system", "content": inner[1].strip()})
            user = inner[2]
        answer = answer.strip().removesuffix("</s>").strip()
        if any(token in f"{user} {answer}" for token in ("[INST]", "[/INST]", "<<SYS>>", "</s>")):
            return "markup within a turn"
        messages.append({"role": "user", "content": user.strip()})
        if answer:
            messages.append({"role": "assistant", "content": answer})
    return messages if position == len(text) and messages else "[INST] without [/INST]"


def _alpaca(preamble: str | None, instruction: str, given: str | None) -> list[Message]:
    content = "\n\n".join(part.strip() for part in (instruction, given or "") if part.strip())
    system = [{"role": "system", "content": preamble.strip()}] if preamble else []
    return [*system, {"role": "user", "content": content}]


def _is_bare_hh(text: str) -> bool:
    """Return whether a text is an HH prompt that lost the white space around it."""
    return text.startswith("Human:") and text.rstrip().endswith("\n\nAssistant:")


def hh_messages(text: str, open_end: bool = False) -> list[Message] | str:
    r"""Return the messages of a dialogue of HH-RLHF, or the reason why it cannot be parsed.

    White space around a turn is stripped, and two turns of one side in a row are joined by an empty
    line. With `open_end`, an empty turn of the assistant at the end is left out.
    """
    before, *parts = HH_TURN.split(text)
    if before.strip() or not parts:
        return r"does not start with '\n\nHuman:'"
    if open_end and parts[-2] == "Assistant" and not parts[-1].strip():
        parts = parts[:-2]
    messages = _merged(zip(parts[::2], parts[1::2], strict=True))
    if not messages or messages[0]["role"] != "user":
        return "starts with the assistant, not with the human"
    return messages


def _merged(turns: Iterable[tuple[str, str]]) -> list[Message]:
    messages: list[Message] = []
    for side, text in turns:
        role, content = ROLE.get(side.lower(), side.lower()), text.strip()
        if messages and messages[-1]["role"] == role:
            content = "\n\n".join(filter(None, (messages.pop()["content"], content)))
        messages.append({"role": role, "content": content})
    return messages


def without_end(text: str, family: str) -> str:
    """Return an answer without the end token of the family that its prompt is written in."""
    ends = {one.name: one.end for one in FAMILIES} | {"Llama 2": re.compile(r"\s*</s>\s*")}
    end = ends.get(family)
    if end is None:
        return text
    found = list(end.finditer(text))
    return text[: found[-1].start()].strip() if found and found[-1].end() == len(text) else text
