"""Near-duplicates of held-out prompts are not trained on, and appending moves no prompt."""

from __future__ import annotations

import random

import numpy as np
import pytest

from isodense.cli.merge import merge
from isodense.pipeline.errors import DataError
from isodense.prompts.conversations import is_heldout, prompt_id
from isodense.prompts.deduplicate import unique_prompts
from isodense.prompts.reader import load_columns, load_prompts
from tests.cli.test_merge import embeddings
from tests.prompts.test_deduplicate import pair
from tests.tables import publish_prompts
from tests.tiny import user

SUBJECTS = ["Ana", "Bilal", "Chen", "Dora", "Emeka", "Farid", "Grete", "Hugo", "Ines", "Jonas"]
THINGS = ["apples", "stamps", "marbles", "pencils", "shells", "coins", "cards", "kites", "books"]
PLACES = ["at the market", "in the old harbour", "from a neighbour", "on the way to school"]
EDITS = [
    "{}",
    "Hello! {}",
    "{} Thank you in advance.",
    "Please solve this. {}",
    "{} Think step by step.",
    "{} Give only the number.",
]


def problems(count, seed=0):
    """Return word problems no two of which are alike: each has ten words of its own."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        one, two = rng.sample(SUBJECTS, 2)
        thing, place = rng.choice(THINGS), rng.choice(PLACES)
        own = " ".join(f"w{number}x{word}" for word in range(10))
        found.append(f"{one} buys 12 {thing} {place}, {own}, and gives 5 to {two}. How many stay?")
    return found


def variants(count, each, seed=0):
    """Return pairs of (problem, text), each problem in several variants, shuffled."""
    rng = random.Random(seed)
    made = []
    for number, text in enumerate(problems(count, seed)):
        for edit in range(each):
            changed = text.replace("12", str(rng.randint(13, 99)), edit % 2)
            changed = changed.lower() if edit % 3 == 2 else changed
            made.append((number, EDITS[edit % len(EDITS)].format(changed)))
    made = list(dict.fromkeys(made))
    rng.shuffle(made)
    return made


def prompts_of(texts, heldout=0.1, near_duplicate=0.5):
    return unique_prompts([pair(user(text)) for text in texts], heldout, near_duplicate)


def splits(texts, **params):
    return [row["split"] for row in prompts_of(texts, **params).rows]


def test_no_variant_of_a_held_out_prompt_is_trained_on():
    made = variants(300, 5)
    by_problem = {}
    for (number, _), split in zip(made, splits([text for _, text in made]), strict=True):
        by_problem.setdefault(number, set()).add(split)
    assert all(len(found) == 1 for found in by_problem.values())
    share = np.mean([found == {"heldout"} for found in by_problem.values()])
    assert 0.05 < share < 0.16
    by_id = splits([text for _, text in made], near_duplicate=None)
    assert len({(number, split) for (number, _), split in zip(made, by_id, strict=True)}) > 400


@pytest.mark.parametrize("rows", [1, 40, 333, 800])
def test_appending_moves_no_prompt(rows):
    texts = [text for _, text in variants(200, 6, seed=1)]
    assert splits(texts[:rows], heldout=0.3) == splits(texts, heldout=0.3)[:rows]


def test_a_larger_share_only_adds():
    texts = [text for _, text in variants(150, 4, seed=2)] + bridging(0.2)
    held = [
        {number for number, split in enumerate(splits(texts, heldout=share)) if split == "heldout"}
        for share in (0.0, 0.1, 0.2, 0.5)
    ]
    assert held[0] == set()
    assert held[0] < held[1] < held[2] < held[3]


def bridging(fraction):
    """Return a held-out text, a training text, and one that is a near-duplicate of both."""
    own = "the quick brown fox jumps over a lazy dog near the mill"
    held, train = (
        next(
            text
            for number in range(999)
            if is_heldout(prompt_id(user(text := f"{own} {end} {number}")), fraction) is wanted
        )
        for end, wanted in (
            ("while seven geese watch it", True),
            ("and no cat has run so fast", False),
        )
    )
    return [held, train, own]


@pytest.mark.parametrize("turned", [False, True])
def test_a_bridge_is_held_out_marked_and_counted(tmp_path, turned):
    held, train, bridge = bridging(0.3)
    texts = [train, held, bridge] if turned else [held, train, bridge]
    later = f"{bridge} again"  # has near-duplicates on both sides, too
    report = publish_prompts(
        [pair(user(text)) for text in [*texts, later]], tmp_path / "p", 0.3, near_duplicate=0.5
    )
    rows = load_prompts(tmp_path / "p").rows
    assert {row["text"]: row["split"] for row in rows} == {
        held: "heldout", train: "train", bridge: "heldout", later: "heldout"
    }  # fmt: skip
    assert [row.get("leaked", False) for row in rows] == [False, False, True, True]
    assert load_columns(tmp_path / "p").leaked.tolist() == [False, False, True, True]
    assert report["heldout_leaked"] == 2
    assert report["near_duplicate_clusters"] == 1
    assert report["largest_near_duplicate_cluster"] == 3


def test_a_left_out_prompt_is_not_counted(tmp_path):
    rows = [
        {**pair(user("how do i sort a long list in python")), "answer": 1},
        {**pair(user("please, how do i sort a long list in python")), "answer": 1},
        {**pair(user("please, how do i sort a long list in python")), "answer": 2},
        {**pair(user("hello")), "answer": 1},
    ]
    params = {"near_duplicate": 0.5, "drop_conflicting": ["answer"]}
    report = publish_prompts(rows, tmp_path / "p", 0.01, **params)
    assert (report["unique"], report["near_duplicate_clusters"]) == (2, 0)


def test_one_form_of_words_is_said(tmp_path, caplog):
    form = "Using the numbers {} and {} make an equation that uses each of them exactly once."
    texts = [form.format(number, 7 * number) for number in range(1, 60)]
    texts.sort(key=lambda text: is_heldout(prompt_id(user(text)), 0.3))
    report = publish_prompts(
        [pair(user(text)) for text in texts], tmp_path / "p", 0.3, near_duplicate=0.5
    )
    assert (report["heldout"], report["largest_near_duplicate_cluster"]) == (0, 59)
    assert "59 of 59 prompts are near-duplicates of 'Using the numbers" in caplog.text
    assert "so they are trained on together" in caplog.text
    assert "prompts.near_duplicate" in caplog.text
    with pytest.raises(DataError, match=r"raise prompts\.near_duplicate"):
        publish_prompts(
            [pair(user(text)) for text in texts[::-1]], tmp_path / "q", 0.3, near_duplicate=0.5
        )


def test_nothing_is_sought_where_nothing_is_held_out(tmp_path):
    rows = [pair(user(text)) for _, text in variants(20, 3)]
    report = publish_prompts(rows, tmp_path / "p", 0.0, near_duplicate=0.5)
    assert report["heldout"] == 0
    assert "near_duplicate_clusters" not in report


def test_merged_parts_are_split_as_one_set(tmp_path):
    made = [text for _, text in variants(60, 5, seed=3)]
    parts = [made[:100], made[100:]]
    for name, texts in zip("ab", parts, strict=True):
        rows = [pair(user(text)) for text in texts]
        publish_prompts(rows, tmp_path / name / "prompts", 0.2, near_duplicate=0.5)
        ids = load_prompts(tmp_path / name / "prompts").ids
        embeddings(tmp_path / name / "embeddings", ids)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    merged, whole = load_prompts(tmp_path / "c/prompts"), prompts_of(made, heldout=0.2)
    assert [row["split"] for row in merged.rows] == [row["split"] for row in whole.rows]
    apart = [load_prompts(tmp_path / name / "prompts").rows for name in "ab"]
    assert [row["split"] for rows in apart for row in rows] != [row["split"] for row in whole.rows]
