from __future__ import annotations

from pathlib import Path

import pytest
import torch

from isodense.generation import complete
from isodense.policy import load_policy, load_tokenizer, prompt_tokens
from tests import tiny

PROMPTS = [tiny.user(" ".join(tiny.WORDS[:size])) for size in (1, 9, 4, 12, 2)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tiny.policy(tmp_path_factory.mktemp("models") / "policy")
    return load_policy(folder), load_tokenizer(folder)


def answer(policy, temperature: float = 0.0, budget: int = 10_000, seed: int = 0, prompts=PROMPTS):
    return complete(*policy, prompts, 12, temperature, budget, seed)


def test_greedy_completions_are_the_likeliest_tokens_one_by_one(policy):
    model, tokenizer = policy
    for prompt, made in zip(PROMPTS, answer(policy), strict=True):
        (ids,) = prompt_tokens(tokenizer, [prompt])
        start = len(ids)
        while len(ids) < start + 12 and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert made.text == tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert made.tokens == len(ids) - start
        assert made.truncated == (ids[-1] != tokenizer.eos_token_id)


def test_batches_do_not_change_greedy_completions(policy):
    assert answer(policy) == answer(policy, budget=1)
    assert answer(policy) == answer(policy, prompts=PROMPTS[::-1])[::-1]


def test_draws_repeat_with_the_seed_and_leave_the_process_alone(policy):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = answer(policy, temperature=1.0)
    assert torch.equal(before, torch.get_rng_state())
    assert one == answer(policy, temperature=1.0)
    assert one != answer(policy, temperature=1.0, seed=1)


def test_an_end_token_ends_a_completion_and_counts(policy):
    model, tokenizer = policy
    model.generation_config.eos_token_id = list(range(len(tokenizer)))
    try:
        made = answer(policy)
    finally:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    assert {row.tokens for row in made} == {1}
    assert not any(row.truncated for row in made)
