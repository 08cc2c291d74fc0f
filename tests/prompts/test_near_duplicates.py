"""Near-duplicates are found exactly, among earlier texts only, and templates are none."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from isodense.prompts import near_duplicates
from isodense.prompts.near_duplicates import WordPairs, words
from isodense.prompts.split import split


def found(texts, threshold=0.5):
    pairs = WordPairs()
    for text in texts:
        pairs.add(text)
    return {row: earlier.tolist() for row, earlier in pairs.near_duplicates(threshold)}


ALIKE = [
    ("How do I sort a list in Python?", "how do i sort a list in python"),
    ("Can you convert 2 cups into millilitres", "Hello! Can you convert 2 cups into millilitres"),
    ("define benevolent", "Define benevolent, please."),
    ("I wrote that it's late and I don't care", "I wrote that its late and I dont care"),
    ("２＋２", "2+2"),  # full width
    ("今日の天気はどうですか", "今日の天気はどうですか?"),
    ("for (i = 0; i < n; i++) { total += x[i]; }", "for (j = 0; i < n; i++) total += x[i];"),
    ("!!!", "!!!"),
    ("strasse", "STRASSE"),
    ("don‘t and won`t", "don't and won't"),
    ("soft\u00adware", "software"),
    ("ما هي عاصمة فرنسا؟", "مَا هِيَ عَاصِمَةُ فَرَنْسَا؟"),  # without vowels and with
    ("מהי בירת צרפת?", "מַהִי בִּירַת צָרְפַת?"),
    ("x² is 9", "x^2 is 9"),
    ("half: ½", "half: 1/2"),
    (
        "Tom has 3 apples and buys 5 more at the market. How many apples does Tom have now?",
        "Tom has 8 apples and buys 9 more at the market. How many apples does Tom have now?",
    ),
]
OTHER = [
    ("2+2?", "2+3?"),
    ("2+2?", "2-2?"),
    ("8÷2", "8×2"),
    ("x ≤ 5", "x ≥ 5"),
    ("What is √16?", "What is 16?"),
    ("What is 3²?", "What is 32?"),
    ("What is 2⁻¹?", "What is 2-1?"),
    ("What is 3½?", "What is 31/2?"),
    ("C#?", "C?"),
    ("कि", "के"),
    ("What is 2+2?", "What is 2+3?"),
    ("prompt 17", "prompt 18"),
    ("What is the capital of France?", "What is the capital of Spain?"),
    ("今日の天気はどうですか", "明日の予定を教えてください"),
    ("???", "!!!"),
    ("🙂", "🙃"),
    ("\ud800", "\ud801"),
    ("a", "b"),
]


@pytest.mark.parametrize(("one", "two"), ALIKE)
def test_variants_are_near_duplicates(one, two):
    assert found([one, two]) == {1: [0]}
    assert found([two, one]) == {1: [0]}


@pytest.mark.parametrize(("one", "two"), OTHER)
def test_short_texts_that_differ_are_not(one, two):
    assert found([one, two]) == {}


def test_words_leave_out_case_punctuation_and_form():
    assert words("What's  ＡＢＣ, 'é'?") == ["whats", "abc", "é"]
    assert words("x**2 != y") == ["x", "*", "*", "2", "=", "y"]
    assert words("今日はAPI") == ["今", "日", "は", "api"]
    assert words("… ") == ["… "]


def naive(texts, threshold, common, few):
    """Return near-duplicates by the definition, a text and an earlier one at a time."""
    owners, sets, result = Counter(), [], {}
    for row, text in enumerate(texts):
        found = words(text)
        pairs = {f"{a} {b}" for a, b in pairwise(found)} or {found[0]}
        mine = {pair for pair in pairs if owners[pair] < common}
        spent = {pair for pair in owners if owners[pair] + (pair in pairs) > common}
        counting = [one - spent for one in sets]
        for other, theirs in enumerate(counting):
            shared = len(mine & theirs)
            alike = shared and shared / len(mine | theirs) >= threshold
            left, whole = min(len(mine), len(theirs)), min(len(pairs), len(sets[other]))
            alike = alike and (shared in (whole, *range(few, 99)) or shared == left >= 3)
            if alike:
                result.setdefault(row, set()).add(other)
        if same := [other for other in range(row) if words(texts[other]) == found]:
            result.setdefault(row, set()).update((same[0], same[-1]))
        owners.update(pairs)
        sets.append(pairs)
    return {row: sorted(others) for row, others in result.items()}


@pytest.mark.parametrize("common", [3, 10, 1000])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 1.0])
def test_the_search_is_that_of_the_definition(monkeypatch, common, threshold):
    rng = np.random.default_rng(common)
    bases = [rng.integers(0, 30, rng.integers(1, 14)) for _ in range(25)]
    texts = []
    for _ in range(300):
        made = bases[rng.integers(len(bases))].copy()
        changed = rng.random(len(made)) < 0.1
        made[changed] = rng.integers(0, 30, changed.sum())
        texts.append(" ".join(map(str, made)))
    monkeypatch.setattr(near_duplicates, "COMMON", common)
    wanted = naive(texts, threshold, common, near_duplicates.FEW)
    assert len(wanted) > 50
    for block in (7, 1000):
        monkeypatch.setattr(near_duplicates, "BLOCK", block)
        assert found(texts, threshold) == wanted


def test_a_form_of_words_that_many_share_tells_nothing():
    numbers = np.random.default_rng(0).integers(1000, 9999, (400, 2))
    form = "Using the numbers {} and {} make an equation that uses each of them exactly once."
    texts = [form.format(*row) for row in numbers]
    near = found(texts)
    assert set(near) == set(range(1, 100))  # until the form has been seen often
    again = f"{texts[300]} Think step by step."
    assert found([*texts, again])[400] == [300]


TEMPLATES = {
    "sums": lambda r: "Compute {} + {} * {} - {}.".format(*r.integers(2, 90, 4)),
    "capitals": lambda r: "What is the w{} of land{}?".format(*r.integers(0, 90, 2)),
    "problems": lambda r: (
        "n{} has {} apples, buys {} more and gives {} to each of {} friends. How many are left?"
    ).format(*r.integers(0, 60, 5)),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_thousands_in_one_form_of_words_are_split_by_id(name):
    rng = np.random.default_rng(0)
    texts = list(dict.fromkeys(TEMPLATES[name](rng) for _ in range(3000)))
    pairs = WordPairs()
    for text in texts:
        pairs.add(text)
    ids = [hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts]
    made = split(ids, pairs, 0.1, 0.5)
    assert made.heldout.mean() == pytest.approx(0.1, abs=0.03)
    assert made.leaked.sum() < 0.01 * len(texts)


def test_an_alphabet_without_spaces_tells_texts_apart_and_variants_together():
    """Thai letters: variants differ in a number, other texts in all words."""
    rng = np.random.default_rng(0)
    letters = [chr(code) for code in range(0x0E01, 0x0E2F)]
    vocabulary = ["".join(rng.choice(letters, 5)) for _ in range(2000)]
    texts = ["".join(rng.choice(vocabulary, 12)) for _ in range(3000)]
    near = found([*texts, *(f"{text[:30]}42{text[30:]}" for text in texts[:100])])
    assert [near.get(3000 + row) for row in range(100)] == [[row] for row in range(100)]
    assert len(near) == 100


def test_nothing_and_one_text_have_none():
    assert found([]) == found(["one"]) == {}


def test_another_process_finds_the_same():
    code = (
        "from isodense.prompts.near_duplicates import WordPairs\n"
        "w = WordPairs()\n"
        "for i in range(60): w.add(f'a question of {i % 7} and of {i % 3} with {i} more words')\n"
        "print({row: some.tolist() for row, some in w.near_duplicates(0.5)})"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "CI": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
    assert len(seen.pop()) > 100
