"""JSON lines: good files round trip, bad ones name file and line."""

from __future__ import annotations

import gzip

import pytest

from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import read_jsonl, write_jsonl


def test_rows_round_trip_with_their_text(tmp_path):
    rows = [{"b": "Zürich 🎲 \u2028 x", "a": [1, None]}, {"a": 'quote " and \\'}]
    assert write_jsonl(tmp_path / "x.jsonl", rows) == 2
    assert [row for _, row in read_jsonl(tmp_path / "x.jsonl")] == rows


def test_gzip_is_recognised_by_content_and_blank_lines_keep_their_numbers(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(gzip.compress(b'{"a": 1}\n\n{"a": 2}\n'))
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": 1', "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[1]", "not a JSON object but list"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": "\\ud800"}', "surrogate"),
    ],
)
def test_a_bad_line_is_named_and_can_be_skipped(tmp_path, line, words):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 0}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(DataError, match=words) as caught:
        list(read_jsonl(path))
    assert f"{path}:2:" in str(caught.value)
    skipped: list[DataError] = []
    assert [number for number, _ in read_jsonl(path, skipped.append)] == [1, 3]
    assert [error.line for error in skipped] == [2]


@pytest.mark.parametrize("keep", [0.5, 0.97])
def test_a_cut_gzip_is_never_a_short_file(tmp_path, keep):
    path = tmp_path / "x.jsonl.gz"
    whole = gzip.compress(b'{"a": "some text that does not repeat 123 456"}\n' * 500)
    path.write_bytes(whole[: int(len(whole) * keep)])
    skipped: list[DataError] = []
    with pytest.raises(DataError, match="damaged or cut short after line"):
        list(read_jsonl(path, skipped.append))


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert list(read_jsonl(tmp_path / "x.jsonl")) == [(1, {"a": 1})]


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="is a folder"):
        list(read_jsonl(tmp_path))
