from __future__ import annotations

import numpy as np
import pytest

from isodense.evaluate.diversity import TEXTS, self_bleu, vendi
from tests.tiny import texts

SENTENCES = ["the cat sat on the mat", "red green and blue", "boil an egg in water", "a b c d"]


@pytest.mark.parametrize("text", ["the cat sat on the mat", "two words", "one"])
def test_identical_texts_have_the_whole_of_each_other(text: str):
    assert self_bleu([text] * 5) == pytest.approx(100)


def test_texts_without_a_common_word_have_nothing_of_each_other():
    assert self_bleu(["a b c d", "e f g h", "i j k l"]) == 0


def test_a_copy_raises_self_bleu_and_its_own_text_is_no_reference():
    assert self_bleu(SENTENCES) < 20
    assert self_bleu([*SENTENCES[:3], SENTENCES[0]]) > 50


def test_self_bleu_does_not_depend_on_order_and_ignores_nothing_up_to_its_limit():
    many = texts(TEXTS)
    assert self_bleu(many) == pytest.approx(self_bleu(many[::-1]))
    assert self_bleu(many) != self_bleu([*many[:-1], "another end"])


def test_self_bleu_of_many_texts_is_of_an_even_sample():
    alike, other = ["the same words again"] * 600, [f"w{n} x{n} y{n} z{n}" for n in range(600)]
    assert self_bleu(alike + other) == pytest.approx(50, abs=2)


def test_empty_texts_are_no_error():
    assert self_bleu(["", ""]) == 0
    assert self_bleu(["", "a b", "a b"]) == pytest.approx(200 / 3)


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_identical_vectors_count_as_one(size: int):
    row = np.random.default_rng(0).normal(size=(1, 16))
    same = np.repeat(row / np.linalg.norm(row), size, axis=0).astype(np.float32)
    assert vendi(same) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_orthogonal_vectors_count_each(size: int):
    assert vendi(np.eye(16, dtype=np.float32)[:size]) == pytest.approx(size)


def test_copies_of_all_change_nothing_and_a_turn_neither():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 4))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    turn = np.linalg.qr(rng.normal(size=(4, 4))).Q
    score = vendi(rows)
    assert 1 < score < 4
    assert vendi(np.repeat(rows, 5, axis=0)) == pytest.approx(score)
    assert vendi(rows @ turn) == pytest.approx(score)


def test_two_vectors_have_the_entropy_of_their_cosine():
    cosine = 0.6  # the eigenvalues of the halved matrix of cosines are 0.8 and 0.2
    rows = np.array([[1, 0], [cosine, 0.8]])
    assert vendi(rows) == pytest.approx(0.8**-0.8 * 0.2**-0.2)
