from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from isodense.models.inference.backbone import load_backbone
from isodense.models.inference.policy import (
    answer_tokens,
    load_policy,
    load_tokenizer,
    prompt_tokens,
    token_batches,
)
from isodense.pipeline.errors import ModelError
from tests import tiny
from tests.damage import reseal
from tests.thinking import CALLED, TEMPLATE, TOOLS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.policy(tmp_path_factory.mktemp("models") / "policy")


def test_a_prompt_ends_where_the_answer_begins_and_an_answer_with_its_turn(folder: Path):
    tokenizer = load_tokenizer(folder)
    (prompt,) = prompt_tokens(tokenizer, [tiny.user("red egg")])
    assert tokenizer.decode(prompt).endswith("red egg<|im_end|>\n<|im_start|>assistant\n")
    whole = tokenizer.apply_chat_template(
        [*tiny.user("red egg"), {"role": "assistant", "content": "blue"}], return_dict=True
    )["input_ids"]
    (answer,) = answer_tokens(tokenizer, ["blue"])
    assert prompt + answer == whole[: len(prompt + answer)]
    assert answer[-1] == tokenizer.eos_token_id
    assert answer_tokens(tokenizer, [""]) == [[tokenizer.eos_token_id]]


def test_a_policy_is_loaded_whole_in_float32_ready_to_generate(folder: Path):
    model = load_policy(folder)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert not model.training
    assert len(model.model.layers) == 3


def test_a_trunk_has_only_the_blocks_asked_for(folder: Path):
    model, block = load_backbone(folder, 2, "reward.layer")
    assert len(model.layers) == 2
    assert model.layers[1] is block
    with pytest.raises(ModelError, match=r"set reward\.layer to 1 … 3"):
        load_backbone(folder, 4, "reward.layer")


def test_a_tokenizer_without_chat_template_is_refused(tmp_path: Path):
    folder = tiny.policy(tmp_path / "policy")
    (folder / "chat_template.jinja").unlink()
    reseal(folder)
    with pytest.raises(ModelError, match="no chat template"):
        load_tokenizer(folder)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="dvc repro models"):
        load_tokenizer(tmp_path)


def test_a_prompt_that_the_template_refuses_is_an_error(folder: Path):
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = "{{ raise_exception('only users') }}"
    with pytest.raises(ModelError, match="only users"):
        prompt_tokens(tokenizer, [tiny.user("red")])
    tokenizer.chat_template = TEMPLATE
    developer = [{"role": "developer", "content": "Be brief."}, *tiny.user("red")]
    with pytest.raises(ModelError, match=r"refuses prompt 1 \(developer, user\): Unexp") as raised:
        prompt_tokens(tokenizer, [tiny.user("red"), developer])
    assert raised.value.hint == "it begins 'Be brief.'"


def test_tools_are_announced_to_the_prompts_that_have_them(folder: Path):
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = TEMPLATE
    prompts = [tiny.user("red"), tiny.user("red"), CALLED]
    found = prompt_tokens(tokenizer, prompts, [None, TOOLS, []])
    without = prompt_tokens(tokenizer, prompts)
    assert (found[0], found[2]) == (without[0], without[2])
    assert '"name": "clock"' in tokenizer.decode(found[1])
    assert '<tool_call>clock{"zone": "Lima"}' in tokenizer.decode(found[2])
    assert found[1][-len(without[1]) + 1 :] == without[1][1:]


def test_batches_hold_every_row_once_within_the_budget():
    lengths = [5, 1, 9, 3, 3, 7, 20, 2]
    batches = list(token_batches(lengths, budget=12))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 12
    assert [6] in batches
    assert list(token_batches([], budget=12)) == []
