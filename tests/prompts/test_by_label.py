"""Held-out prompts by label, and those that the data holds out itself."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from isodense.cli.merge import merge
from isodense.pipeline.errors import DataError, IsodenseError
from isodense.pipeline.params import build
from isodense.prompts.conversations import prompt_id
from isodense.prompts.deduplicate import unique_prompts
from isodense.prompts.params import PromptsParams
from isodense.prompts.reader import PromptSet, load_prompts
from tests.cli.test_merge import embeddings
from tests.prompts.test_deduplicate import pair
from tests.prompts.test_split import problems, prompts_of, variants
from tests.tables import publish_prompts
from tests.tiny import user

SIZES = {"common": 200, "middling": 40, "rare": 9, "pair": 2, "single": 1}


def lopsided(sizes=SIZES):
    """Return examples of different prompts, as many of each label."""
    labels = [label for label, count in sizes.items() for _ in range(count)]
    texts = problems(len(labels))
    order = np.random.default_rng(0).permutation(len(labels))
    return [{**pair(user(texts[row])), "label": labels[row]} for row in order]


def held(found: PromptSet) -> dict[str, int]:
    rows = found.split("heldout").rows
    return dict(Counter(row.get("label") for row in rows))


@pytest.mark.parametrize(
    ("heldout", "expected"),
    [
        (0.1, {"common": 20, "middling": 4, "rare": 1, "pair": 1}),
        (0.5, {"common": 100, "middling": 20, "rare": 5, "pair": 1}),
        (15, {"common": 15, "middling": 15, "rare": 4, "pair": 1}),
        (1, {"common": 1, "middling": 1, "rare": 1, "pair": 1}),
        (0.0, {}),
    ],
)
def test_every_label_gives_its_share_or_as_many(heldout, expected):
    assert held(unique_prompts(lopsided(), heldout, 0.5, "label")) == expected


def test_those_with_the_smallest_ids_are_held_out_and_more_only_adds():
    few, many = (unique_prompts(lopsided(), number, None, "label") for number in (3, 8))
    assert set(few.split("heldout").ids) < set(many.split("heldout").ids)
    common = sorted(row["id"] for row in few.rows if row["label"] == "common")
    assert [one for one in common if one in few.split("heldout").ids] == common[:3]


@pytest.mark.parametrize("heldout", [0.2, 12])
def test_near_duplicates_stay_together(heldout):
    made = variants(120, 4)
    rows = [{**pair(user(text)), "label": "even" if number % 2 == 0 else "odd"}
            for number, text in made]  # fmt: skip
    found = unique_prompts(rows, heldout, 0.5, "label")
    by_problem: dict[int, set[str]] = {}
    for (number, _), row in zip(made, found.rows, strict=True):
        by_problem.setdefault(number, set()).add(row["split"])
    assert all(len(splits) == 1 for splits in by_problem.values())
    assert not any(row.get("leaked") for row in found.rows)
    wanted = heldout if heldout >= 1 else round(heldout * len(rows) / 2)
    assert list(held(found).values()) == pytest.approx([wanted, wanted], abs=3)


def test_a_cluster_larger_than_wanted_gives_way_and_is_taken_where_there_is_nothing_else():
    one, two, three = (
        [f"{edit} {text}" for edit in ("Hello!", "Please solve this.", "Well?")]
        for text in problems(3)
    )
    labels = [("mixed", text) for text in [*one, *problems(12)[5:]]]
    labels += [("all", text) for text in [*two, *three]]
    rows = [{**pair(user(text)), "label": label} for label, text in labels]
    found = unique_prompts(rows, 1, 0.5, "label")
    splits = {row["text"]: row["split"] for row in found.rows}
    assert held(found) == {"mixed": 1, "all": 3}
    assert {splits[text] for text in one} == {"train"}


def test_prompts_without_a_label_are_a_kind_of_their_own():
    rows = lopsided({"a": 20, "b": 20})
    for row in rows[:10]:
        del row["label"]
    assert held(unique_prompts(rows, 2, None, "label")) == {"a": 2, "b": 2, None: 2}


def test_a_split_by_label_takes_labels_that_are_kinds(tmp_path):
    plain = [pair(user(text)) for text in problems(30)]
    named = [{**row, "label": f"answer {number}"} for number, row in enumerate(plain)]
    for rows in (plain, named):
        with pytest.raises(DataError, match=r"heldout_by(.|\n)*no labels that name kinds"):
            publish_prompts(rows, tmp_path / "p", 0.1, heldout_by="label")


@pytest.mark.parametrize(("heldout", "by"), [(40, "id"), (0.95, "id"), (1.5, "label")])
def test_a_number_of_prompts_is_a_whole_one_and_by_label(heldout, by):
    values = {"heldout": heldout, "heldout_by": by, "near_duplicate": None, "drop_conflicting": []}
    with pytest.raises(IsodenseError, match=f"heldout = {heldout} with heldout_by = {by}"):
        build(PromptsParams, values, "prompts")
    assert build(PromptsParams, values | {"heldout": 0.9}, "prompts")


def test_labels_without_a_held_out_prompt_are_counted(tmp_path):
    report = publish_prompts(lopsided(), tmp_path / "p", 4, heldout_by="label")
    assert report["labels_without_heldout"] == 1  # single
    assert "labels_without_heldout" not in publish_prompts(lopsided(), tmp_path / "q", 0.1)


def marked(texts, held):
    """Return examples of which those with `held` texts are held out by the data."""
    return [pair(user(text)) | ({"heldout": True} if text in held else {}) for text in texts]


@pytest.mark.parametrize("turned", [False, True])
def test_what_the_data_holds_out_moves_no_near_duplicate_and_is_leaked(tmp_path, turned):
    made = variants(60, 3)
    texts = [text for _, text in made]
    plain = {row["text"]: row["split"] for row in prompts_of(texts, 0.3).rows}
    splits = [{plain[text] for number, text in made if number == one} for one in range(60)]
    trained, held_out = (splits.index({split}) for split in ("train", "heldout"))
    own = [problems(60)[number].replace("12", "11") for number in (trained, held_out)]
    rows = marked([*texts, *own] if turned else [*own, *texts], own)
    report = publish_prompts(rows, tmp_path / "p", 0.3, near_duplicate=0.5)
    found = {row["text"]: row for row in load_prompts(tmp_path / "p").rows}
    assert {text: found[text]["split"] for text in texts} == plain
    assert [text for text, row in found.items() if row.get("heldout")] == own
    assert [found[text]["split"] for text in own] == ["heldout", "heldout"]
    assert [found[text].get("leaked", False) for text in own] == [True, False]
    assert (report["heldout_marked"], report["heldout_also_in_training"]) == (2, 0)


def test_a_prompt_that_is_held_out_and_trained_on_is_held_out_and_said(tmp_path, caplog):
    texts = problems(20)
    rows = [*marked(texts, texts[:3]), pair(user(texts[1])), pair(user(texts[4]))]
    report = publish_prompts(rows, tmp_path / "p", 0.0, near_duplicate=0.5)
    found = load_prompts(tmp_path / "p")
    assert sorted(found.split("heldout").texts) == sorted(texts[:3])
    assert (report["heldout_marked"], report["heldout_also_in_training"]) == (3, 1)
    assert "1 prompts that the data holds out are asked in its training rows" in caplog.text
    assert found.columns == []  # heldout is none of the data's own
    assert report["conflicting"] == {}


def test_labels_give_beside_what_the_data_holds_out():
    rows = lopsided({"a": 30, "b": 30})
    for row in rows[:10]:
        row["heldout"] = True
    found = unique_prompts(rows, 4, 0.5, "label")
    extra = [row for row in found.split("heldout").rows if not row.get("heldout")]
    assert Counter(row["label"] for row in extra) == {"a": 4, "b": 4}
    assert sum(bool(row.get("heldout")) for row in found.rows) == 10


def test_merged_parts_keep_what_was_held_out_and_fill_up_each_label(tmp_path):
    texts = problems(60)
    for name, part in (("a", texts[:40]), ("b", texts[30:])):
        rows = [
            row | {"label": f"kind {prompt_id(row['prompt'])[-1] in '01234567'}"}
            for row in marked(part, [texts[50]])
        ]
        params = {"near_duplicate": 0.5, "heldout_by": "label"}
        publish_prompts(rows, tmp_path / name / "prompts", 5, **params)
        embeddings(tmp_path / name / "embeddings", load_prompts(tmp_path / name / "prompts").ids)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    first, merged = (load_prompts(tmp_path / name / "prompts") for name in "ac")
    assert [row["split"] for row in merged.rows[:40]] == [row["split"] for row in first.rows]
    (row,) = (row for row in merged.rows if row["text"] == texts[50])
    assert (row["split"], row["heldout"]) == ("heldout", True)
    assert list(held(first).values()) == [5, 5]
    assert sorted(held(merged).values()) == [5, 6]
