"""Ids and texts of conversations with tools; those of plain text are what they always were."""

from __future__ import annotations

import copy
import hashlib
import json

import pytest

from isodense.prompts.conversations import canonical, encoder_text, prompt_id


def said(role: str, content: object, **more: object) -> dict:
    return {"role": role, "content": content, **more}


def call(arguments: object, identifier: str | None = None) -> dict:
    made = {"type": "function", "function": {"name": "calc", "arguments": arguments}}
    return {**made, "id": identifier} if identifier else made


def dialogue(arguments: object = None, identifier: str | None = None, content=None) -> list[dict]:
    calls = [call({"a": 1, "b": "x  y"} if arguments is None else arguments, identifier)]
    link = {"tool_call_id": identifier} if identifier else {}
    return [
        said("user", "Sum?"),
        said("assistant", content, tool_calls=calls),
        said("tool", "4", name="calc", **link),
    ]


TOOLS = [{"type": "function", "function": {"name": "calc", "parameters": {}}}]


@pytest.mark.parametrize(
    ("messages", "identifier"),
    [
        ([said("user", "What is 2+2?")], "0bd13bfaa6e7191f21633476aedcdcd3"),
        (
            [
                *(said("system", "Be  brief."), said("user", "a")),
                *(said("assistant", "b\n"), said("user", "ç")),
            ],
            "8bfea5aeb240594e70a58008d366241d",
        ),
    ],
)
def test_ids_of_plain_text_are_what_they_were(messages: list, identifier: str):
    assert prompt_id(messages) == identifier


def test_the_id_of_a_conversation_with_tools_is_a_hash_of_what_is_written_here():
    text = (
        '{"messages":[{"content":"Sum?","role":"user"},{"content":"","role":"assistant",'
        '"tool_calls":[{"function":{"arguments":{"a":1,"b":"x  y"},"name":"calc"}}]},'
        '{"content":"4","name":"calc","role":"tool"}],'
        '"tools":[{"function":{"name":"calc","parameters":{}},"type":"function"}]}'
    )
    assert prompt_id(dialogue(), TOOLS) == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_how_a_call_was_written_does_not_count():
    same = [
        dialogue(),
        dialogue(identifier="call_9f"),
        dialogue(json.dumps({"b": "x  y", "a": 1})),
        dialogue(content=""),
    ]
    assert len({prompt_id(messages) for messages in same}) == 1
    assert prompt_id(dialogue(), TOOLS) == prompt_id(dialogue(), json.dumps(TOOLS))
    assert prompt_id(dialogue(), []) == prompt_id(dialogue()) == prompt_id(dialogue(), None)


def test_calls_results_names_roles_and_tools_count():
    renamed = dialogue()
    renamed[1]["tool_calls"][0]["function"]["name"] = "sum"
    unnamed, other = dialogue(), dialogue()
    del unnamed[2]["name"]
    other[2]["content"] = "5"
    plain = said("user", "Sum?")
    variants = [
        *(dialogue(), dialogue({"a": 2}), dialogue("no json"), dialogue(content="Let me see.")),
        *(renamed, unnamed, other),
        *([plain], [{**plain, "name": "Ann"}]),
        *([said("system", "s"), plain], [said("developer", "s"), plain]),
    ]
    ids = [prompt_id(messages) for messages in variants] + [prompt_id(dialogue(), TOOLS)]
    assert len(set(ids)) == len(variants) + 1


def test_canonical_is_idempotent_and_changes_nothing_given():
    given = dialogue(json.dumps({"a": 1}), "c")
    before = copy.deepcopy(given)
    once = canonical(given)
    assert canonical(once) == once
    assert given == before


def test_calls_and_results_are_embedded_and_instructions_are_not():
    start = [said("system", "the same"), said("developer", "everywhere")]
    assert encoder_text([*start, *dialogue()]) == (
        'user: Sum?\nassistant: calc({"a":1,"b":"x  y"})\ntool: 4'
    )
    assert encoder_text(dialogue(content="Let me see.")) == (
        'user: Sum?\nassistant: Let me see. calc({"a":1,"b":"x  y"})\ntool: 4'
    )
    assert encoder_text([*start, said("user", "Sum?")]) == "Sum?"
    assert encoder_text(start) == ""
