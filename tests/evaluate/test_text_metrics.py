from __future__ import annotations

import pytest

from isodense.evaluate.text_metrics import distinct, ngrams, repetition, stock_phrases, words


def test_words_ignore_case_and_split_punctuation():
    assert words("Don’t shout, PLEASE!") == ["don’t", "shout", ",", "please", "!"]
    assert words("") == []


def test_a_text_without_repeats_is_all_distinct():
    assert distinct([["a", "b", "c"]], 1) == 1
    assert distinct([["a", "b", "c"]], 2) == 1
    assert repetition([list("abcdefgh")]) == 0


def test_copies_of_a_text_lower_distinct_but_are_no_repetition():
    texts = [list("abcdef")] * 5
    assert distinct(texts, 1) == pytest.approx(1 / 5)
    assert repetition(texts) == 0


def test_a_loop_is_nearly_all_repetition():
    assert repetition([["a", "b"] * 100]) == pytest.approx(1 - 2 / 197)


@pytest.mark.parametrize("measure", [lambda t: distinct(t, 2), repetition])
def test_short_and_empty_texts_measure_zero(measure):
    assert measure([["a"], []]) == 0
    assert measure([]) == 0


def test_ngrams_are_all_windows():
    assert ngrams("abcd", 3) == [("a", "b", "c"), ("b", "c", "d")]
    assert ngrams("ab", 3) == []


@pytest.mark.parametrize(
    "text",
    [
        "It is not just fast but cheap.",
        "Not only is it fast, but it is cheap!",
        "This isn't merely a tool, but a friend.",
        "This isn’t just\na tool but a friend.",
    ],
)
def test_not_just_but_is_found(text: str):
    assert stock_phrases([text])["not_just_but"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "It is not just fast. But it is cheap.",
        "It is not just fast, it is a butter knife.",
        "I can not but agree; it is just.",
        "The knot just held, but barely.",
        "It is just not fast but cheap.",
    ],
)
def test_not_just_but_is_a_phrase_of_one_sentence(text: str):
    assert stock_phrases([text])["not_just_but"] == 0


def test_stock_phrases_are_shares_of_texts_not_of_phrases():
    found = stock_phrases(["a — b — c —", "hyphen-ated – dashed -- twice", "", "x—y"])
    assert found == {"em_dash": 0.5, "not_just_but": 0.0}
