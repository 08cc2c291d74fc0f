"""Every published shape becomes the right example; maps, labels and errors say what they do."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from isodense.download.examples import UnusableRow, bad_row, example_id, iter_examples
from isodense.download.messages import Unusable, prompt_fault
from isodense.download.shapes import shape_of
from isodense.pipeline.errors import DataError
from isodense.prompts.conversations import encoder_text, prompt_id
from tests.download.real_shapes import GOOD, PAGE, PAIR, REAL, USER, A, B, Q, Real, page, said
from tests.tables import write_examples


def example(row: dict, columns: dict | None = None) -> dict | str:
    return shape_of(row, columns or {}, "rows.jsonl").example(row)


@pytest.mark.parametrize("real", REAL, ids=[real.name for real in REAL])
def test_a_published_row_becomes_the_right_example(real: Real):
    before = copy.deepcopy(real.row)
    shape = shape_of(real.row, real.columns, "rows.jsonl")
    assert shape.name == real.shape
    found = shape.example(real.row)
    assert found == real.example
    assert isinstance(found, Unusable) == isinstance(real.example, str)
    assert real.row == before


def test_there_are_thirty_shapes_and_the_page_shows_them():
    assert len({real.name for real in REAL}) == len(REAL) >= 30
    current = PAGE.read_text(encoding="utf-8") == page()
    assert current, "run `python -m tests.download.real_shapes`"


def test_the_first_shape_that_fits_is_taken():
    """Prompt, chosen and rejected before messages, verl before prompt-only, and so on."""
    rows = {
        "preference": {**PAIR, "messages": [USER], "question": "?", "reward_model": {}},
        "implicit preference": {
            "chosen": [USER, GOOD],
            "rejected": [USER, said("assistant", B)],
            "messages": [USER, GOOD],
            "text": "t",
        },
        "verl": {"prompt": Q, "reward_model": {"ground_truth": "4"}, "messages": [USER]},
        "prompt-completion": {"prompt": Q, "completion": A, "text": "t"},
        "prompt-only": {"prompt": Q, "question": "?", "messages": [USER, GOOD], "text": "t"},
        "messages": {"messages": [USER], "conversations": [USER], "question": "?"},
        "question": {"question": Q, "problem": "?", "text": "t"},
        "problem": {"problem": Q, "instruction": "?", "input": "?"},
        "instruction": {"instruction": Q, "input": "", "text": "t"},
        "input": {"input": Q, "text": "t"},
    }
    assert {name: shape_of(row, {}, "f").name for name, row in rows.items()} == {
        name: name for name in rows
    }
    for row in rows.values():
        assert example(row)["prompt"] == [USER]


def test_a_column_that_is_null_at_first_may_be_filled_later():
    row = {"prompt": Q, "chosen": None, "rejected": None, "system": None, "label": None, "n": None}
    shape = shape_of(row, {}, "f")
    assert shape.example(row) == {"prompt": [USER]}
    full = {"prompt": Q, "chosen": A, "rejected": B, "system": "Be brief.", "label": 3, "n": 0}
    assert shape.example(full) == {
        **PAIR,
        "prompt": [said("system", "Be brief."), USER],
        "label": "3",
        "n": 0,
    }
    assert "rejected is null" in shape.example({**full, "rejected": None})


@pytest.mark.parametrize(
    ("first", "change", "words"),
    [
        ({"prompt": Q}, {"prompt": [USER]}, "prompt is list, not str as in the file's first row"),
        ({"prompt": Q}, {"prompt": None}, "prompt is null, not str"),
        (PAIR, {"chosen": "a"}, "chosen is str, not list"),
        (PAIR, {"chosen": [USER]}, "chosen: not exactly one assistant message"),
        (PAIR, {"rejected": [said("assistant", " ")]}, "rejected: the content of message 1 is emp"),
        (PAIR, {"prompt": [GOOD]}, "prompt: ends with the assistant"),
        ({"prompt": [USER]}, {"prompt": [USER, GOOD]}, "columns: {messages: prompt}"),
        ({"messages": [USER]}, {"messages": [GOOD]}, "holds an answer and no prompt"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a"}, {"chosen": "a"}, "does not start with"),
        ({"prompt": Q}, {"label": [1]}, "label is list of int"),
        ({"prompt": Q}, {"tools": "calc"}, "(columns: {tool_names: tools} keeps it"),
        ({"prompt": Q}, {"system": ["s"]}, "system is list of str, not a string"),
        ({"prompt": [said("system", "s"), USER]}, {"system": "t"}, "system: differs"),
    ],
)
def test_rows_that_are_malformed_say_why(first: dict, change: dict, words: str):
    if "chosen" in first and "rejected" not in first:
        first = {**first, "rejected": "\n\nHuman: q\n\nAssistant: b"}
    found = shape_of(first, {}, "f").example({**first, **change})
    assert words in found
    assert not isinstance(found, Unusable)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": Q, "chosen": A, "rejected": A}, "equal answers"),
        ({"prompt": " \n", "chosen": A, "rejected": B}, "no user text"),
        ({"prompt": "", "system": "Be brief."}, "no user text"),
        ({"prompt": [said("system", "Be brief.")]}, "no user text"),
        ({"chosen": [USER, GOOD], "rejected": [said("user", "?"), GOOD]}, "no common prompt"),
        ({"prompt": Q, "images": [{"bytes": b"..", "path": None}]}, "image parts"),
    ],
)
def test_valid_rows_without_a_use_are_unusable_by_kind(row: dict, kind: str):
    found = example(row)
    assert isinstance(found, Unusable)
    assert found.kind == kind
    error = bad_row(found, "f.jsonl", 7, "hint")
    assert isinstance(error, UnusableRow)
    assert (error.kind, error.line) == (kind, 7)
    assert not isinstance(bad_row("malformed", "f.jsonl", 7), UnusableRow)


def test_a_system_message_that_is_there_already_is_not_put_twice():
    prompt = [said("system", "Be  brief."), USER]
    assert example({"prompt": prompt, "system": "Be brief. "}) == {"prompt": prompt}


def test_an_image_column_can_be_left_out():
    row = {"prompt": Q, "images": [{"bytes": b"..", "path": None}]}
    assert example(row, {"images": None}) == {"prompt": [USER]}


def test_a_prompt_that_is_not_part_of_the_conversations_is_kept():
    row = {"prompt": "another", "chosen": [USER, GOOD], "rejected": [USER, said("assistant", B)]}
    assert example(row) == {**PAIR, "prompt_": "another"}


def test_names_of_isodense_get_an_underscore_and_one_line_of_the_log(caplog):
    row = {"prompt": Q, "id": 1, "id_": 2, "split": "train", "environments": "e"}
    shape = shape_of(row, {}, "f")
    with caplog.at_level(logging.INFO, "isodense"):
        found = [shape.example(row) for _ in range(3)]
    kept = {"id_": 2, "id__": 1, "split_": "train", "environments_": "e"}
    assert found == [{"prompt": [USER], **kept}] * 3
    assert [record.message for record in caplog.records] == [
        f"column {name} is kept as {own}: isodense uses the name itself"
        for name, own in (("id", "id__"), ("split", "split_"), ("environments", "environments_"))
    ]


def test_keys_of_messages_that_are_left_out_are_said_once(caplog):
    row = {"prompt": [{**USER, "weight": 1.0, "audio": None}]}
    shape = shape_of(row, {}, "f")
    assert [shape.example(row) for _ in range(2)] == [{"prompt": [USER]}] * 2
    lines = [record.message for record in caplog.records]
    assert lines == ["messages have the key weight, which is left out"]


ROW = {
    "question": Q,
    "answer": "4",
    "domain": ["a", "b"],
    "meta": {"hint": "h", "text": "t"},
    "good": A,
    "bad": B,
}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"solution": "answer"}, {"solution": "4"}),
        ({"answer": None}, {}),
        ({"hint": "meta.hint"}, {"answer": "4", "hint": "h"}),
        ({"label": "domain"}, {"answer": "4", "label": "a, b"}),
        ({"label": "answer"}, {"answer": "4", "label": "4"}),
        ({"one": "answer", "two": "answer"}, {"one": "4", "two": "4"}),
        ({"answer": "meta.hint"}, {"answer": "h", "answer_": "4"}),
        ({"answer": "meta.hint", "solution": "answer"}, {"answer": "h", "solution": "4"}),
    ],
)
def test_a_map_renames_lifts_copies_and_leaves_out(columns: dict, expected: dict):
    rest = {name: ROW[name] for name in ("domain", "meta", "good", "bad")}
    assert example(ROW, columns) == {"prompt": [USER], **rest, **expected}


def test_a_map_to_our_names_makes_the_shape():
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "system": "meta.hint"}
    shape = shape_of(ROW, columns, "f")
    assert shape.name == "preference"
    assert shape.example(ROW) == {
        **PAIR,
        "prompt": [said("system", "h"), USER],
        "answer": "4",
        "domain": ["a", "b"],
        "meta": {"text": "t"},
    }
    nested = {"prompt": "meta.text", "question": None, "good": None, "bad": None}
    assert example(ROW, nested) == {
        "prompt": [said("user", "t")],
        "answer": "4",
        "domain": ["a", "b"],
        "meta": {"hint": "h"},
    }


def test_a_mapped_conversation_may_end_with_its_answer():
    row = {"dialog": [USER, GOOD]}
    for name in ("prompt", "messages"):
        assert example(row, {name: "dialog"}) == {"prompt": [USER], "completion": A}


def test_a_name_with_a_dot_is_first_a_column():
    row = {"prompt": Q, "a.b": 1, "a": {"b": 2}}
    assert example(row, {"c": "a.b"}) == {"prompt": [USER], "c": 1, "a": {"b": 2}}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"prompt": "queston"}, ["queston", "did you mean question?", "question, answer, domain"]),
        ({"x": "meta.hin"}, ["did you mean meta.hint?", "meta holds hint, text"]),
        ({"x": "answer.y"}, ["answer holds no columns"]),
        ({"anser": None}, ["anser", "did you mean answer?"]),
        ({"source": "answer"}, ["source, which isodense uses itself"]),
        ({"label": "meta"}, ["label is dict: hint, text", "map another column to label"]),
    ],
)
def test_a_map_that_does_not_fit_says_how(columns: dict, words: list[str]):
    with pytest.raises(DataError) as caught:
        shape_of(ROW, columns, "rows.jsonl")
    for word in ["rows.jsonl", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("value", [["4"], True, {"a": 1}, 0.5])
def test_a_label_that_is_no_name_is_an_error_with_the_map_that_keeps_it(value: object):
    row = {"prompt": Q, "chosen": A, "rejected": B, "label": value}
    with pytest.raises(DataError, match="label is ") as caught:
        shape_of(row, {}, "f")
    pasted = yaml.safe_load(str(caught.value).split(":\n", 1)[1])
    assert pasted == {"download": {"local": {"columns": {"ground_truth": "label"}}}}
    columns = pasted["download"]["local"]["columns"]
    assert example(row, columns) == {**PAIR, "ground_truth": value}


@pytest.mark.parametrize(
    ("value", "label"),
    [("maths", "maths"), (3, "3"), (7.0, "7"), (None, None), ("", None), (0, "0")],
)
def test_labels_are_strings_or_whole_numbers(value: object, label: str | None):
    expected = {"prompt": [USER], **({"label": label} if label else {})}
    assert example({"prompt": Q, "label": value}) == expected


@pytest.mark.parametrize(
    ("value", "label"),
    [(" maths\n", "maths"), ("cafe\u0301", "caf\u00e9"), (" ", None), (float("nan"), None)],
)
@pytest.mark.parametrize("columns", [{}, {"label": "kind"}], ids=["named label", "mapped"])
def test_one_kind_has_one_label_and_none_is_no_kind(
    value: object, label: str | None, columns: dict[str, str]
):
    found = example({"prompt": Q, columns.get("label", "label"): value}, columns)
    assert isinstance(found, dict)
    assert found.get("label") == label


def test_items_of_a_label_that_is_a_list_are_written_alike():
    found = example({"prompt": Q, "kinds": [" a", "", "b "]}, {"label": "kinds"})
    assert isinstance(found, dict)
    assert found["label"] == "a, b"


@pytest.mark.parametrize(
    ("row", "nearest", "columns"),
    [
        ({"Question": Q, "Answer": 4}, "prompt-only", {"prompt": "Question"}),
        ({"idx": 1, "user_prompt": Q}, "prompt-only", {"prompt": "user_prompt"}),
        ({"a": "x", "b": "the longest text"}, "prompt-only", {"prompt": "b"}),
        ({"id": "x", "dialog": [USER, GOOD]}, "prompt-only", {"prompt": "dialog"}),
        ({"data": {"question": Q}, "id": "1"}, "prompt-only", {"prompt": "data.question"}),
        (
            {"user_query": Q, "chosen_response": A, "rejected_response": B},
            "preference",
            {
                "prompt": "user_query",
                "chosen": "chosen_response",
                "rejected": "rejected_response",
            },
        ),
    ],
)
def test_an_unknown_shape_prints_the_map_that_makes_it_known(row, nearest, columns):
    with pytest.raises(DataError) as caught:
        shape_of(row, {}, "rows.jsonl", "download.hub")
    text = str(caught.value)
    assert all(f"{name} (" in text for name in row)
    assert f"the nearest shape is {nearest}" in text
    pasted = yaml.safe_load(text.split("set\n", 1)[1])
    assert pasted == {"download": {"hub": {"columns": columns}}}
    found = example(row, pasted["download"]["hub"]["columns"])
    assert found["prompt"][0]["role"] == "user"
    assert ("chosen" in found) == (nearest == "preference")


@pytest.mark.parametrize("row", [{}, {"n": 1}, {"prompt": None}, {"chosen": "a", "rejected": "b"}])
def test_without_a_column_for_the_prompt_there_is_no_guess(row: dict):
    with pytest.raises(DataError, match="no column holds text or messages") as caught:
        shape_of(row, {}, "rows.jsonl")
    assert "responses_create_params.input" in str(caught.value)


def test_answers_of_no_known_type_are_an_error_rather_than_columns():
    with pytest.raises(DataError, match="chosen and rejected are int and int"):
        shape_of({"prompt": Q, "chosen": 0, "rejected": 1}, {}, "f")


JUNK = (None, "", "x", 0, 1.5, True, b"x", [], ["x"], [None], [[]], {}, {"x": 1}, [{"type": "x"}])


def damaged(value: object) -> Iterator[object]:
    """Yield copies of a value in which one part, of any depth, is junk or absent."""
    yield from JUNK
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    for key, part in items:
        inner = damaged(part) if isinstance(part, dict | list) else JUNK
        for other in inner:
            changed = copy.copy(value)
            changed[key] = other
            yield changed
        if isinstance(value, dict):
            yield {name: kept for name, kept in items if name != key}


@pytest.mark.parametrize("real", REAL, ids=[real.name for real in REAL])
def test_a_damaged_row_is_an_example_or_has_a_reason(real: Real):
    shape = shape_of(real.row, real.columns, "f")
    for row in damaged(real.row):
        if not isinstance(row, dict):
            continue
        found = shape.example(row)
        if isinstance(found, dict):
            assert prompt_fault(found["prompt"]) is None
            assert ("chosen" in found) == ("rejected" in found)
            assert type(found.get("label", "")) is str
            assert encoder_text(found["prompt"])
            assert prompt_id(found["prompt"], found.get("tools"))
        else:
            assert isinstance(found, str)
            assert found


@pytest.mark.parametrize("real", REAL, ids=[real.name for real in REAL])
def test_a_damaged_first_row_has_a_shape_or_an_error(real: Real):
    for row in (row for row in damaged(real.row) if isinstance(row, dict)):
        try:
            shape = shape_of(row, real.columns, "f")
        except DataError as error:
            assert error.path == "f"  # noqa: PT017
        else:
            assert isinstance(shape.example(row), dict | str)
            assert isinstance(shape.example(real.row), dict | str)


def test_what_comes_out_is_written_and_read_as_it_is(tmp_path: Path):
    rows = [
        {"id": example_id(real.example), **real.example, "source": "s"}
        for real in REAL
        if isinstance(real.example, dict)
    ]
    assert len(rows) > 30
    for number, row in enumerate(rows):
        folder = tmp_path / str(number)
        write_examples(folder, [row])
        assert list(iter_examples(folder)) == [row]


def test_a_displaced_column_takes_the_place_of_no_other():
    row = {"prompt": "old", "prompt_": "older", "question": "asked"}
    shape = shape_of(row, {"prompt": "question"}, "f")
    found = shape.example(row)
    assert found["prompt"] == [{"role": "user", "content": "asked"}]
    assert {found["prompt_"], found["prompt__"]} == {"old", "older"}


def test_a_nested_column_can_be_left_out():
    row = {"question": "asked", "meta": {"level": 3, "embedding": [0.5]}}
    assert shape_of(row, {"meta.embedding": None}, "f").example(row)["meta"] == {"level": 3}
