"""Published messages become ours; what cannot is refused by name."""

from __future__ import annotations

import copy

import pytest

from isodense.download.messages import (
    Unusable,
    messages_fault,
    normalised,
    prompt_fault,
    tool_schemas,
)


def said(role: str, content: object = "x", **more: object) -> dict:
    return {"role": role, "content": content, **more}


def call(**arguments: object) -> dict:
    return {"type": "function", "function": {"name": "calc", "arguments": arguments}}


USER = said("user", "q")


def test_text_parts_are_joined_by_line_breaks():
    parts = [
        {"type": "text", "text": "one", "image": None, "mimeType": None},
        {"type": "input_text", "text": "two"},
        {"text": "three", "image_url": None},
    ]
    assert normalised([said("user", parts)]) == [said("user", "one\ntwo\nthree")]


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "image", "image": "i.png"}, "image parts"),
        ({"type": "image_url", "image_url": {"url": "u"}}, "image parts"),
        ({"type": "input_image", "image_url": "u"}, "image parts"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "audio parts"),
        ({"type": "video_url", "video_url": {}}, "video parts"),
        ({"type": "input_file", "file_id": "f"}, "file parts"),
        ({"type": "document", "source": {}}, "file parts"),
        ({"type": None, "text": None, "image": {"bytes": b""}}, "image parts"),
    ],
)
def test_images_audio_video_and_files_are_refused_by_name(part: dict, kind: str):
    found = normalised(
        [USER, said("assistant"), said("user", [{"type": "text", "text": "a"}, part])]
    )
    assert isinstance(found, Unusable)
    assert found.kind == kind
    assert found == f"message 3 has {kind}: isodense embeds text only"


@pytest.mark.parametrize("arguments", ['{"sum": "2+2"}', {"sum": "2+2", "base": None}])
@pytest.mark.parametrize("content", [None, ""])
def test_arguments_of_tool_calls_are_decoded(arguments: object, content: str | None):
    function = {"name": "calc", "arguments": arguments}
    given = said(
        "assistant",
        content,
        tool_calls=[{"id": "c", "index": 0, "type": "function", "function": function}],
        name=None,
        function_call=None,
    )
    expected = said("assistant", content, tool_calls=[{"id": "c", **call(sum="2+2")}])
    assert normalised([given]) == [expected]


@pytest.mark.parametrize(
    "calls",
    [
        [{"function": {"name": "calc", "arguments": ""}}],
        [{"name": "calc"}],
        ['{"name": "calc", "parameters": {}}'],
        '[{"type": "function", "function": {"name": "calc", "arguments": "{}"}}]',
    ],
)
def test_calls_of_other_forms_are_calls(calls: object):
    given = {"role": "assistant", "tool_calls": calls}
    assert normalised([given]) == [said("assistant", None, tool_calls=[call()])]


def test_an_empty_list_of_calls_does_not_hide_a_legacy_call():
    given = said("assistant", None, tool_calls=[], function_call={"name": "calc", "arguments": ""})
    assert normalised([given]) == [said("assistant", None, tool_calls=[call()])]


def test_arguments_that_are_no_json_stay_text():
    given = said("assistant", None, tool_calls=[{"function": {"name": "f", "arguments": "{2+2"}}])
    assert normalised([given])[0]["tool_calls"][0]["function"]["arguments"] == "{2+2"


def test_names_and_ids_of_calls_are_kept_and_empty_lists_of_calls_are_not():
    given = [said("user", "q", name="Ann", tool_calls=[]), said("tool", "4", tool_call_id="c")]
    expected = [said("user", "q", name="Ann"), said("tool", "4", tool_call_id="c")]
    assert normalised(given) == expected


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("4", "4"),
        ({"sum": 4}, '{"sum": 4}'),
        ([1, 2], "[1, 2]"),
        ([{"sum": 4}], '[{"sum": 4}]'),
        ([{"type": "text", "text": "4"}], "4"),
    ],
)
def test_results_of_tools_become_text(content: object, text: str):
    assert normalised([said("tool", content)]) == [said("tool", text)]


def test_items_of_the_responses_api_are_messages():
    items = [
        {"type": "message", "role": "user", "content": "q", "status": "completed"},
        {"type": "function_call", "call_id": "1", "name": "calc", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "2", "name": "calc", "arguments": '{"a": 2}'},
        {"type": "function_call_output", "call_id": "1", "output": "one"},
        {"type": "function_call_output", "call_id": "2", "output": "two"},
    ]
    left_out: set[str] = set()
    messages = normalised(items, left_out)
    assert messages == [
        USER,
        said("assistant", None, tool_calls=[{"id": "1", **call(a=1)}, {"id": "2", **call(a=2)}]),
        said("tool", "one", tool_call_id="1"),
        said("tool", "two", tool_call_id="2"),
    ]
    assert messages_fault(messages) is None
    assert not left_out - {"name"}


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("q", "not a list"),
        ([], "not a list"),
        (["q"], "message 1 is not a mapping"),
        ([{"content": "q"}], "message 1 is not a mapping"),
        ([{"role": "user"}], "message 1 is not a mapping"),
        ([said("user", None)], "the content of message 1 is NoneType"),
        ([said("user", 3)], "the content of message 1 is int"),
        ([said("user", ["q"])], "the content of message 1 is list of str"),
        ([said("user", {"a": "q"})], "the content of message 1 is dict"),
        ([said("critic")], "the role 'critic'"),
        ([said("assistant", [{"type": "thinking", "thinking": "t"}])], "parts of type 'thinking'"),
        ([said("assistant", None, tool_calls=[{"a": 1}])], "no function with name"),
        ([{"from": "function_call", "value": "calc"}], "no function with name"),
    ],
)
def test_messages_of_no_known_form_say_why(messages: object, words: str):
    found = normalised(messages)
    assert isinstance(found, str)
    assert words in found
    assert not isinstance(found, Unusable)


SYSTEM, TOOL = said("system"), said("tool")
ANSWER, CALLING = said("assistant"), said("assistant", None, tool_calls=[call()])


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [SYSTEM, USER],
        [said("developer"), USER],
        [SYSTEM, said("developer"), USER, ANSWER, USER],
        [USER, CALLING, TOOL],
        [USER, CALLING, TOOL, TOOL, ANSWER, USER],
        [USER, CALLING, TOOL, CALLING, TOOL],
        [USER, ANSWER, TOOL],  # the call is in the answer's text
    ],
)
def test_conversations_that_are_prompts(messages: list):
    assert prompt_fault(messages) is None


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([USER, USER], "do not take turns (user, user)"),
        ([USER, ANSWER, ANSWER], "do not take turns"),
        ([USER, TOOL], "do not take turns"),
        ([USER, CALLING, TOOL, USER], "do not take turns"),
        ([USER, CALLING, USER], "a tool call without a result"),
        ([USER, SYSTEM], "a system message after the start"),
        ([USER, said("developer")], "a developer message after the start"),
        ([SYSTEM, SYSTEM, USER], "more than one system message"),
        ([TOOL], "a tool message without a call"),
        ([USER, ANSWER], "ends with the assistant"),
        ([USER, CALLING], "ends with the assistant"),
        ([said("human")], "the role 'human'"),
    ],
)
def test_conversations_that_are_none_say_why(messages: list, words: str):
    assert words in prompt_fault(messages)


def test_only_what_is_embedded_counts_as_text():
    for messages in ([SYSTEM], [SYSTEM, said("developer")], [SYSTEM, said("user", " ")]):
        found = prompt_fault(messages)
        assert isinstance(found, Unusable)
        assert (str(found), found.kind) == ("has no user text", "no user text")


@pytest.mark.parametrize(
    ("value", "schemas"),
    [
        (None, []),
        ("", []),
        ([], []),
        ("[]", []),
        ({"name": "f"}, [{"type": "function", "function": {"name": "f"}}]),
        (
            ['{"type": "function", "function": {"name": "f"}}'],
            [{"type": "function", "function": {"name": "f"}}],
        ),
        (
            [{"type": "function", "function": {"name": "f", "parameters": {"a": None, "b": {}}}}],
            [{"type": "function", "function": {"name": "f", "parameters": {"b": {}}}}],
        ),
    ],
)
def test_tools_become_a_list_of_schemas(value: object, schemas: list):
    before = copy.deepcopy(value)
    assert tool_schemas(value) == schemas
    assert value == before


@pytest.mark.parametrize("value", ["calculator", ["calculator"], [1], {"a": 1}])
def test_tools_that_are_no_schemas_are_refused(value: object):
    assert tool_schemas(value) == "tools are not JSON schemas of functions"


def test_a_reason_keeps_its_kind_when_copied():
    reason = copy.deepcopy(Unusable("no", "tie"))
    assert (reason, reason.kind) == ("no", "tie")
