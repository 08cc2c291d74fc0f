from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from isodense.models.inference.generation import Completion, complete, log_probs
from isodense.models.inference.policy import load_policy, load_tokenizer, prompt_tokens
from tests import tiny

PROMPTS = [tiny.user(" ".join(tiny.WORDS[:size])) for size in (1, 9, 4, 12, 2)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tiny.policy(tmp_path_factory.mktemp("models") / "policy")
    return load_policy(folder), load_tokenizer(folder)


def answers(
    policy, temperature: float = 1.0, budget: int = 10_000, seed: int = 0, prompts=PROMPTS, count=3
):
    return complete(*policy, prompts, count, 12, temperature, budget, seed)


def answer(policy, **settings):
    return [made for (made,) in answers(policy, **{"temperature": 0.0, "count": 1} | settings)]


@pytest.fixture
def brief(policy):
    """Give a policy for which every eighth token ends a turn, so that lengths differ."""
    model, tokenizer = policy
    model.generation_config.eos_token_id = list(range(0, len(tokenizer), 8))
    yield policy
    model.generation_config.eos_token_id = tokenizer.eos_token_id


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
    one = answers(policy)
    assert torch.equal(before, torch.get_rng_state())
    assert one == answers(policy)
    assert one != answers(policy, seed=1)


def test_each_prompt_gets_its_own_completions(policy):
    made = answers(policy, count=4, budget=200)
    assert [len(group) for group in made] == [4] * len(PROMPTS)
    assert all(len({row.ids for row in group}) > 1 for group in made)
    cold = answers(policy, temperature=1e-4, count=2)  # where draws are the likeliest tokens
    assert [group[0] for group in cold] == answer(policy)
    assert [group[1] for group in cold] == answer(policy)


def test_an_early_end_does_not_shift_the_draws_of_later_batches(policy, brief):
    model, tokenizer = policy
    short = answers(brief, budget=1, count=1)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    for (cut,), (whole,) in zip(short, answers(policy, budget=1, count=1), strict=True):
        assert whole.ids[: cut.tokens] == cut.ids
    assert len({cut.tokens for (cut,) in short}) > 2


def test_an_end_token_ends_a_completion_and_counts(policy):
    model, tokenizer = policy
    model.generation_config.eos_token_id = list(range(len(tokenizer)))
    try:
        made = answer(policy)
    finally:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    assert {row.tokens for row in made} == {1}
    assert not any(row.truncated for row in made)


def one_by_one(policy, prompt, made, temperature):
    """Add up the log-probabilities of a completion's tokens, one forward pass per token."""
    model, tokenizer = policy
    (ids,) = prompt_tokens(tokenizer, [prompt])
    total = 0.0
    for token in made.ids:
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, -1].double() / temperature
        total += float(logits.softmax(dim=0)[token].log())
        ids.append(token)
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probs_are_those_of_the_tokens_one_by_one(brief, temperature):
    made = answers(brief)
    assert {row.truncated for group in made for row in group} == {True, False}
    found = log_probs(*brief, PROMPTS, made, temperature, 10_000)
    expected = [
        [one_by_one(brief, prompt, row, temperature) for row in group]
        for prompt, group in zip(PROMPTS, made, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(log_probs(*brief, PROMPTS, made, temperature, 1), found, rtol=1e-5)


def test_probabilities_of_all_one_token_completions_sum_to_one(policy):
    _, tokenizer = policy
    every = [Completion("", (token,), True) for token in range(len(tokenizer))]
    found = log_probs(*policy, PROMPTS[:2], [every, every], 1.0, 10_000)
    assert np.exp(found).sum(axis=1) == pytest.approx([1.0, 1.0], abs=1e-5)
