"""Tables keep rows, order and types, in memory that does not grow with them."""

from __future__ import annotations

import datetime

import pyarrow.parquet as pq
import pytest

from isodense.pipeline import tables
from isodense.pipeline.errors import ArtifactError
from isodense.pipeline.tables import (
    MixedTypes,
    read_at,
    read_batches,
    read_rows,
    schema_of,
    write_rows,
)
from tests.tiny import user

CALL = {"type": "function", "function": {"name": "add", "arguments": {"y": [2], "x": 1}}}
TOOL_TALK = [
    *user("add 1 and 2"),
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "name": "add"},
]
ROWS = [
    {"id": "a", "prompt": user("one"), "answer": "4", "extra": {"index": 1}},
    {"id": "b", "prompt": TOOL_TALK, "tools": [{"name": "add", "parameters": {"x": {}}}]},
    {"id": "c", "prompt": user("Où?"), "when": datetime.datetime(2026, 1, 2), "tags": ["x", "y"]},
]


def test_rows_come_back_as_they_were(tmp_path):
    assert write_rows(tmp_path, ROWS) == 3
    assert list(read_rows(tmp_path)) == ROWS
    assert [list(row) for row in read_rows(tmp_path, ["answer", "id", "none"])] == [
        ["answer", "id"],
        ["id"],
        ["id"],
    ]
    assert read_at(tmp_path, [2, 0]) == {0: ROWS[0], 2: ROWS[2]}


def test_what_has_no_fixed_columns_is_stored_as_text(tmp_path):
    write_rows(tmp_path, ROWS)
    stored = pq.read_table(tmp_path / "shard-00000.parquet").to_pylist()[1]
    assert stored["tools"] == '[{"name":"add","parameters":{"x":{}}}]'
    function = stored["prompt"][1]["tool_calls"][0]["function"]
    assert function == {"name": "add", "arguments": '{"x":1,"y":[2]}'}


def test_shards_and_row_groups_have_fixed_numbers_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "GROUP", 4)
    monkeypatch.setattr(tables, "ROWS", 8)
    rows = [{"id": str(number), "late": number} for number in range(19)]
    for row in rows[:9]:
        del row["late"]
    assert write_rows(tmp_path, rows) == 19
    files = [pq.ParquetFile(path) for path in sorted(tmp_path.glob("*"))]
    assert [file.metadata.num_rows for file in files] == [8, 8, 3]
    assert [file.metadata.num_row_groups for file in files] == [2, 2, 1]
    assert len({str(file.schema_arrow) for file in files}) == 1
    assert list(read_rows(tmp_path)) == rows
    assert read_at(tmp_path, [18, 7, 8]) == {7: rows[7], 8: rows[8], 18: rows[18]}
    assert sum(len(batch) for batch in read_batches(tmp_path, ["id"])) == 19


def test_appended_rows_leave_full_shards_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "GROUP", 4)
    monkeypatch.setattr(tables, "ROWS", 8)
    contents = []
    for name, count in (("before", 19), ("after", 30)):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name, [{"id": str(number)} for number in range(count)])
        contents.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert contents[0][:2] == contents[1][:2]
    assert contents[0][2] != contents[1][2]


def test_integers_beside_real_numbers_are_real_and_keys_are_united(tmp_path):
    write_rows(tmp_path, [{"x": 1, "o": {"a": 1}}, {"x": 2.5, "o": {"b": "s"}}, {"o": {}}])
    assert list(read_rows(tmp_path)) == [
        {"x": 1.0, "o": {"a": 1, "b": None}},
        {"x": 2.5, "o": {"a": None, "b": "s"}},
        {"o": {"a": None, "b": None}},
    ]


def test_objects_without_keys_are_null(tmp_path):
    write_rows(tmp_path, [{"id": "a", "o": {}, "p": {"q": {}, "r": 1}, "l": [{}]}])
    assert list(read_rows(tmp_path)) == [{"id": "a", "p": {"q": None, "r": 1}, "l": [None]}]


@pytest.mark.parametrize("group", [2, 8])
@pytest.mark.parametrize(
    ("first", "other", "words"),
    [(4, "four", "column x"), ({"a": 1}, 3, "column x"), ("four", True, "column x")],
)
def test_a_value_of_another_type_is_named_with_its_column(
    tmp_path, monkeypatch, group, first, other, words
):
    """In the batch of the others, or a later one."""
    monkeypatch.setattr(tables, "GROUP", group)
    rows = [{"id": "a", "x": first}, {"id": "b"}, {"id": "c", "x": other}, {"id": "d", "x": first}]
    with pytest.raises(MixedTypes, match=words):
        write_rows(tmp_path, rows)
    assert not list(tmp_path.iterdir())
    left_out = []
    assert write_rows(tmp_path, rows, lambda row, _: left_out.append(row)) == 3
    assert left_out == [rows[2]]
    assert list(read_rows(tmp_path)) == [rows[0], rows[1], rows[3]]


def test_numbers_too_large_for_a_column_are_named(tmp_path):
    with pytest.raises(MixedTypes, match="column x: "):
        write_rows(tmp_path, [{"x": 2**70}])


def test_a_row_may_carry_where_it_is_from(tmp_path):
    write_rows(tmp_path, [{"id": "a", tables.ORIGIN: ("file", 3)}])
    assert list(read_rows(tmp_path)) == [{"id": "a"}]


def test_missing_and_damaged_shards_are_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"shard-00000\.parquet cannot be read: no such file"):
        list(read_rows(tmp_path))
    write_rows(tmp_path, ROWS)
    path = tmp_path / "shard-00000.parquet"
    assert schema_of(tmp_path).names == list(dict.fromkeys(name for row in ROWS for name in row))
    path.write_bytes(path.read_bytes()[:-20])
    readers = (lambda: list(read_rows(tmp_path)), lambda: schema_of(tmp_path))
    for read in (*readers, lambda: read_at(tmp_path, [0])):
        with pytest.raises(ArtifactError, match=r"shard-00000\.parquet cannot be read"):
            read()


@pytest.mark.parametrize("times", [60, 90, 500])
@pytest.mark.parametrize("wrap", [lambda value: {"a": value}, lambda value: [value]])
def test_values_nested_too_deep_are_left_out_row_by_row(tmp_path, times, wrap):
    deep: object = 1
    for _ in range(times):
        deep = wrap(deep)
    rows = [{"id": "a", "x": wrap(1)}, {"id": "b", "x": deep}, {"id": "c"}]
    left_out = []
    assert write_rows(tmp_path, rows, lambda row, error: left_out.append(str(error))) == 2
    assert left_out == ["column x: nested more than 50 deep"]


@pytest.mark.parametrize("group", [1, 8])
def test_integers_that_no_real_number_holds_are_an_error_not_another_value(
    tmp_path, monkeypatch, group
):
    monkeypatch.setattr(tables, "GROUP", group)
    with pytest.raises(MixedTypes, match="column x"):
        write_rows(tmp_path, [{"x": 2**60 + 1}, {"x": 0.5}], lambda *_: None)
