"""Data sets of the Hub: a split's files, by the card or by their names."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isodense.download.snapshot import Snapshot
from isodense.download.sources import hub as source
from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import raise_bad_row
from isodense.pipeline.tables import ORIGIN
from tests.hub import Fault, Hub

REPO, REVISION = "owner/maths", "1" * 40
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "2+2?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"split": "train", "index": 0},
}


def serve(hub: Hub, folder: Path, files: dict[str, list[dict] | str]) -> None:
    for name, rows in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, str):
            path.write_text(rows)
        elif path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    hub.add(REPO, folder, revision=REVISION)


def asked(*questions: str) -> list[dict]:
    return [{"question": question, "answer": "4"} for question in questions]


def load(**changes: object) -> list[dict]:
    section = {
        "repo": REPO,
        "revision": REVISION,
        "config": None,
        "split": "train",
        "files": None,
        "columns": {},
        "limit": None,
    }
    return list(source.load(source.HubParams(**(section | changes)), raise_bad_row))


def texts(**changes: object) -> list[str]:
    return [row["prompt"][-1]["content"] for row in load(**changes)]


def test_verl_rows_come_out_with_all_their_columns(hub: Hub, tmp_path: Path):
    serve(hub, tmp_path, {"data/train-00000-of-00001.parquet": [VERL], "README.md": "# maths"})
    (row,) = load(columns={"ground_truth": "reward_model.ground_truth"})
    assert row.pop(ORIGIN) == (f"{REPO}/data/train-00000-of-00001.parquet", 1)
    assert row == VERL | {"ground_truth": "4"}


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl"),
        ("data/train.jsonl", "data/test.jsonl"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("train/a.jsonl", "test/a.jsonl"),
        ("gsm_train_v2.jsonl", "gsm_test_v2.jsonl"),
    ],
)
def test_splits_are_found_by_the_names_of_files(hub: Hub, tmp_path: Path, names):
    serve(hub, tmp_path, dict(zip(names, (asked("a", "b"), asked("c")), strict=True)))
    assert texts() == ["a", "b"]
    assert texts(split="test") == ["c"]
    assert texts(limit=1) == ["a"]
    with pytest.raises(DataError, match=r"has no split 'dev' \(there is train, test\)"):
        load(split="dev")


def test_shards_come_in_order_and_are_fetched_when_they_are_read(hub: Hub, tmp_path: Path):
    names = [f"data/train-{number:05d}-of-00003.parquet" for number in range(3)]
    serve(hub, tmp_path, {name: asked(name[11:16]) for name in names})
    assert texts(limit=2) == ["00000", "00001"]
    assert not [path for method, path in hub.requests if method == "GET" and names[2] in path]
    assert texts() == ["00000", "00001", "00002"]


CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - {split: train, path: main/tr*.jsonl}
  - {split: test, path: [main/te.jsonl]}
- config_name: socratic
  data_dir: soc
  data_files: [a.jsonl]
---
"""


def test_the_card_says_which_files_a_configuration_has(hub: Hub, tmp_path: Path):
    files = {"main/tr1.jsonl": asked("a"), "main/te.jsonl": asked("b"), "soc/a.jsonl": asked("c")}
    serve(hub, tmp_path, files | {"README.md": CARD})
    assert texts(config="main") == ["a"]
    assert texts(config="main", split="test") == ["b"]
    assert texts(config="socratic") == ["c"]
    assert texts(files=["main/*.jsonl"]) == ["b", "a"]
    with pytest.raises(DataError, match=r"has several configurations\n.*one of main, socratic"):
        load()
    with pytest.raises(DataError, match=r"no configuration 'plain'\n.*one of main, socratic"):
        load(config="plain")
    with pytest.raises(DataError, match="has no file absent"):
        load(files=["absent/*.jsonl"])


def test_a_set_that_needs_code_is_refused_and_the_code_not_fetched(hub: Hub, tmp_path: Path):
    serve(hub, tmp_path, {"maths.py": "raise SystemExit", "README.md": "# maths"})
    with pytest.raises(DataError, match=r"made by a script, maths\.py, which is never run"):
        load()
    assert not [path for _, path in hub.requests if path.endswith("maths.py")]


def test_faults_name_the_file_of_the_repository(hub: Hub, tmp_path: Path):
    serve(hub, tmp_path, {"train.jsonl": [*asked("a"), {"question": 5}], "odd.jsonl": [{"q": "x"}]})
    with pytest.raises(DataError) as caught:
        load()
    assert f"{REPO}/train.jsonl:2: " in str(caught.value)
    with pytest.raises(DataError, match=r"download:\n  hub:\n    columns: \{prompt: q\}"):
        load(files=["odd.jsonl"])
    hub.faults[REPO] = Fault(status=404)
    with pytest.raises(DataError, match=REPO):
        Snapshot(REPO, "2" * 40)
