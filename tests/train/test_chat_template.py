"""A prompt has the same tokens in the filter, the reward, TRL's trainer and the evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from trl import GRPOTrainer

from isodense.models.inference.generation import complete, copies_caches
from isodense.models.inference.policy import load_policy, load_tokenizer, prompt_tokens
from isodense.models.params import PolicyParams
from isodense.models.publish import publish
from isodense.pipeline.errors import ParamsError
from isodense.pipeline.params import load
from isodense.prompts.reader import PromptSet
from isodense.reward.scoring.hidden_states import tokenize
from isodense.train.grpo import make_trainer, save_policy
from isodense.train.params import TrainParams
from isodense.train.plan import plan_run
from isodense.train.prompts import plan_dataset, with_tools
from isodense.train.redraw import Redraw
from isodense.train.settings import make_config
from tests import tiny
from tests.damage import give_template
from tests.rl import SECTIONS
from tests.thinking import CALLED, TEMPLATE, TOOLS

ROWS = [
    {"id": "a", "prompt": tiny.user("red egg")},
    {"id": "b", "prompt": tiny.user("What hour is it?"), "tools": TOOLS},
    {"id": "c", "prompt": CALLED, "tools": TOOLS},
]


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Give a policy that thinks, and the same published with `enable_thinking: false`."""
    folder = tmp_path_factory.mktemp("models")
    thinking = tiny.policy(folder / "thinking")
    give_template(thinking, TEMPLATE)
    source = {"source": "folder", "name": str(thinking), "version": None, "sha256": None}
    off = PolicyParams(**source, path=None, chat_template_kwargs={"enable_thinking": False})  # type: ignore[arg-type]
    publish("policy", off, folder / "brief", folder)
    return thinking, folder / "brief"


def params(**changes: object) -> TrainParams:
    limits = {"max_prompt_tokens": 180, "max_completion_tokens": 4, "max_steps": 1}
    return TrainParams(**(SECTIONS["train"] | limits | changes))  # type: ignore[arg-type]


class InOrder(Redraw):
    """Chooses each prompt in its turn."""

    def __init__(self, rows) -> None:
        self.rows = rows

    def row(self, number: int, history) -> int:
        return number

    def on_log(self, *_: object, **__: object) -> None:
        return


def seen_by_trl(
    policy: Path, rows, folder: Path, redraw: Redraw | None = None, **changes: object
) -> tuple[dict, GRPOTrainer]:
    """Train one step on `rows`; return the tokens of each prompt that the policy was given."""
    section = params(prompts_per_step=len(rows), completions_per_pass=4 * len(rows), **changes)
    config = make_config(section, 0, "cpu", folder / "run")
    asked: list = []

    def score(scored, completions):
        asked.extend(row["prompt"] for row in scored)
        return np.arange(len(completions), dtype=np.float32)

    planned = rows[::-1] if redraw else rows
    trainer = make_trainer(policy, SimpleNamespace(score=score), config, planned, redraw=redraw)
    given: list = []
    generate = trainer.model.generate

    def watched(*args, **inputs):
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            given.append(ids[mask.bool()].tolist())
        return generate(*args, **inputs)

    trainer.model.generate = watched
    trainer.train()
    assert asked == [row["prompt"] for row in rows for _ in range(4)]
    return {row["id"]: given[4 * place] for place, row in enumerate(rows)}, trainer


def test_all_readers_see_the_same_tokens(policies, tmp_path: Path):
    thinking, brief = policies
    tokenizer = load_tokenizer(brief)
    prompts = [row["prompt"] for row in ROWS]
    tools = [row.get("tools") for row in ROWS]
    expected = prompt_tokens(tokenizer, prompts, tools)
    trl, _ = seen_by_trl(brief, ROWS, tmp_path)
    assert [trl[row["id"]] for row in ROWS] == expected
    redrawn, _ = seen_by_trl(brief, ROWS, tmp_path / "redrawn", InOrder(ROWS))
    assert redrawn == trl
    lengths = list(map(len, expected))
    longer = list(map(len, prompt_tokens(load_tokenizer(thinking), prompts, tools)))
    assert len({before - after for before, after in zip(lengths, longer, strict=True)}) == 1
    assert lengths[0] > longer[0]

    assert tokenize(tokenizer, prompts, ["blue"] * 3, 256, tools)[0] == expected  # the reward's
    for row, length in zip(ROWS, lengths, strict=True):  # the filter's
        kept = PromptSet([row, {"id": "short", "prompt": tiny.user("a")}])
        weights = np.array([0.5, 0.5])
        for limit, fits in ((length, True), (length - 1, False)):
            plan = plan_run(kept, weights, brief, params(max_prompt_tokens=limit), 20, 0)
            assert (0 in plan.rows) == fits


def test_the_evaluation_continues_the_same_tokens(policies, monkeypatch):
    _, brief = policies
    model, tokenizer = load_policy(brief), load_tokenizer(brief)
    copies_caches(model, tokenizer.pad_token_id)  # its trial generates, too
    given: list = []
    generate = model.generate

    def watched(**inputs):
        given.extend(
            ids[mask.bool()].tolist()
            for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        )
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", watched)
    prompts, tools = zip(*((row["prompt"], row.get("tools")) for row in ROWS), strict=True)
    complete(model, tokenizer, prompts, 1, 4, 1.0, 1, 0, tools=tools)
    assert sorted(given) == sorted(prompt_tokens(tokenizer, prompts, tools))


def test_tools_travel_with_the_prompt():
    rows = plan_dataset(ROWS)
    assert rows["prompt_id"] == ["a", "b", "c"]
    assert rows[0]["prompt"] == ROWS[0]["prompt"]
    assert rows[2]["prompt"] == with_tools(CALLED, TOOLS)
    assert set(plan_dataset(ROWS[:1]).features["prompt"].feature) == {"role", "content"}


@pytest.mark.parametrize("lora", [None, {"r": 2, "target_modules": "all-linear"}])
def test_the_trained_policy_keeps_template_and_end_tokens(policies, tmp_path: Path, lora):
    policy = shutil.copytree(policies[1], tmp_path / "policy")
    settings = {"eos_token_id": [0, 2], "temperature": 0.7, "do_sample": True, "top_p": 0.9}
    tiny.edit(policy / "generation_config.json", **settings)
    _, trainer = seen_by_trl(policy, ROWS[:2], tmp_path, lora=lora, learning_rate=0.1)
    save_policy(trainer, policy, tmp_path / "trained")
    trained = json.loads((tmp_path / "trained/generation_config.json").read_text())
    assert sorted(trained["eos_token_id"]) == [0, 2]
    assert {name: trained[name] for name in ("temperature", "do_sample", "top_p")} == {
        "temperature": 0.7, "do_sample": True, "top_p": 0.9
    }  # fmt: skip
    template = (tmp_path / "trained/chat_template.jinja").read_text()
    assert template == (policy / "chat_template.jinja").read_text()


def test_any_end_token_ends_a_completion_in_training_and_evaluation(policies, tmp_path: Path):
    """With every token but one as an end: no completion is cut, and all have one token."""
    policy = shutil.copytree(policies[1], tmp_path / "policy")
    tokenizer = load_tokenizer(policy)
    ends = [token for token in range(len(tokenizer)) if token != tokenizer.eos_token_id]
    for cut, ids in ((0.0, ends), (1.0, [])):
        tiny.edit(policy / "generation_config.json", eos_token_id=ids or tokenizer.eos_token_id)
        tiny.edit(policy / "config.json", eos_token_id=ids or tokenizer.eos_token_id)
        _, trainer = seen_by_trl(policy, ROWS[:2], tmp_path / str(cut))
        (logged,) = [entry for entry in trainer.state.log_history if "reward" in entry]
        model = load_policy(policy)
        for _ in range(2):  # the ends are still known the second time
            made = complete(model, tokenizer, [ROWS[0]["prompt"]], 20, 4, 1.0, 4096, 0)[0]
            lengths = {answer.tokens for answer in made}
            if ids:
                assert logged["completions/clipped_ratio"] == 0.0
                assert lengths == {1}
                assert not any(answer.truncated for answer in made)
            else:
                assert logged["completions/clipped_ratio"] > 0.5
                assert 4 in lengths
                assert all(
                    answer.truncated == (answer.tokens == 4)
                    for answer in made
                    if answer.ids[-1] != tokenizer.eos_token_id
                )


def test_the_trainers_own_setting_is_refused_with_the_remedy(tmp_path: Path):
    import yaml

    section = SECTIONS["train"] | {"grpo": {"chat_template_kwargs": {"enable_thinking": False}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"train": section}))
    with pytest.raises(ParamsError, match=r"models\.policy\.chat_template_kwargs"):
        load(tmp_path / "params.yaml", "train", TrainParams)
