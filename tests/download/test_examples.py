from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import pytest

from isodense.download import examples
from isodense.pipeline.errors import ArtifactError
from tests.tables import tamper, write_examples

PAIR = {
    "prompt": [{"role": "user", "content": "What is “π”?"}],
    "chosen": [{"role": "assistant", "content": "3.14"}],
    "rejected": [{"role": "assistant", "content": "4"}],
}


def changed(**parts: object) -> dict:
    return {**copy.deepcopy(PAIR), **parts}


def says(role: str, content: object = "x") -> list[dict]:
    return [{"role": role, "content": content}]


def test_the_id_is_a_hash_of_the_canonical_json():
    text = (
        '{"chosen":[{"content":"3.14","role":"assistant"}],'
        '"prompt":[{"content":"What is “π”?","role":"user"}],'
        '"rejected":[{"content":"4","role":"assistant"}]}'
    )
    assert examples.example_id(PAIR) == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_the_id_depends_on_the_text_and_nothing_else():
    swapped = {"rejected": PAIR["rejected"], "chosen": PAIR["chosen"], "prompt": PAIR["prompt"]}
    other_source = changed(source="hh", label="maths", id="0")
    assert (
        examples.example_id(swapped)
        == examples.example_id(other_source)
        == examples.example_id(PAIR)
    )
    variants = [
        changed(chosen=PAIR["rejected"], rejected=PAIR["chosen"]),
        changed(chosen=says("assistant", "3.14 ")),
        changed(prompt=says("system", "What is “π”?")),
    ]
    assert len({examples.example_id(pair) for pair in [PAIR, *variants]}) == 4


def test_a_sound_pair_has_no_fault():
    assert examples.fault(PAIR) is None
    assert examples.fault(changed(rejected=says("assistant", ""))) is None
    assert (
        examples.fault(
            changed(prompt=[*says("system"), *says("user"), *says("assistant"), *says("user")])
        )
        is None
    )


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ({}, "prompt: not a list"),
        (changed(prompt="q"), "prompt: not a list"),
        (changed(prompt=["q"]), "prompt: message 1 is not a mapping"),
        (changed(prompt=says("user", None)), "the content of message 1 is NoneType"),
        (changed(prompt=says("human")), "role 'human'"),
        (changed(prompt=says("assistant")), "ends with the assistant"),
        (changed(prompt=says("user", " \n")), "prompt: has no user text"),
        (changed(chosen=says("user")), "chosen: not exactly one assistant message"),
        (changed(rejected=[*says("assistant"), *says("user")]), "rejected: not exactly one"),
        (changed(rejected=PAIR["chosen"]), "are the same"),
    ],
)
def test_faults_are_named(pair: dict, words: str):
    assert words in examples.fault(pair)


def test_dialogues_are_split_at_the_first_answer_that_differs():
    start = [*says("user", "1"), *says("assistant", "2"), *says("user", "3")]
    long = [*start, *says("assistant", "a"), *says("user", "more"), *says("assistant", "b")]
    pair = examples.from_dialogues(long, [*start, *says("assistant", "c")])
    assert pair["prompt"] == start
    assert (pair["chosen"], pair["rejected"]) == (says("assistant", "a"), says("assistant", "c"))


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (says("user", "a"), says("user", "a")),
        ([*says("user", "a"), *says("assistant", "b")], says("user", "a")),
        (
            [*says("user", "a"), *says("assistant", "x")],
            [*says("user", "b"), *says("assistant", "x")],
        ),
        (says("assistant", "a"), says("assistant", "b")),
    ],
)
def test_dialogues_that_hold_no_preference_say_why(chosen: list, rejected: list):
    assert isinstance(examples.from_dialogues(chosen, rejected), str)


def test_pairs_are_the_rows_with_both_answers_each_once(tmp_path: Path):
    pair = changed(id="a" * 32, source="s", label="l", score=3)
    prompt = {"id": "b" * 32, "prompt": pair["prompt"], "source": "s", "answer": "4"}
    write_examples(tmp_path / "both", [prompt, pair, pair])
    assert examples.load_pairs(tmp_path / "both") == [pair]
    assert examples.kept_columns(tmp_path / "both") == ["answer", "score"]
    assert list(examples.iter_examples(tmp_path / "both")) == [prompt, pair, pair]
    write_examples(tmp_path / "prompts", [prompt])
    assert examples.has_pairs(tmp_path / "both")
    assert not examples.has_pairs(tmp_path / "prompts")
    assert examples.load_pairs(tmp_path / "prompts") == []


def test_refuses_a_folder_that_is_missing_or_changed(tmp_path: Path):
    with pytest.raises(ArtifactError, match="dvc repro download"):
        examples.load_pairs(tmp_path / "nothing")
    rows = [changed(id="a" * 32, source="s"), changed(id="b" * 32, source="s")]
    write_examples(tmp_path / "swapped", rows)
    tamper(tmp_path / "swapped", lambda rows: rows[::-1])
    with pytest.raises(ArtifactError, match="does not hold the examples of its manifest"):
        examples.load_pairs(tmp_path / "swapped")
