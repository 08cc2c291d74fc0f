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


def test_a_branch_that_cannot_be_looked_up_is_not_what_it_was(hub: Hub, tmp_path: Path):
    serve(hub, tmp_path, {"train.jsonl": asked("a"), "README.md": "# maths"})
    known = Snapshot(REPO, "main").commit
    hub.faults[REPO] = Fault(status=503)
    with pytest.raises(DataError, match="revision 'main' could not be fetched"):
        Snapshot(REPO, "main")
    assert "train.jsonl" in Snapshot(REPO, known).files


def test_a_configuration_that_is_a_folder_keeps_its_splits_apart(hub: Hub, tmp_path: Path):
    card = "---\nconfigs:\n- {config_name: a, data_dir: d}\n- {config_name: b, data_dir: e}\n---\n"
    files = {"d/train-0.jsonl": asked("a"), "d/test-0.jsonl": asked("t"), "e/x.jsonl": asked("b")}
    serve(hub, tmp_path, files | {"README.md": card})
    assert texts(config="a") == ["a"]
    assert texts(config="a", split="test") == ["t"]
    assert texts(config="b") == ["b"]


def test_notes_beside_the_data_are_no_rows(hub: Hub, tmp_path: Path):
    notes = {"LICENSE.txt": "one\ntwo\n", "requirements.txt": "numpy\n"}
    serve(hub, tmp_path, notes | {"train.jsonl": asked("a")})
    assert texts() == ["a"]


def test_a_name_with_brackets_is_that_file(hub: Hub, tmp_path: Path):
    serve(hub, tmp_path, {"train[1].jsonl": asked("a"), "train1.jsonl": asked("b")})
    assert texts(files=["train[1].jsonl"]) == ["a"]
    assert texts(files=["train1.jsonl"]) == ["b"]


@pytest.mark.parametrize(
    "configs",
    [
        "configs: [\t{",
        "configs:\n- {config_name: a, data_dir: ../..}",
        "configs:\n- {config_name: a, data_files: /etc/x.jsonl}",
        "configs:\n- {config_name: a, data_files: ../x.jsonl}",
        "configs:\n" + 2 * "- {config_name: a, data_files: x.jsonl}\n",
        "configs: !!python/object/apply:os.getcwd []",
    ],
)
def test_a_card_that_cannot_be_read_is_named(hub: Hub, tmp_path: Path, configs: str):
    serve(hub, tmp_path, {"x.jsonl": asked("a"), "README.md": f"---\n{configs}\n---\n"})
    with pytest.raises(DataError, match=f"{REPO}: has a card whose configurations cannot be read"):
        load(config="a")
    assert texts(files=["x.jsonl"]) == ["a"]


def test_the_default_configuration_is_the_one_that_the_card_marks(hub: Hub, tmp_path: Path):
    card = (
        "---\nconfigs:\n- {config_name: a, data_files: a.jsonl}\n"
        "- {config_name: b, data_files: b.jsonl, default: true}\n---\n"
    )
    serve(hub, tmp_path, {"a.jsonl": asked("a"), "b.jsonl": asked("b"), "README.md": card})
    assert texts() == ["b"]


def test_faults_inside_a_file_name_the_repository_not_the_cache(hub: Hub, tmp_path: Path):
    serve(hub, tmp_path, {"train.jsonl": '{"question": "a", "answer": "4"}\n{broken\n'})
    with pytest.raises(DataError) as caught:
        load()
    assert str(caught.value).startswith(f"{REPO}/train.jsonl:2: not JSON")


@pytest.mark.parametrize("repo", ["https://host/datasets/a/b", "a/b/c", "a b", "../a"])
def test_what_is_no_name_of_a_data_set_is_said_with_the_params(repo: str):
    section = {name: None for name in source.HubParams.model_fields}
    params = source.HubParams(**section | {"repo": repo, "split": "train", "columns": {}})
    assert params.missing() == [
        f"hub.repo: {repo!r} is no name of a data set: write owner/name, no address"
    ]
