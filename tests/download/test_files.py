"""Files of any format give the rows that are in them, with their numbers, or say what is wrong."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from isodense.download.files import expand, read
from isodense.pipeline.errors import DataError

ROWS = [{"question": f"how many é {number}?", "answer": number} for number in range(240)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def rows_of(path: Path) -> list[tuple[int, dict]]:
    def raised(error: DataError) -> None:
        raise error

    return list(read(path, raised))


def skipping(path: Path) -> tuple[list[tuple[int, dict]], list[str]]:
    skipped: list[str] = []
    rows = list(read(path, lambda error: skipped.append(str(error))))
    return rows, skipped


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def zstd(path: Path, content: bytes) -> bytes:
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(content)
    return path.read_bytes()


def compressed(kind: str, path: Path, content: bytes) -> bytes:
    if kind == "zst":
        return zstd(path, content)
    return {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind](content)


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("name", ["rows.jsonl.{}", "named_so.json"])
def test_compressed_json_lines_are_told_by_content(tmp_path, kind, name):
    path = tmp_path / name.format(kind)
    path.write_bytes(compressed(kind, path, LINES.encode()))
    assert rows_of(path) == list(enumerate(ROWS, start=1))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="stream is damaged or cut short") as caught:
        rows_of(path)
    assert str(path) in str(caught.value)


def test_an_array_is_read_row_by_row_with_the_lines_of_its_rows(tmp_path):
    lined = "[\n" + ",\n".join(json.dumps(row) for row in ROWS) + "\n]\n"
    assert rows_of(written(tmp_path / "lined.json", lined)) == list(enumerate(ROWS, start=2))
    pretty = written(tmp_path / "pretty.json", json.dumps(ROWS, indent=2))
    assert [row for _, row in rows_of(pretty)] == ROWS
    assert [line for line, _ in rows_of(pretty)][:3] == [2, 6, 10]
    packed = written(tmp_path / "packed.jsonl", gzip.compress(json.dumps(ROWS).encode()))
    assert [row for _, row in rows_of(packed)] == ROWS


def test_an_array_longer_than_the_buffer_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("isodense.download.json_documents.CHUNK", 7)
    values = [*ROWS[:30], {"long": "x" * 50, "n": [1, 23, 456]}]
    path = written(tmp_path / "a.json", json.dumps(values, indent=1) + " ")
    assert [row for _, row in rows_of(path)] == values


def test_a_fault_in_an_array_is_named_by_its_line_and_no_row_is_skipped(tmp_path):
    pretty = json.dumps(ROWS[:5], indent=1)
    cases = {
        pretty[:-8]: (18, "Expecting"),
        pretty.replace('"answer": 2', '"answer": x'): (10, "Expecting value"),
        pretty[:-1]: (22, "the file ends in the array"),
        pretty + " x": (22, "'x' after the array"),
        "[1]\n[2]\n": (2, "after the array"),
        '[{"a": 1} {"a": 2}]': (1, "instead of a comma"),
    }
    for content, (line, words) in cases.items():
        path = written(tmp_path / "x.json", content)
        with pytest.raises(DataError) as caught:
            skipping(path)
        assert f"{path}:{line}: " in str(caught.value)
        assert words in str(caught.value)


def test_what_is_no_object_in_an_array_is_a_bad_row(tmp_path):
    path = written(tmp_path / "x.json", '[{"a": 1},\n5, "x",\n{"a": 2}]')
    rows, skipped = skipping(path)
    assert rows == [(1, {"a": 1}), (3, {"a": 2})]
    assert [fault.split(": ")[0] for fault in skipped] == [f"{path}:2"] * 2


def test_an_object_around_the_rows_is_looked_into_and_a_single_row_is_not(tmp_path):
    around = written(tmp_path / "a.json", json.dumps({"version": 2, "data": ROWS}, indent=1))
    assert rows_of(around) == list(enumerate(ROWS, start=1))
    single = {"messages": [{"role": "user", "content": "x"}], "answer": "4"}
    assert rows_of(written(tmp_path / "b.json", json.dumps(single))) == [(1, single)]
    plain = {"question": "x", "tags": ["a"]}
    assert rows_of(written(tmp_path / "c.json", json.dumps(plain))) == [(1, plain)]


# --- text -----------------------------------------------------------------------------------------


def test_csv_keeps_lines_quotes_and_text(tmp_path):
    content = '\ufeffprompt,answer\n"a, ""b""\nc",007\nx,5\nbad\n\ny,6\n'
    rows, skipped = skipping(written(tmp_path / "a.CSV", content))
    first = {"prompt": 'a, "b"\nc', "answer": "007"}
    assert rows == [
        (2, first),
        (4, {"prompt": "x", "answer": "5"}),
        (7, {"prompt": "y", "answer": "6"}),
    ]
    assert len(skipped) == 1
    assert ":5: 1 fields, and the header names 2 columns" in skipped[0]


@pytest.mark.parametrize(("name", "mark"), [("a.tsv", "\t"), ("a.csv", ";"), ("a.csv", "\t")])
def test_other_separators_are_known(tmp_path, name, mark):
    path = written(tmp_path / name, f"prompt{mark}answer\nx, y{mark}5\n")
    assert rows_of(path) == [(2, {"prompt": "x, y", "answer": "5"})]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,a\n1,2\n", ":1: the first line names no columns, or one twice"),
        ("", ":1: the first line names no columns"),
        ('a,b\n1,2\n"x,1\n', ":3: not CSV"),
        ("a,b\né,1\n".encode("latin-1"), "not UTF-8 after line 0 (byte 0xe9)"),
    ],
)
def test_what_is_no_csv_says_where(tmp_path, content, words):
    with pytest.raises(DataError) as caught:
        rows_of(written(tmp_path / "a.csv", content))
    assert words in str(caught.value)


def test_each_line_of_a_text_is_a_prompt(tmp_path):
    path = written(tmp_path / "prompts.txt", "one\n\n two \n")
    assert rows_of(path) == [(1, {"prompt": "one"}), (3, {"prompt": "two"})]


# --- Arrow ----------------------------------------------------------------------------------------


def test_parquet_of_any_type_comes_out_as_plain_values(tmp_path):
    table = pa.table(
        {
            "dictionary": pa.array(["x", "y"]).dictionary_encode(),
            "large": pa.array(["x", None], pa.large_string()),
            "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            "json": pa.array(['{"a": 1}', None], pa.json_()),
            "list": pa.array([[{"role": "user"}], []]),
        }
    )
    pq.write_table(table, tmp_path / "UPPER.PARQUET")
    first = {"dictionary": "x", "large": "x", "map": {"k": 1}, "json": {"a": 1}}
    second = {"dictionary": "y", "large": None, "map": None, "json": None, "list": []}
    expected = [(1, first | {"list": [{"role": "user"}]}), (2, second)]
    assert rows_of(tmp_path / "UPPER.PARQUET") == expected
    renamed = written(tmp_path / "x.json", (tmp_path / "UPPER.PARQUET").read_bytes())
    assert rows_of(renamed) == expected
    whole = renamed.read_bytes()
    renamed.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is damaged or cut short after row 0"):
        rows_of(renamed)


def test_arrow_files_and_streams_are_read(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    feather.write_feather(table, str(tmp_path / "a.feather"))
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink:
        with pa.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table, max_chunksize=100)
    for name in ("a.feather", "a.arrow"):
        assert rows_of(tmp_path / name) == list(enumerate(ROWS, start=1))


def test_what_datasets_saved_is_read_with_its_json_columns(tmp_path):
    import datasets

    rows = [{"prompt": "x", "meta": {"a": 1}, "l": [[1]]}, {"prompt": "y", "meta": 5, "l": [{}]}]
    text, anything = datasets.Value("string"), datasets.Json()
    features = {"prompt": text, "meta": anything, "l": datasets.List(anything)}
    data = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    data.save_to_disk(str(tmp_path / "saved"))
    data.to_parquet(str(tmp_path / "a.parquet"))
    assert expand([str(tmp_path / "saved")]) == [tmp_path / "saved"]
    assert rows_of(tmp_path / "saved") == list(enumerate(rows, start=1))
    assert rows_of(tmp_path / "a.parquet") == list(enumerate(rows, start=1))
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(DataError, match="of train, test"):
        expand([str(tmp_path / "both")])
    assert rows_of(tmp_path / "both" / "test") == list(enumerate(rows, start=1))


# --- names ----------------------------------------------------------------------------------------


def test_folders_and_patterns_stand_for_their_data_files_in_order(tmp_path, caplog, monkeypatch):
    for name in ("b.jsonl", "a.parquet", "deep/c.json.gz", "README.md", ".hidden.json", "_x.json"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("{}")
    with caplog.at_level("INFO", logger="isodense"):
        found = expand([str(tmp_path / "in")])
    files = ["a.parquet", "b.jsonl", "deep/c.json.gz"]
    assert found == [tmp_path / "in" / name for name in files]
    assert "left out README.md" in caplog.text
    monkeypatch.chdir(tmp_path)
    assert expand(["in/*.jsonl", "in/a.parquet"]) == [Path("in/b.jsonl"), Path("in/a.parquet")]
    assert expand(["in/**/*.gz"]) == [Path("in/deep/c.json.gz")]
    assert expand([f"{tmp_path}/in/**/*.gz"]) == [tmp_path / "in/deep/c.json.gz"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("https://example.org/x.json", "dvc import-url"),
        ("hf://datasets/a/b", "use the source hub"),
        ("nothing/*.json", "matches no file"),
        ("empty", "holds no data file"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        expand([name])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.json", None, "no such file"),
        ("a.zip", b"PK\x03\x04", "is a zip archive"),
        ("a.tar", b"\0" * 257 + b"ustar", "is a tar archive"),
        ("a.parquet", b"hello", "is no parquet file"),
    ],
)
def test_files_that_hold_no_rows_are_refused(tmp_path, name, content, words):
    if content is not None:
        written(tmp_path / name, content)
    with pytest.raises(DataError, match=words):
        rows_of(tmp_path / name)


# --- what was read wrong in silence, or ended in a traceback --------------------------------------


@pytest.mark.parametrize("name", ["passages", "tests", "choices"])
def test_a_single_row_that_holds_a_list_of_objects_is_a_row(tmp_path, name):
    row = {"question": "REAL", name: [{"text": "x"}, {"text": "y"}]}
    for suffix in ("json", "jsonl"):
        path = written(tmp_path / f"a.{suffix}", json.dumps(row))
        assert rows_of(path) == [(1, row)]


def test_an_object_that_may_be_a_row_or_hold_rows_is_refused(tmp_path):
    both = written(tmp_path / "a.json", json.dumps({"prompt": "x", "data": ROWS}))
    with pytest.raises(DataError, match="it is not clear whether data holds the rows"):
        rows_of(both)
    two = written(tmp_path / "b.json", json.dumps({"train": ROWS, "test": ROWS}))
    with pytest.raises(DataError, match="whether train and test holds the rows"):
        rows_of(two)


def test_notes_in_a_folder_of_data_are_left_out_and_texts_alone_are_data(tmp_path, caplog):
    for name in ("a/rows.jsonl", "a/LICENSE.txt", "a/notes.txt", "a/dataset_infos.json", "b/p.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with caplog.at_level("INFO", logger="isodense"):
        assert expand([str(tmp_path / "a")]) == [tmp_path / "a/rows.jsonl"]
    assert "left out LICENSE.txt, dataset_infos.json, notes.txt" in caplog.text
    assert expand([str(tmp_path / "b")]) == [tmp_path / "b/p.txt"]


def test_linked_folders_are_gone_through_and_loops_end(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far/x.jsonl").write_text("{}")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path / "far")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    assert expand([str(tmp_path / "in")]) == [tmp_path / "in/link/x.jsonl"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x\n".encode("utf-16"), "is no UTF-8 text"),
        ("x y\n".encode("utf-16-le"), "is no UTF-8 text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html>\n<p>", "is a web page"),
        (b'{"prompt": "x"}\n{"prompt": "y"}\n', "is called a text and holds JSON"),
    ],
)
def test_what_is_no_text_of_prompts_is_refused(tmp_path, content, words):
    with pytest.raises(DataError, match=words):
        rows_of(written(tmp_path / "a.txt", content))


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has two columns 'prompt'"):
        rows_of(tmp_path / "a.parquet")


def test_a_map_with_a_key_twice_names_the_row(tmp_path):
    kind = pa.map_(pa.string(), pa.int64())
    pq.write_table(
        pa.table({"m": pa.array([[("k", 1)], [("k", 1), ("k", 2)]], kind)}), tmp_path / "a"
    )
    with pytest.raises(DataError, match="has a map that has a key twice"):
        rows_of(tmp_path / "a")


@pytest.mark.parametrize("name", ["", " ", "a**b", "x" * 5000, "~nobody-here/x", "a\0b"])
def test_names_that_cannot_be_read_are_one_error(name):
    with pytest.raises(DataError):
        [rows_of(path) for path in expand([name])]


def test_a_first_line_nested_without_end_is_one_error(tmp_path):
    path = written(tmp_path / "a.jsonl", "{" + '"a":[' * 100_000)
    with pytest.raises(DataError, match=":1: not JSON"):
        rows_of(path)


def test_a_header_that_is_no_csv_is_one_error(tmp_path):
    with pytest.raises(DataError, match=":1: "):
        rows_of(written(tmp_path / "a.csv", '"a;b;c",d\tx"y,"\n1,2\n'))
