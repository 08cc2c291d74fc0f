from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isodense.download.examples import example_id
from isodense.download.sources import local
from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import raise_bad_row
from isodense.pipeline.tables import ORIGIN
from isodense.prompts.conversations import prompt_id

REAL = Path(__file__).parents[3] / "../shared/data/hh-harmless-base-test.jsonl.gz"


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


PAIR = {
    "prompt": [turn("user", "q")],
    "chosen": [turn("assistant", "good")],
    "rejected": [turn("assistant", "bad")],
}
FORMS = {
    "HH": {
        "chosen": "\n\nHuman: q\n\nAssistant: good",
        "rejected": "\n\nHuman: q\n\nAssistant: bad",
    },
    "strings": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "conversational": PAIR,
    "implicit": {
        "chosen": [*PAIR["prompt"], *PAIR["chosen"]],
        "rejected": [*PAIR["prompt"], *PAIR["rejected"]],
    },
    "implicit with a prompt string": {
        "prompt": "q",
        "chosen": [*PAIR["prompt"], *PAIR["chosen"]],
        "rejected": [*PAIR["prompt"], *PAIR["rejected"]],
    },
}


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        columns = {name: [row.get(name) for row in rows] for name in rows[-1]}
        pq.write_table(pa.table(columns), path)
        return path
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def load(*paths: Path, on_bad_row=raise_bad_row, limit: int | None = None) -> list[dict]:
    params = local.LocalParams(
        files=[str(path) for path in paths], heldout=[], columns={}, limit=limit
    )
    found = list(local.load(params, on_bad_row))
    assert all(row.pop(ORIGIN)[0] in map(str, paths) for row in found)
    return found


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_reads_every_form_from_every_kind_of_file(tmp_path: Path, form: str, suffix: str):
    row = {**FORMS[form], "score": 1.5}
    path = write(tmp_path / f"pairs.{suffix}", [row, {**row, "label": "greeting"}])
    expected = {**PAIR, "score": 1.5}
    assert load(path) == [expected, {**expected, "label": "greeting"}]


def test_reads_files_of_different_forms_in_order_up_to_the_limit(tmp_path: Path):
    one = write(
        tmp_path / "one.jsonl", [{"prompt": n, "chosen": "a", "rejected": "b"} for n in "xyz"]
    )
    two = write(tmp_path / "two.parquet", [FORMS["implicit"]])
    assert [pair["prompt"][0]["content"] for pair in load(one, two)] == ["x", "y", "z", "q"]
    assert [pair["prompt"][0]["content"] for pair in load(two, one, limit=2)] == ["q", "x"]


def test_keeps_system_messages_and_earlier_turns(tmp_path: Path):
    prompt = [turn("system", "s"), turn("user", "1"), turn("assistant", "2"), turn("user", "3")]
    explicit = write(tmp_path / "a.jsonl", [{**PAIR, "prompt": prompt}])
    whole = {name: [*prompt, *PAIR[name]] for name in ("chosen", "rejected")}
    implicit = write(tmp_path / "b.jsonl", [whole])
    assert [pair["prompt"] for pair in load(explicit, implicit)] == [prompt, prompt]


def test_relative_paths_start_at_the_working_directory(tmp_path: Path, monkeypatch):
    write(tmp_path / "pairs.jsonl", [PAIR])
    monkeypatch.chdir(tmp_path)
    assert load(Path("pairs.jsonl")) == [PAIR]


HUMAN, BOT = "\n\nHuman:", "\n\nAssistant:"
BAD = {
    "empty prompt": ("strings", {"prompt": " "}, "prompt: has no user text"),
    "empty answer": ("strings", {"rejected": ""}, "rejected: the content of message 1 is empty"),
    "no preference": ("strings", {"rejected": "good"}, "chosen and rejected are the same"),
    "another form": (
        "strings",
        {"prompt": None},
        "prompt is null, not str as in the file's first row",
    ),
    "label": ("strings", {"label": [1]}, "label is list"),
    "no answer": ("HH", {"chosen": f"{HUMAN} q"}, "chosen: ends with the user"),
    "order": ("HH", {"chosen": f"{BOT} a{HUMAN} q{BOT} b"}, "chosen: starts with the assistant"),
    "no markers": ("HH", {"rejected": "bad"}, "rejected: does not start with"),
    "other prompt": ("HH", {"rejected": f"{HUMAN} r{BOT} bad"}, "part at a message that is not"),
    "tool": ("conversational", {"prompt": [turn("tool", "t")]}, "a tool message without a call"),
    "prompt end": ("conversational", {"prompt": [turn("system", "s")]}, "has no user text"),
    "turns": (
        "conversational",
        {"prompt": [turn("user", "a"), turn("user", "b")]},
        "do not take turns",
    ),
    "late system": (
        "conversational",
        {"prompt": [turn("user", "a"), turn("system", "b")]},
        "a system message after the start",
    ),
    "user answers": ("conversational", {"chosen": [turn("user", "a")]}, "one assistant message"),
    "no messages": ("conversational", {"chosen": []}, "chosen: not a list of messages"),
    "parts": (
        "conversational",
        {"chosen": [{"role": "assistant", "content": ["a"]}]},
        "the content of message 1 is list",
    ),
    "no role": ("conversational", {"chosen": [{"content": "a"}]}, "message 1 is not a mapping"),
    "open end": (
        "implicit",
        {"chosen": [turn("user", "q"), turn("assistant", "a"), turn("user", "r")]},
        "chosen: ends with the user",
    ),
    "no shared prompt": (
        "implicit",
        {"chosen": [turn("assistant", "a")], "rejected": [turn("assistant", "b")]},
        "share no prompt",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_rows_name_file_line_and_remedy(tmp_path: Path, case: str):
    form, change, words = BAD[case]
    good = FORMS[form]
    path = write(tmp_path / "pairs.jsonl", [good, {**good, **change}, good])
    with pytest.raises(DataError) as caught:
        load(path)
    text = str(caught.value)
    assert f"{path}:2: " in text
    assert words in text
    assert "download.on_bad_row: skip" in text
    errors: list[DataError] = []
    assert load(path, on_bad_row=errors.append) == [PAIR, PAIR]
    assert len(errors) == 1


def test_rows_of_parquet_are_counted_from_one(tmp_path: Path):
    rows = [FORMS["strings"]] * 3000
    path = write(tmp_path / "pairs.parquet", [*rows, {**FORMS["strings"], "chosen": ""}])
    with pytest.raises(DataError, match=rf"{path}:3001: chosen"):
        load(path)


def test_invalid_utf8_names_the_line(tmp_path: Path):
    path = write(tmp_path / "pairs.jsonl", [PAIR])
    path.write_bytes(path.read_bytes() + b'{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match=rf"{path}:2: not UTF-8"):
        load(path)


@pytest.mark.parametrize("columns", [{"quest": "q", "reply": 1}, {"score": 0.5}, {}])
def test_unknown_columns_are_listed_with_what_would_map_them(tmp_path: Path, columns: dict):
    path = write(tmp_path / "pairs.jsonl", [columns])
    with pytest.raises(DataError) as caught:
        load(path, on_bad_row=lambda _: None)
    text = str(caught.value)
    assert str(path) in text
    assert all(name in text for name in columns)
    assert "columns: {prompt: quest}" in text or "quest" not in columns


def test_a_column_map_names_what_the_data_calls_otherwise(tmp_path: Path):
    rows = [{"q": "2+2?", "a": "4", "field": "sums", "meta": {"level": 1}, "junk": "x" * 50}]
    path = write(tmp_path / "rows.jsonl", rows)
    columns = {
        "prompt": "q",
        "solution": "a",
        "label": "field",
        "level": "meta.level",
        "junk": None,
    }
    params = local.LocalParams(files=[str(path)], heldout=[], columns=columns, limit=None)
    (found,) = local.load(params, raise_bad_row)
    assert found.pop(ORIGIN) == (str(path), 1)
    assert found == {
        "prompt": [turn("user", "2+2?")],
        "solution": "4",
        "label": "sums",
        "field": "sums",
        "level": 1,
        "meta": {"level": 1},
    }


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.parquet"])
def test_missing_empty_and_damaged_files_are_errors_even_when_rows_may_be_skipped(
    tmp_path: Path, name: str
):
    def fails(words: str) -> None:
        with pytest.raises(DataError, match=words) as caught:
            load(path, on_bad_row=lambda _: None)
        assert str(path) in str(caught.value)

    path = tmp_path / name
    fails("no such file")
    path.write_bytes(b"")
    fails("damaged" if name.endswith(".parquet") else "has no rows")
    if name != "pairs.jsonl":
        rows = [{"prompt": str(n), "chosen": "a", "rejected": "b"} for n in range(500)]
        whole = write(path, rows).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        fails("damaged or cut short")
        path.write_bytes(whole[:30] + b"\0" * 40 + whole[70:])
        fails("damaged or cut short")


@pytest.mark.skipif(not REAL.exists(), reason="needs the shared data")
def test_reads_a_real_hh_file_without_leaving_out_a_row():
    pairs = load(REAL)
    assert len(pairs) == 2312
    assert len({prompt_id(pair["prompt"]) for pair in pairs}) == 2310
    roles = {tuple(m["role"] for m in pair["prompt"][-2:]) for pair in pairs}
    assert roles == {("user",), ("assistant", "user")}


@pytest.mark.parametrize(
    "first", [{"prompt": None, "chosen": "a", "rejected": "b"}, {"chosen": None}]
)
def test_a_bad_first_row_does_not_decide_the_form(tmp_path: Path, first: dict):
    good = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(3)]
    path = write(tmp_path / "pairs.jsonl", [first, *good])
    bad: list[DataError] = []
    assert len(load(path, on_bad_row=bad.append)) == 3
    assert len(bad) == 1


def test_rows_of_a_test_set_are_marked_and_come_first(tmp_path: Path):
    names = {"train": ["a", "b", "c"], "test": ["d", "e"]}
    for name, texts in names.items():
        lines = [json.dumps({"prompt": text, "heldout": "no"}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    train, test = ([str(tmp_path / f"{name}.jsonl")] for name in names)
    params = local.LocalParams(files=train, heldout=test, columns={}, limit=2)
    found = list(local.load(params, raise_bad_row))
    assert [row["prompt"][0]["content"] for row in found] == ["d", "e", "a", "b"]
    assert [row.get("heldout") for row in found] == [True, True, None, None]
    assert {row["heldout_"] for row in found} == {"no"}  # a column of the data of that name
    assert example_id(found[0]) == example_id(found[0] | {"heldout": None})
