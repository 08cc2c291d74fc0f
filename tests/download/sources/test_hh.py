from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from isodense.download.examples import UnusableRow
from isodense.download.sources import hh
from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import raise_bad_row
from tests.hub import Fault, Hub

REVISION, OTHER = "1" * 40, "2" * 40
TRAIN = "harmless-base/train.jsonl.gz"


def dialogue(*turns: str) -> str:
    return "".join(
        f"\n\n{side}: {turn}"
        for side, turn in zip(["Human", "Assistant"] * len(turns), turns, strict=False)
    )


def row(question: str, chosen: str = "yes", rejected: str = "no") -> dict[str, str]:
    return {"chosen": dialogue(question, chosen), "rejected": dialogue(question, rejected)}


def repository(folder: Path, rows: dict[str, list[dict[str, str]]]) -> Path:
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    for name, lines in rows.items():
        (folder / name).parent.mkdir(exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name).write_bytes(gzip.compress(text.encode(), mtime=0))
    return folder


def params(**changes: object) -> hh.HhParams:
    values = {"revision": REVISION, "subsets": ["harmless-base"], "split": "train", "limit": None}
    return hh.HhParams(**(values | changes))


def load(on_bad_row=raise_bad_row, **changes: object) -> list[dict]:
    return list(hh.load(params(**changes), on_bad_row))


def questions(pairs: list[dict]) -> list[str]:
    return [pair["prompt"][0]["content"] for pair in pairs]


@pytest.fixture
def served(hub: Hub, tmp_path: Path) -> Hub:
    rows = {
        TRAIN: [row("a"), row("b"), row("c")],
        "harmless-base/test.jsonl.gz": [row("held out")],
        "helpful-base/train.jsonl.gz": [row("d"), row("e")],
    }
    hub.add(hh.REPO, repository(tmp_path / "repo", rows), revision=REVISION)
    return hub


def test_reads_subsets_in_order_up_to_the_limit_of_one_split(served: Hub):
    both = ["helpful-base", "harmless-base"]
    assert questions(load(subsets=both)) == ["d", "e", "a", "b", "c"]
    assert questions(load(subsets=both, limit=3)) == ["d", "e", "a"]
    assert questions(load(split="test")) == ["held out"]


def test_fetches_only_the_files_that_it_needs(served: Hub):
    assert len(load(subsets=["helpful-base", "harmless-base"], limit=2)) == 2
    fetched = [path for method, path in served.requests if method == "GET" and ".jsonl" in path]
    assert [path.rsplit("/", 2)[1:] for path in fetched] == [["helpful-base", "train.jsonl.gz"]]


def test_a_revision_is_that_revision_also_when_main_moves_on_and_the_hub_is_gone(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    served.add(hh.REPO, repository(tmp_path / "new", {TRAIN: [row("new")]}), revision=OTHER)
    assert questions(load()) == ["a", "b", "c"]
    assert questions(load(revision="main")) == ["new"]

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert questions(load()) == ["a", "b", "c"]
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        load(revision="3" * 40)


def test_a_dropped_connection_is_resumed(served: Hub):
    served.faults[TRAIN] = Fault(drop_at=20, times=1)
    assert questions(load()) == ["a", "b", "c"]
    assert served.bodies(TRAIN) == 2


def test_a_connection_that_always_drops_is_an_error_after_a_few_attempts(served: Hub):
    served.faults[TRAIN] = Fault(drop_at=20)
    with pytest.raises(DataError, match="could not be fetched") as caught:
        load()
    for hint in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "`local` source", TRAIN):
        assert hint in str(caught.value)
    assert 2 <= served.bodies(TRAIN) <= 10


def test_a_truncated_body_is_an_error_and_is_not_kept(served: Hub):
    served.faults[TRAIN] = Fault(truncate_to=40, times=1)
    with pytest.raises(DataError, match="could not be fetched"):
        load()
    assert questions(load()) == ["a", "b", "c"]


def test_a_file_that_is_truncated_on_the_hub_is_an_error(served: Hub, tmp_path: Path):
    path = tmp_path / "repo" / TRAIN
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="gzip stream is damaged or cut short"):
        load()


@pytest.mark.parametrize(
    ("target", "status", "words"),
    [
        (hh.REPO, 403, ["gated", "HF_TOKEN"]),
        (hh.REPO, 401, ["gated", "HF_TOKEN"]),
        (TRAIN, 404, ["has no file", TRAIN]),
        (hh.REPO, 503, ["could not be fetched", "HF_ENDPOINT"]),
    ],
)
def test_refusals_are_clear(served: Hub, target: str, status: int, words: list[str]):
    served.faults[target] = Fault(status=status)
    with pytest.raises(DataError) as caught:
        load()
    assert all(word in str(caught.value) for word in words), caught.value


def test_missing_repository_revision_and_split_have_errors_of_their_own(hub: Hub, tmp_path: Path):
    with pytest.raises(DataError, match="no such repository"):
        load()
    rows = {"harmless-base/test.jsonl.gz": [row("t")]}
    hub.add(hh.REPO, repository(tmp_path / "repo", rows), revision=REVISION)
    with pytest.raises(DataError, match="has no revision '2222"):
        load(revision=OTHER)
    with pytest.raises(DataError, match=r"harmless-base holds test.jsonl.gz"):
        load()


def test_no_network_at_all_is_an_error(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="check the connection"):
        load()


def test_the_prompt_is_what_the_dialogues_share():
    pair = hh.pair_of(dialogue("q", "same", "more?", "good"), dialogue("q", "same", "more?", "bad"))
    assert pair == {
        "prompt": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "same"},
            {"role": "user", "content": "more?"},
        ],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }


def test_dialogues_that_part_early_are_cut_at_the_first_answer_that_differs():
    pair = hh.pair_of(dialogue("q", "one", "x", "y"), dialogue("q", "two"))
    assert [message["content"] for message in pair["prompt"]] == ["q"]
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("one", "two")


def test_turns_of_one_side_in_a_row_are_joined():
    chosen = dialogue("q", "one") + "\n\nAssistant: two"
    assert hh.parse(chosen)[-1] == {"role": "assistant", "content": "one\n\ntwo"}


def test_an_empty_answer_is_kept():
    pair = hh.pair_of(dialogue("q", ""), dialogue("q", "no"))
    assert pair["chosen"] == [{"role": "assistant", "content": ""}]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"chosen": "q\n\nAssistant: a", "rejected": dialogue("q", "b")}, "does not start with"),
        ({"chosen": "\n\nAssistant: a", "rejected": dialogue("q", "b")}, "starts with the assist"),
        ({"chosen": dialogue("q", "a", "r"), "rejected": dialogue("q", "b")}, "ends with the huma"),
        ({"chosen": None, "rejected": dialogue("q", "b")}, "chosen: is NoneType"),
        ({"rejected": dialogue("q", "b")}, "chosen: is NoneType"),
    ],
)
def test_malformed_rows_name_file_and_line(hub: Hub, tmp_path: Path, bad: dict, words: str):
    folder = repository(tmp_path / "repo", {TRAIN: [row("a"), bad, row("c")]})
    hub.add(hh.REPO, folder, revision=REVISION)
    with pytest.raises(DataError, match=words) as caught:
        load()
    assert f"{hh.REPO}/{TRAIN}:2:" in str(caught.value)
    assert not isinstance(caught.value, UnusableRow)
    errors: list[DataError] = []
    assert questions(load(on_bad_row=errors.append)) == ["a", "c"]
    assert len(errors) == 1


def test_rows_without_a_preference_are_unusable_rather_than_malformed(hub: Hub, tmp_path: Path):
    same = {"chosen": dialogue("q", "a"), "rejected": dialogue("q", "a ")}
    parted = {"chosen": dialogue("q", "a"), "rejected": dialogue("r", "b")}
    folder = repository(tmp_path / "repo", {TRAIN: [same, parted, row("c")]})
    hub.add(hh.REPO, folder, revision=REVISION)
    errors: list[DataError] = []
    assert questions(load(on_bad_row=errors.append)) == ["c"]
    assert [type(error) for error in errors] == [UnusableRow, UnusableRow]
