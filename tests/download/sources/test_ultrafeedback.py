from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isodense.download.examples import UnusableRow
from isodense.download.sources import ultrafeedback
from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import raise_bad_row
from tests.hub import Fault, Hub

REVISION = "1" * 40
FILE = "data/train_prefs-00000-of-00001.parquet"


def row(question: str, chosen: str, rejected: str) -> dict:
    """Return a row with all the columns of the published files."""
    user = {"content": question, "role": "user"}
    return {
        "prompt": question,
        "prompt_id": "x" * 64,
        "chosen": [user, {"content": chosen, "role": "assistant"}],
        "rejected": [user, {"content": rejected, "role": "assistant"}],
        "messages": [user, {"content": chosen, "role": "assistant"}],
        "score_chosen": 8.5,
        "score_rejected": 6.0,
    }


def serve(hub: Hub, folder: Path, rows: list[dict], name: str = FILE) -> None:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    pq.write_table(pa.Table.from_pylist(rows), folder / name)
    hub.add(ultrafeedback.REPO, folder, revision=REVISION)


def load(on_bad_row=raise_bad_row, split: str = "train_prefs", limit: int | None = None):
    params = ultrafeedback.UltrafeedbackParams(revision=REVISION, split=split, limit=limit)
    return list(ultrafeedback.load(params, on_bad_row))


def test_reads_one_split_up_to_the_limit(hub: Hub, tmp_path: Path):
    serve(hub, tmp_path / "repo", [row("t", "a", "b")], "data/test_prefs-00000-of-00001.parquet")
    serve(hub, tmp_path / "repo", [row(str(n), "good", "bad") for n in range(5)])
    assert load(limit=1) == [
        {
            "prompt": [{"role": "user", "content": "0"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        }
    ]
    assert len(load()) == 5
    assert [pair["prompt"][0]["content"] for pair in load(split="test_prefs")] == ["t"]


def test_rows_without_a_preference_or_a_prompt_are_unusable(hub: Hub, tmp_path: Path):
    rows = [row("same", "a", "a"), row(" ", "a", "b"), row("empty answer", "a", "")]
    serve(hub, tmp_path / "repo", rows)
    errors: list[DataError] = []
    assert [pair["prompt"][0]["content"] for pair in load(errors.append)] == ["empty answer"]
    assert [type(error) for error in errors] == [UnusableRow, UnusableRow]


def test_a_changed_schema_is_an_error(hub: Hub, tmp_path: Path):
    serve(hub, tmp_path / "repo", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match=rf"{FILE}:1: chosen: not a list of messages") as caught:
        load()
    assert not isinstance(caught.value, UnusableRow)


def test_a_truncated_parquet_file_is_an_error(hub: Hub, tmp_path: Path):
    serve(hub, tmp_path / "repo", [row("q", "a", "b")])
    hub.faults[FILE] = Fault(truncate_to=100, times=1)
    with pytest.raises(DataError, match="could not be fetched"):
        load()
    path = tmp_path / "repo" / FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged or cut short after row 0"):
        load()
