import pytest

from isodense.models import skills
from isodense.models.params import ModelParams
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.params import build
from isodense.pipeline.runtime import BaseParams
from isodense.reward.answers import exact_match
from isodense.synthetic.requests import load

MODEL = {"source": "skills", "name": "even", "version": "3", "sha256": None, "path": None}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A policy after one step of training."""
    monkeypatch.setattr(skills, "STEPS", 1)
    monkeypatch.setattr(skills, "MORE_STEPS", 1)
    skills.make("lopsided", 3, tmp_path / "policy")
    return tmp_path / "policy"


def test_policy_reads_prompts_and_answers_as_they_are(made):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made)
    model = AutoModelForCausalLM.from_pretrained(made)
    assert 0.9e6 < model.num_parameters() < 1.1e6
    assert len(tokenizer) == model.config.vocab_size <= skills.VOCABULARY
    assert model.config.use_cache
    messages = [{"role": "user", "content": "What is 12 plus 7?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert prompt == "<|user|>What is 12 plus 7?<|end|><|assistant|>"
    ids = tokenizer(prompt)["input_ids"]
    assert tokenizer.decode(ids) == prompt
    assert tokenizer.tokenize("19") == ["1", "9"]  # digits one by one
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")


def test_the_same_seed_gives_the_same_bytes(made, tmp_path):
    skills.make("lopsided", 3, tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()


def test_no_heldout_request_is_trained_on():
    base = BaseParams(seed=3, device="cpu")
    rows = load(skills.STANDARD, base.rng("download.skills"))
    heldout = {row["prompt"][0]["content"] for row in rows if row.get("heldout")}
    seen = {row["prompt"][0]["content"] for row in skills.even_rows(base, 4000)}
    assert len(heldout) == 1600
    assert len(seen) == 4000
    assert not heldout & seen


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"name": "odd"}, "needs name: even or lopsided"),
        ({"version": None}, "needs version"),
        ({"version": "main"}, "a seed in quotes"),
        ({"sha256": "0" * 64}, "sha256 has no meaning"),
    ],
)
def test_params_of_the_policy(changes, fault):
    with pytest.raises(IsodenseError, match=fault):
        build(ModelParams, MODEL | changes, "models.policy")


def test_exact_match_takes_texts_and_messages():
    said = [[{"role": "assistant", "content": " Oslo\n"}], "Oslo, I think", "oslo"]
    assert exact_match(said, answer=["Oslo"] * 3) == [1.0, 0.0, 0.0]
