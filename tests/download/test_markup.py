"""Strings of other models' chat markup are parsed or refused; ordinary text stays as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodense.download.markup import Parsed, parse, without_end
from isodense.download.shapes import shape_of

SYSTEM = {"role": "system", "content": "Be brief."}
ONE, ANSWER, TWO = (
    {"role": role, "content": text}
    for role, text in (("user", "What is <b>?"), ("assistant", "A\n\ntag."), ("user", "And i?"))
)
WHOLE = {
    "ChatML": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is <b>?<|im_end|>\n"
    "<|im_start|>assistant\nA\n\ntag.<|im_end|>\n<|im_start|>user\nAnd i?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "Llama 3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhat is <b>?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA\n\ntag.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nAnd i?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "Llama 4": "<|begin_of_text|><|header_start|>system<|header_end|>\n\nBe brief.<|eot|>"
    "<|header_start|>user<|header_end|>\n\nWhat is <b>?<|eot|><|header_start|>assistant"
    "<|header_end|>\n\nA\n\ntag.<|eot|><|header_start|>user<|header_end|>\n\nAnd i?<|eot|>",
    "Llama 2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhat is <b>? [/INST] A\n\ntag. </s>"
    "<s>[INST] And i? [/INST]",
    "Gemma": "<bos><start_of_turn>system\nBe brief.<end_of_turn>\n<start_of_turn>user\n"
    "What is <b>?<end_of_turn>\n<start_of_turn>model\nA\n\ntag.<end_of_turn>\n"
    "<start_of_turn>user\nAnd i?<end_of_turn>\n<start_of_turn>model\n",
    "Zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nWhat is <b>?</s>\n<|assistant|>\n"
    "A\n\ntag.</s>\n"
    "<|user|>\nAnd i?</s>\n<|assistant|>\n",
    "DeepSeek": "<｜begin▁of▁sentence｜>Be brief.<｜User｜>What is <b>?<｜Assistant｜>A\n\ntag."
    "<｜end▁of▁sentence｜><｜User｜>And i?<｜Assistant｜><think>\n",
    "Command R": "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>What is <b>?<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>A\n\ntag.<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>And i?<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
}
WITHOUT_SYSTEM = {
    "nanochat": "<|bos|><|user_start|>What is <b>?<|user_end|><|assistant_start|>A\n\ntag."
    "<|assistant_end|><|user_start|>And i?<|user_end|><|assistant_start|>",
    "Guanaco": "### Human: What is <b>?### Assistant: A\n\ntag.### Human: And i?### Assistant:",
    "HH": "\n\nHuman: What is <b>?\n\nAssistant: A\n\ntag.\n\nHuman: And i?\n\nAssistant:",
}


@pytest.mark.parametrize("family", [*WHOLE, *WITHOUT_SYSTEM])
def test_whole_dialogues_are_parsed(family: str):
    text = WHOLE.get(family) or WITHOUT_SYSTEM[family]
    system = [SYSTEM] if family in WHOLE else []
    assert parse(text) == Parsed([*system, ONE, ANSWER, TWO], family)


@pytest.mark.parametrize("family", [*WHOLE, *WITHOUT_SYSTEM])
def test_no_markup_is_left_and_a_second_parse_finds_none(family: str):
    text = WHOLE.get(family) or WITHOUT_SYSTEM[family]
    found = shape_of({"prompt": text}, {}, "f").example({"prompt": text})
    assert all(parse(message["content"]) is None for message in found["prompt"])
    in_a_message = {"prompt": [{"role": "user", "content": text}]}
    unwrapped = shape_of(in_a_message, {}, "f").example(in_a_message)
    assert unwrapped == (found if family != "HH" else in_a_message)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("<|user|>\nHi<|end|>\n<|assistant|>\n", ["Hi"]),
        ("<|user|>Hi<|end|><|assistant|>", ["Hi"]),
        ("[gMASK]<sop><|user|>\nHi<|assistant|>\n", None),
        ("<|user|>\nHi\n<|assistant|>\n", ["Hi"]),
        ("[INST] Hi [/INST]", ["Hi"]),
        ("<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>", ["Hi"]),
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", ["Hi"]),
        ("<|User|>Hi<|Assistant|>", ["Hi"]),
        ("Human: Hi\n\nAssistant:", ["Hi"]),
        ("\n\nHuman: Hi", ["Hi"]),
        ("[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]Hi[/INST]", ["S", "Hi"]),
        ("### Instruction:\nAdd.\n\n### Input:\n2, 2\n\n### Response:\n", ["Add.\n\n2, 2"]),
        (
            "Below is an instruction that describes a task. Write a response.\n\n"
            "### Instruction:\nAdd.\n\n### Response:",
            ["Below is an instruction that describes a task. Write a response.", "Add."],
        ),
    ],
)
def test_variants(text: str, messages: list[str] | None):
    found = parse(text)
    if messages is None:
        assert isinstance(found, str)
    else:
        assert [message["content"] for message in found.messages] == messages
        assert [message["role"] for message in found.messages][-1] == "user"


@pytest.mark.parametrize(
    "text",
    [
        "What does <|im_start|>user mean in ChatML?",
        "Explain this:\n<|im_start|>user\nHi<|im_end|>",
        "Why does Llama use [INST] and [/INST]?",
        "[1, 2, 3] and [INST] are lists",
        "<s>struck out</s> in HTML",
        "<b>bold</b>",
        "### Instruction: a heading\n\nand text",
        "### Instruction:\nWrite\n### Response:\nDone",
        "### Human: rights in one paragraph",
        "Human: a word.\n\nAssistant: another.",
        "He said:\n\nHuman: no.",
        "",
        "#",
    ],
)
def test_ordinary_text_is_left_alone(text: str):
    assert parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|> is a token",
        "<|im_start|>user\nHi",
        "<|im_start|>user\nHi<|im_end|> trailing",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nSure, here",
        "<|im_start|>user\na<|im_end|>\n<|im_start|>user\nb<|im_end|>",
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>critic\nHi<|im_end|>",
        "[INST] Hi",
        "[INST] [INST] Hi [/INST]",
        "<start_of_turn>user\nHi",
        "<|start_header_id|>user\nHi",
        "<|begin_of_text|>Hi",
        "<|start|>user<|message|>Hi<|end|>",
        "<|user|>\nHi <|assistant|> there",
        "\n\nAssistant: Hi",
    ],
)
def test_what_starts_like_markup_and_is_none_is_refused(text: str):
    found = parse(text)
    assert isinstance(found, str)
    assert "chat markup" in found


def test_an_empty_last_turn_of_hh_is_an_answer_in_a_whole_dialogue_only():
    text = "\n\nHuman: Hi\n\nAssistant:"
    assert [message["role"] for message in parse(text).messages] == ["user"]
    assert [message["role"] for message in parse(text, whole=True).messages] == [
        "user",
        "assistant",
    ]


@pytest.mark.parametrize(
    ("answer", "family", "expected"),
    [
        ("79<|im_end|>", "ChatML", "79"),
        ("79<|im_end|>\n", "ChatML", "79"),
        ("79</s>", "Llama 2", "79"),
        ("79<end_of_turn>", "Gemma", "79"),
        ("79</s>", "ChatML", "79</s>"),
        ("the token <|im_end|> ends", "ChatML", "the token <|im_end|> ends"),
        ("79", "HH", "79"),
    ],
)
def test_answers_lose_the_end_token_of_their_prompt_only(answer, family, expected):
    assert without_end(answer, family) == expected


def test_a_turn_of_markup_among_other_messages_is_refused():
    row = {"prompt": [ONE, ANSWER, {"role": "user", "content": "[INST] Hi [/INST]"}]}
    assert "message 3 holds Llama 2's chat markup" in shape_of(row, {}, "f").example(row)


@given(st.text())
def test_any_text_after_a_word_is_ordinary(text: str):
    assert parse(f"x{text}") is None


@given(st.text(st.characters(exclude_characters="<>[]#｜"), min_size=1).filter(str.strip))
def test_any_text_without_tokens_comes_back_out_of_its_markup(text: str):
    found = parse(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
    assert found.messages == [{"role": "user", "content": text.strip()}]
