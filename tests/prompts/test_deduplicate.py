"""Prompts are unique by canonical conversation, and the split stays put."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodense.pipeline.artifact import write_manifest
from isodense.pipeline.errors import ArtifactError, DataError
from isodense.prompts.conversations import canonical, encoder_text, is_heldout, prompt_id
from isodense.prompts.deduplicate import unique_prompts
from isodense.prompts.reader import load_columns, load_prompts
from tests.tables import publish_prompts, tamper
from tests.tiny import user


def pair(prompt, source="s", **more):
    answer = {"role": "assistant", "content": "a"}
    return {"prompt": prompt, "chosen": [answer], "rejected": [answer], "source": source, **more}


def test_white_space_and_normal_form_do_not_make_a_prompt():
    composed, decomposed = (
        unicodedata.normalize(form, "Où  est\n la gare?") for form in ("NFC", "NFD")
    )
    assert composed != decomposed
    assert prompt_id(user(composed)) == prompt_id(user(f"  {decomposed}\t"))


def test_role_case_order_and_punctuation_do():
    dialogue = [*user("a"), {"role": "assistant", "content": "b"}, *user("c")]
    ids = {
        prompt_id(user("Hi")),
        prompt_id(user("hi")),
        prompt_id(user("hi!")),
        prompt_id(dialogue),
    }
    ids |= {prompt_id([{"role": "system", "content": "hi"}]), prompt_id(dialogue[::-1])}
    assert len(ids) == 6
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in ids)


def test_an_id_is_for_ever():
    # computed once by hand: sha256 of [{"content":"What is 2+2?","role":"user"}]
    import hashlib

    line = '[{"content":"What is 2+2?","role":"user"}]'
    assert prompt_id(user("What is  2+2? ")) == hashlib.sha256(line.encode()).hexdigest()[:32]


@given(st.text())
def test_canonical_is_idempotent(text):
    once = canonical(user(text))
    assert canonical(once) == once


def test_the_encoder_reads_the_words_not_the_roles():
    assert encoder_text(user(" one\n two ")) == "one two"
    dialogue = [*user("a"), {"role": "assistant", "content": "b"}, *user("c")]
    assert encoder_text(dialogue) == "user: a\nassistant: b\nuser: c"
    system = {"role": "system", "content": "the same in every prompt"}
    assert encoder_text([system, *dialogue]) == encoder_text(dialogue)
    assert encoder_text([system, *user("one")]) == "one"


def test_order_counts_sources_and_first_label_are_kept():
    found = unique_prompts(
        [
            pair(user("one"), label="x"),
            pair(user("two")),
            pair(user("one "), source="t", label="y"),
            pair(user("   ")),
            pair(user("late")),
            pair(user("late"), label="z"),
        ],
        heldout=0.0,
    )
    assert found.texts == ["one", "two", "late"]
    assert [row["count"] for row in found.rows] == [2, 1, 2]
    assert found.rows[2]["label"] == "z"
    assert found.rows[0]["sources"] == {"s": 1, "t": 1}
    assert found.rows[0]["label"] == "x"
    assert found.labels is None


def test_the_held_out_split_stays_put_when_data_is_appended():
    pairs = [pair(user(f"prompt {i}")) for i in range(2000)]
    few, many = unique_prompts(pairs[:1500], 0.1), unique_prompts(pairs, 0.1)
    assert few.rows == many.rows[:1500]
    share = len(many.split("heldout")) / len(many)
    assert 0.07 < share < 0.13
    wider = unique_prompts(pairs, 0.2)
    assert set(many.split("heldout").ids) < set(wider.split("heldout").ids)
    assert not is_heldout("0" * 32, 0.0)


def test_statistics_count_what_is_there(tmp_path):
    pairs = [pair(user("one")), pair(user("one")), pair(user(" ")), pair(user("three"))]
    report = publish_prompts(pairs, tmp_path / "p", 0.0)
    assert (report["unique"], report["examples"], report["largest_count"]) == (2, 3, 2)
    assert report["repeated_share"] == pytest.approx(1 / 3, abs=1e-6)
    assert report["chars_max"] == 5
    assert report["no_text"] == 1


# --- columns --------------------------------------------------------------------------------------


def asked(text, source="s", **columns):
    return {"id": "0" * 32, "prompt": user(text), "source": source, **columns}


def test_columns_of_the_first_example_are_kept_and_answers_are_not(tmp_path):
    rows = [
        asked("2+2?", answer="4", level=1, extra={"index": 7, "tags": ["a", "b"]}),
        {**pair(user("hello")), "score": 0.5},
        asked("2+2? ", answer="4", level=2),
    ]
    publish_prompts(rows, tmp_path / "p", 0.0)
    prompts = load_prompts(tmp_path / "p")
    first = {"answer": "4", "level": 1, "extra": {"index": 7, "tags": ["a", "b"]}}
    assert prompts.columns == ["answer", "extra", "level", "score"]
    assert {name: prompts.rows[0][name] for name in first} == first
    assert prompts.rows[1]["score"] == 0.5
    assert not {"chosen", "rejected", "source", "answer"} & prompts.rows[1].keys()
    assert prompts.rows[0]["count"] == 2


def test_prompts_whose_answers_conflict_are_counted_shown_and_left_out_on_request(tmp_path, caplog):
    rows = [
        asked("2+2?", answer="4", level=1),
        asked("3+3?", answer="6"),
        asked("2+2?", answer="5", level=1),
        asked("3+3?", answer="6", level=3),
        asked("2+2?", answer="7"),
    ]
    report = publish_prompts(rows, tmp_path / "p", 0.0)
    assert report["conflicting"] == {"answer": 1, "level": 2}
    assert report["dropped_conflicting"] == 0
    assert "1 prompts have examples that disagree in answer, first '2+2?': '4' and '5'" in (
        caplog.text
    )
    assert load_prompts(tmp_path / "p").rows[0]["answer"] == "4"
    report = publish_prompts(rows, tmp_path / "q", 0.0, drop_conflicting=["answer"])
    assert (report["unique"], report["dropped_conflicting"]) == (1, 1)
    assert load_prompts(tmp_path / "q").texts == ["3+3?"]
    with pytest.raises(DataError, match=r"names 'answers', and the data has answer, level"):
        publish_prompts(rows, tmp_path / "r", 0.0, drop_conflicting=["answers"])


def test_identical_rows_are_occurrences(tmp_path):
    rows = [asked("2+2?", answer="4")] * 3 + [asked("3+3?", answer="6")]
    assert publish_prompts(rows, tmp_path / "p", 0.0)["conflicting"] == {}
    assert load_columns(tmp_path / "p").counts.tolist() == [3, 1]


def test_a_label_for_each_prompt_is_no_kind_and_is_said(tmp_path, caplog):
    rows = [asked(f"{number}+{number}?", label=str(2 * number)) for number in range(30)]
    publish_prompts(rows, tmp_path / "p", 0.0)
    assert "label has 30 values for 30 prompts" in caplog.text
    caplog.clear()
    publish_prompts([{**row, "label": "sums"} for row in rows], tmp_path / "q", 0.0)
    assert "label" not in caplog.text


def test_a_published_set_reads_back_and_is_checked(tmp_path):
    publish_prompts([pair(user(f"p{i}")) for i in range(50)], tmp_path / "p", 0.2)
    prompts = load_prompts(tmp_path / "p")
    assert prompts.texts[:2] == ["p0", "p1"]
    assert len(prompts.split("train")) + len(prompts.split("heldout")) == 50
    assert [prompts.ids[i] for i in prompts.positions("heldout")] == prompts.split("heldout").ids
    tamper(tmp_path / "p", lambda rows: rows[::-1])
    with pytest.raises(ArtifactError, match="does not hold the prompts of its manifest"):
        load_prompts(tmp_path / "p")


def test_no_prompts_and_nothing_to_train_on_say_what_to_run(tmp_path):
    with pytest.raises(DataError, match="no valid prompts found") as caught:
        publish_prompts([pair(user(" "))], tmp_path / "p", 0.1)
    assert "dvc repro download" in str(caught.value)
    held = next(pair(user(f"p{i}")) for i in range(99) if is_heldout(prompt_id(user(f"p{i}")), 0.5))
    with pytest.raises(DataError, match="all 1 prompts are held out"):
        publish_prompts([held], tmp_path / "p", 0.5)
    assert not (tmp_path / "p").exists()


def test_prompts_of_another_stage_are_refused(tmp_path):
    (tmp_path / "p").mkdir()
    write_manifest(tmp_path / "p", "download")
    with pytest.raises(ArtifactError, match="holds 'download'"):
        load_prompts(tmp_path / "p")


def columns_agree(columns, prompts):
    assert columns.ids == prompts.ids
    assert columns.labels == prompts.labels
    assert columns.ids_sha256 == prompts.ids_sha256
    assert columns.counts.tolist() == [row["count"] for row in prompts.rows]
    assert len(columns) == len(prompts)
    for name in ("train", "heldout"):
        assert columns.positions(name).tolist() == prompts.positions(name)


@pytest.mark.parametrize("unlabelled", [0, 1, 7])
def test_columns_are_those_of_the_rows(tmp_path, unlabelled):
    pairs = [pair(user(f"p{i % 50}"), label=f"label {i % 3}") for i in range(70)]
    for one in pairs[:unlabelled] + pairs[50 : 50 + unlabelled]:
        del one["label"]
    publish_prompts(pairs, tmp_path / "p", 0.3)
    prompts, columns = load_prompts(tmp_path / "p"), load_columns(tmp_path / "p")
    columns_agree(columns, prompts)
    assert columns.counts.dtype == np.int64
    assert columns.heldout.dtype == bool
    for name in ("train", "heldout"):
        part = columns.split(name)
        assert len(part) > 5
        columns_agree(part, prompts.split(name))
    assert len({id(label) for label in columns.row_labels if label}) == 3


def test_a_split_may_have_labels_that_the_whole_has_not(tmp_path):
    held = [is_heldout(prompt_id(user(f"p{i}")), 0.5) for i in range(40)]
    pairs = [pair(user(f"p{i}"), **({} if held[i] else {"label": "x"})) for i in range(40)]
    publish_prompts(pairs, tmp_path / "p", 0.5)
    columns = load_columns(tmp_path / "p")
    assert columns.labels is None
    assert set(columns.split("train").labels) == {"x"}


def test_columns_of_damaged_or_other_prompts_are_refused_alike(tmp_path):
    publish_prompts([pair(user(f"p{i}")) for i in range(9)], tmp_path / "p", 0.2)
    tamper(tmp_path / "p", lambda rows: rows[::-1])
    (tmp_path / "other").mkdir()
    write_manifest(tmp_path / "other", "download")
    for folder in ("p", "other", "missing"):
        faults = []
        for load in (load_prompts, load_columns):
            with pytest.raises(ArtifactError) as caught:
                load(tmp_path / folder)
            faults.append(str(caught.value))
        assert faults[0] == faults[1]
