from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from isodense.evaluate.ground_truth import ground_truth_log_probs, ground_truths
from isodense.models.inference.policy import load_policy, load_tokenizer
from isodense.pipeline.errors import DataError
from tests import tiny


def test_the_probability_is_of_the_text_and_then_the_end(tmp_path: Path):
    folder = tiny.policy(tmp_path / "policy")
    asked = ["Name a colour.", "And another colour, if there is one?", "Egg?", "Mouse?"]
    said = ["red", " minutes of water\n", None, ""]
    rows = [
        {"prompt": tiny.user(text), "answer": answer}
        for text, answer in zip(asked, said, strict=True)
    ]
    found = ground_truth_log_probs(folder, folder, rows, "answer", "cpu", 64)
    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    assert np.isnan(found[2:]).all()  # a blank is what CSV has for none
    for row, text in ((0, "red"), (1, "minutes of water")):
        prompt = tokenizer.apply_chat_template(
            rows[row]["prompt"], add_generation_prompt=True, tokenize=False
        )
        before = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor(tokenizer(prompt + text + tokenizer.eos_token)["input_ids"])
        with torch.inference_mode():
            logits = model(ids[None]).logits[0].double()
        following = torch.log_softmax(logits, -1)[range(len(ids) - 1), ids[1:]]
        assert found[row] == pytest.approx(float(following[before - 1 :].sum()), abs=1e-4)
        assert found[row] < 0


def test_whole_numbers_are_texts_and_other_values_are_refused():
    assert ground_truths([{"a": 12}, {"a": " x "}, {"a": None}, {}], "a") == ["12", "x", None, None]
    for value in (["x"], {"x": 1}, True, 1.5):
        with pytest.raises(DataError, match=r"not a text or a whole number(.|\n)*set it to null"):
            ground_truths([{"a": value}], "a")


def test_a_column_that_is_not_there_is_named_beside_those_that_are():
    with pytest.raises(DataError, match=r"names 'anwser'.* they have answer, id"):
        ground_truths([{"id": "0"}, {"answer": "x"}], "anwser")
    with pytest.raises(DataError, match="no held-out prompt has"):
        ground_truths([{"answer": ""}, {"answer": " "}], "answer")
