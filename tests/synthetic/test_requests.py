from collections import Counter

import numpy as np
import pytest

from isodense.pipeline.errors import DataError
from isodense.synthetic import requests as skills
from isodense.synthetic.families import skills as all_skills

DEFAULTS = {
    "requests": 2400,
    "exponent": 1.0,
    "duplicates": 0.1,
    "near_duplicates": 0.15,
    "heldout": 40,
}
RIGHT = {  # worked out by hand
    "What letter does dog start with?": "d",
    "How many vowels does queen have?": "3",
    "Which word is longest: dragon, kitchen, chair?": "kitchen",
    "From dragon, kitchen, chair pick the one a dictionary has first.": "chair",
    "What is 11 minus 4?": "7",
    "Work out 17 mod 5.": "2",
    "Is 42 even or odd?": "even",
    "What is twice 37?": "74",
    "Name the day after Sunday.": "Monday",
    "Which month precedes January?": "December",
    "Name the season of February.": "winter",
    "Name the season of March.": "spring",
    "Name the season of November.": "autumn",
    "What is a young goose called?": "gosling",
    "What is the plural of mouse?": "mice",
    "What is the opposite of true?": "false",
    "What is the capital of Norway?": "Oslo",
}


def make(seed=0, **changes):
    params = skills.SkillsParams(**(DEFAULTS | changes))
    return list(skills.load(params, np.random.default_rng(seed)))


def text(row):
    return row["prompt"][0]["content"]


def test_answers_are_right():
    asked = {
        template.format(*slots): answer
        for skill in all_skills()
        for template in skill.templates
        for slots, answer in skill.cases
    }
    assert {question: asked[question] for question in RIGHT} == RIGHT


def test_forty_skills_in_eight_families_ask_nothing_twice():
    names = [skill.name for skill in all_skills()]
    assert len(set(names)) == 40
    assert set(Counter(name.split("/")[0] for name in names).values()) == {5}
    questions = Counter(
        template.format(*slots)
        for skill in all_skills()
        for template in skill.templates
        for slots, _ in skill.cases
    )
    assert questions.most_common(1)[0][1] == 1


def test_counts_follow_the_power_law_and_heldout_is_even_and_apart():
    rows = make()
    heldout = [row for row in rows if row.get("heldout")]
    train = rows[: -len(heldout)]
    assert len(train) == 2400
    assert not any(row.get("heldout") for row in train)
    sizes = sorted(Counter(row["label"] for row in train).values(), reverse=True)
    assert sizes[:4] == [561, 280, 187, 140]
    assert set(Counter(row["label"] for row in heldout).values()) == {40}
    assert len({text(row) for row in train}) == 2160  # a tenth are repeats
    assert not {text(row) for row in train} & {text(row) for row in heldout}


def test_a_seed_draws_the_ranks_and_the_same_rows():
    ranks = [
        Counter(row["label"] for row in make(seed, heldout=0)).most_common(1) for seed in (1, 2)
    ]
    assert ranks[0] != ranks[1]
    assert make(1) == make(1)


def test_fewer_heldout_requests_are_the_first_of_more():
    few, many = ([row for row in make(3, heldout=size) if row.get("heldout")] for size in (5, 40))
    by_skill = [row for number, row in enumerate(many) if number % 40 < 5]
    assert few == by_skill


def test_a_skill_without_more_requests_is_an_error():
    (days,) = (skill for skill in all_skills() if skill.name == "calendar/day_after")
    drawn = skills.Requests(days, np.random.default_rng(0))
    core = ("What day comes after Monday?", "Tuesday")
    for _ in range(7 * 6):  # openings and endings, none included
        drawn.draw(core)
    with pytest.raises(DataError, match=r"(?s)calendar/day_after has no more .* than 42.*lower"):
        drawn.draw(core)
