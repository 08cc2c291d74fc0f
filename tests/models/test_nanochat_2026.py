"""nanochat since 2026-03-14: the model is nanochat's, in packs, batches, caches and training."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from isodense.embeddings.encoder import load_encoder
from isodense.models import nanochat
from isodense.models.inference import nanochat_2026, packing
from isodense.models.inference.nanochat_2026 import NanoChat2026ForCausalLM
from isodense.models.inference.policy import load_policy, load_tokenizer, prompt_tokens
from isodense.models.params import ModelParams
from isodense.models.publish import publish
from isodense.pipeline.errors import ModelError
from tests.architecture_trials import LORA, STAGES
from tests.nanochat_files import (
    SIZES_2026,
    VOCABULARY,
    encoding,
    pickled,
    store,
    store_2026,
    weights_2026,
)
from tests.rl import SECTIONS

pytestmark = pytest.mark.usefixtures("one_thread")
DEVELOPMENT = Path(__file__).parents[3] / "shared" / "data" / "nanochat-2026"
SHORT, LONG = 128, SIZES_2026["sequence_len"]  # tokens before one that it sees


@pytest.fixture
def model(tmp_path):
    """Return a random model with all features, which the test may change."""
    store_2026(tmp_path / "nanochat")
    return nanochat.load(tmp_path / "nanochat", "base")[0]


def tokens(length, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (length,), generator=made).tolist()


@torch.inference_mode()
def logits(model, ids, **settings):
    """Return the logits of each position of one sequence, alone."""
    return model(torch.tensor([ids]), use_cache=False, **settings).logits[0]


def near(found, expected, within=1e-4):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=within)


def changed(before, after):
    """Return the positions at which two runs differ."""
    return (before - after).abs().amax(-1).gt(1e-6).nonzero().flatten().tolist()


# --- the parts of the architecture ----------------------------------------------------------------


def inputs_of_first_block(model, ids):
    kept = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, inputs: kept.append(inputs))
    logits(model, ids)
    hook.remove()
    (stream, first), *_ = kept
    assert torch.equal(stream, first)
    return first[0]


def test_a_smear_takes_the_token_before_unsmeared_and_the_gate_of_its_own(model):
    ids = tokens(5)
    smeared = inputs_of_first_block(model, ids)
    other = inputs_of_first_block(model, [ids[0], ids[1] + 1 - 2 * (ids[1] > 9), *ids[2:]])
    assert changed(smeared, other) == [1, 2]  # a smear of smeared tokens would change 3 and 4, too
    alone = torch.cat([inputs_of_first_block(model, [one]) for one in ids])
    shares = (smeared - alone)[1:] / alone[:-1]
    near(shares, shares.mean(dim=1, keepdim=True).expand_as(shares), 1e-3)  # one number each
    near(alone.square().mean(dim=1), np.ones(5))  # normed before, and not after
    repeated = inputs_of_first_block(model, [ids[3], ids[1], ids[2], ids[1]])
    before = torch.cat([inputs_of_first_block(model, [one]) for one in (ids[3], ids[2])])
    gates = (repeated[[1, 3]] - alone[[1, 1]]) / before
    near(gates[0].mean(), gates[1].mean(), 1e-4)  # the same token has the same gate
    with torch.no_grad():
        model.model.smear_gate.weight.zero_()
    halved = inputs_of_first_block(model, ids)
    near(halved[1:] - alone[1:], 0.4 * alone[:-1])  # smear_lambda is 0.8, the sigmoid of 0 is 0.5


def single(tmp_path, depth, sequence_len, smear, pattern):
    """Return a model whose first block alone attends."""
    sizes = {"n_layer": depth, "sequence_len": sequence_len, "window_pattern": pattern}
    state = weights_2026(VOCABULARY, SIZES_2026 | sizes)
    state["smear_lambda"].fill_(smear)
    for layer in range(1, depth):
        state[f"transformer.h.{layer}.attn.c_proj.weight"].zero_()
    store_2026(tmp_path / "single", state=state, **sizes)
    return nanochat.load(tmp_path / "single", "base")[0]


@pytest.mark.parametrize(
    ("depth", "sequence_len", "pattern", "window"),
    [(1, 20, "S", 20), (2, 512, "S", 128), (2, 20, "LS", 20), (2, 513, "SL", 256)],
)
@pytest.mark.parametrize("smear", [0.0, 0.8])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_token_sees_itself_and_as_many_before_it_as_the_window(
    tmp_path, depth, sequence_len, pattern, window, smear, attention
):
    model = single(tmp_path, depth, sequence_len, smear, pattern)
    model.set_attn_implementation(attention)
    ids = tokens(window + 8)
    reach = window + (smear > 0)  # the last key in the window has a share of the token before it
    before = logits(model, ids)
    for at, seen in [(len(ids) - 1 - reach, True), (len(ids) - 2 - reach, False)]:
        other = [*ids[:at], (ids[at] + 1) % VOCABULARY, *ids[at + 1 :]]
        assert (changed(before, logits(model, other))[-1] == len(ids) - 1) == seen


def test_kinds_of_layers_follow_the_pattern_and_the_depth(tmp_path):
    store_2026(tmp_path)
    config = nanochat.load(tmp_path, "base")[0].config
    short, long = "sliding_attention", "full_attention"
    assert config.layer_types == [short, short, long, short, long]
    assert (config.sliding_window, config.max_position_embeddings) == (SHORT + 1, LONG)
    assert (config.value_embedding_layers, config.backout_layer) == ([0, 2, 4], 2)
    assert config.rope_parameters["rope_theta"] == 100_000
    store_2026(tmp_path, "mid", "d4", n_layer=4, window_pattern="l")
    config = nanochat.load(tmp_path, "mid")[0].config
    assert (config.layer_types, config.sliding_window) == ([long] * 4, None)
    assert (config.value_embedding_layers, config.backout_layer) == ([1, 3], 2)


@pytest.mark.parametrize("name", ["smear_lambda", "backout_lambda", "resid_lambdas", "x0_lambdas"])
def test_each_scale_is_its_own(tmp_path, name):
    """One of them changed changes the output, and not as another would."""
    found = []
    for changes in ({}, {name: 1.5}):
        state = weights_2026(VOCABULARY, SIZES_2026)
        for key, factor in changes.items():
            state[key] = state[key] * factor
        store_2026(tmp_path, state=state)
        found.append(logits(nanochat.load(tmp_path, "base")[0], tokens(6)))
    assert 0 in changed(*found) or name == "smear_lambda"
    assert changed(*found)[-5:] == [1, 2, 3, 4, 5]


def test_backout_subtracts_the_output_of_the_middle_block(model):
    blocks, normed = [], []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _model, _inputs, output: blocks.append(output))
    model.model.norm.register_forward_hook(lambda _model, inputs, _output: normed.append(inputs[0]))
    logits(model, tokens(4))
    assert len(blocks) == 5
    assert torch.equal(normed[-1], blocks[4] - model.model.backout_lambda.detach() * blocks[2])


def test_a_gate_has_the_same_bits_wherever_its_token_is():
    values = torch.randn(60_000, generator=torch.Generator().manual_seed(0))
    found = nanochat_2026._sigmoid(values)
    near(found, values.double().sigmoid(), 1e-6)
    for start in range(0, 59_000, 331):
        part = slice(start, start + 48)
        assert torch.equal(nanochat_2026._sigmoid(values[part].clone()), found[part])


# --- packs, padding, caches -----------------------------------------------------------------------


@torch.inference_mode()
def test_sequences_told_by_their_positions_are_those_alone(model):
    rows = [tokens(length, seed) for seed, length in enumerate((170, 3, 1, 40, 1))]
    together = torch.tensor([[token for row in rows for token in row]])
    positions = torch.tensor([[at for row in rows for at in range(len(row))]])
    found = model(together, position_ids=positions, use_cache=False).logits[0]
    near(found, torch.cat([logits(model, row) for row in rows]))


@torch.inference_mode()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("given_positions", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(model, side, given_positions, attention):
    model.set_attn_implementation(attention)
    rows = [tokens(length, seed) for seed, length in enumerate((170, 1, 2, 140))]
    ids = torch.full((len(rows), 175), 7)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(-len(row), None) if side == "left" else slice(len(row))
        ids[number, place], mask[number, place] = torch.tensor(row), 1
    positions = (mask.cumsum(1) - 1).clamp(min=0) if given_positions else None
    found = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    for number, row in enumerate(rows):
        near(found[number, mask[number].bool()], logits(model, row))


@torch.inference_mode()
@pytest.mark.parametrize("sizes", [(1,) * 180, (5, 1, 7, 3, 150, 1, 13), (175, 5)])
@pytest.mark.parametrize("made", [True, False])
def test_a_cache_in_any_portions_gives_one_pass(model, sizes, made):
    ids = torch.tensor([tokens(180)])
    cache = DynamicCache() if made else None  # of layers that keep all, or as the config says
    found = []
    for part in ids.split(sizes, dim=1):
        output = model(part, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits[0])
    near(torch.cat(found), logits(model, ids[0].tolist()))


@torch.inference_mode()
def test_a_cache_is_copied_reordered_and_cropped_with_its_tokens(model):
    rows = torch.tensor([tokens(6, 1), tokens(6, 2)])
    answers = torch.tensor([tokens(3, seed) for seed in (3, 4, 5, 6)])
    cache = model(rows, use_cache=True).past_key_values
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([3, 1, 0, 2]))
    model(answers.flip(1), past_key_values=cache)
    cache.crop(-3)
    found = model(answers, past_key_values=cache).logits
    for number, row in enumerate((1, 0, 0, 1)):
        whole = logits(model, [*rows[row].tolist(), *answers[number].tolist()])
        near(found[number], whole[-3:])


def likeliest(model, ids, count):
    """Return the tokens of greedy decoding, by whole passes."""
    for _ in range(count):
        ids = [*ids, int(logits(model, ids)[-1].argmax())]
    return ids[-count:]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generation_from_padded_prompts_is_that_of_whole_passes(model, attention):
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    rows = [tokens(length, seed) for seed, length in enumerate((1, 158, 30))]
    ids, mask = torch.full((3, 158), 7), torch.zeros(3, 158, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, -len(row) :], mask[number, -len(row) :] = torch.tensor(row), 1
    settings = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 7}
    found = model.generate(ids, attention_mask=mask, **settings)[:, -12:].tolist()
    assert found == [likeliest(model, row, 12) for row in rows]
    beams = model.generate(ids, attention_mask=mask, num_beams=3, **settings)
    uncached = model.generate(ids, attention_mask=mask, num_beams=3, use_cache=False, **settings)
    assert beams.tolist() == uncached.tolist()


def test_what_the_model_cannot_do_is_an_error(model):
    ids = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="inputs_embeds will not do"):
        model(inputs_embeds=torch.zeros(1, 2, 32))
    with pytest.raises(ValueError, match="static cache"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")
    cache = model(ids, use_cache=True).past_key_values
    cache.layers.pop()
    with pytest.raises(ValueError, match="lacks the token ids"):
        model(ids, past_key_values=cache)


# --- training -------------------------------------------------------------------------------------


def gradients(model, ids):
    model.zero_grad()
    loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    return float(loss.detach()), {
        name: weight.grad.clone() for name, weight in model.named_parameters()
    }


def test_gradients_reach_every_weight_and_the_loss_falls(model):
    model.train()
    ids = torch.tensor([tokens(150, 1), tokens(150, 2)])
    first, found = gradients(model, ids)
    assert len(found) == 5 * 8 + 3 * 2 + 3 + 2
    assert all(bool(gradient.abs().max() > 0) for gradient in found.values())
    model.activation_checkpointing_enable()
    for name, gradient in gradients(model, ids)[1].items():
        near(gradient, found[name], 1e-4 * float(found[name].abs().max()))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(5):
        last, _ = gradients(model, ids)
        optimizer.step()
    assert last < 0.8 * first


@pytest.fixture
def policy(tmp_path):
    """Return the folder of a published policy."""
    store_2026(tmp_path / "nanochat", "chatsft", "d5_x")
    return published(tmp_path / "nanochat", "sft", tmp_path / "policy")


def published(base, path, out):
    params = ModelParams(source="nanochat", name=str(base), version=None, sha256=None, path=path)
    publish("policy", params, out, out.parent / "cache")
    return out


CHATS = [[{"role": "user", "content": text}] for text in ("the bananas <|bos|>", "then")]


def train(policy, out, lora):
    """Train for two steps and save; return the prompts that completions were drawn for."""
    from isodense.preflight.trial import Alternating
    from isodense.train.grpo import make_trainer, save_policy
    from isodense.train.params import TrainParams
    from isodense.train.settings import make_config

    changes = {"max_steps": 2, "lora": lora, "max_completion_tokens": 5, "beta": 0.1}
    params = TrainParams(**(SECTIONS["train"] | changes))
    rows = [{"id": str(row), "prompt": prompt} for row, prompt in enumerate(CHATS)]
    config = make_config(params, 0, "cpu", out)
    trainer = make_trainer(policy, Alternating(), config, rows, params.lora)
    asked = set()

    def kept(_model, _inputs, given):
        if given.get("use_cache"):
            rows = zip(given["input_ids"], given["attention_mask"].bool(), strict=True)
            asked.update(tuple(ids[mask].tolist()) for ids, mask in rows if len(ids) == len(mask))

    whole = next(one for one in trainer.model.modules() if type(one) is NanoChat2026ForCausalLM)
    whole.register_forward_pre_hook(kept, with_kwargs=True)
    trainer.train()
    assert save_policy(trainer, policy, out / "policy")
    return asked


@pytest.mark.parametrize("lora", [None, LORA])
def test_grpo_trains_what_loads_again(policy, tmp_path, lora):
    asked = train(policy, tmp_path / "out", lora)
    trained = tmp_path / "out" / "policy"
    assert asked == {tuple(row) for row in prompt_tokens(load_tokenizer(policy), CHATS)}
    before, after = load_policy(policy), load_policy(trained)
    assert type(after) is NanoChat2026ForCausalLM
    configs = [json.loads((one / "config.json").read_text()) for one in (policy, trained)]
    assert configs[1] == configs[0] | {"use_cache": configs[1]["use_cache"]}  # TRL turns it off
    weights = after.state_dict()
    same = [name for name, old in before.state_dict().items() if torch.equal(old, weights[name])]
    if lora is None:
        assert same == []
    again = prompt_tokens(load_tokenizer(trained), CHATS)
    assert again == prompt_tokens(load_tokenizer(policy), CHATS)
    settings = [
        json.loads((one / "tokenizer_config.json").read_text()) for one in (policy, trained)
    ]
    assert [one["split_special_tokens"] for one in settings] == [True, True]


@pytest.mark.parametrize("stage", STAGES)
def test_stages_compute_what_whole_passes_do(policy, stage):
    STAGES[stage](policy)


def test_a_policy_reads_a_chat_as_nanochat_does(policy):
    tokenizer = load_tokenizer(policy)
    bos, user, end, assistant = tokenizer.convert_tokens_to_ids(
        ["<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>"]
    )
    text = "the <|bos|> then"
    found = prompt_tokens(tokenizer, [[{"role": "user", "content": text}]])[0]
    inside = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert bos not in inside
    assert found == [bos, user, *inside, end, assistant]


# --- the published folder -------------------------------------------------------------------------

FRESH = """
import json, sys, torch
from isodense.models.inference.policy import load_policy
from isodense.embeddings.encoder import load_encoder
policy, out = sys.argv[1:]
model, encoder = load_policy(policy), load_encoder(policy, pooling="mean", max_tokens=64)
ids = [[5, 6, 7, 8], [9]]
with torch.inference_mode():
    found = [model(torch.tensor([row])).logits[0].tolist() for row in ids]
json.dump([type(model).__name__, found, encoder.encode_tokens(ids).tolist()], open(out, "w"))
"""


def test_a_published_folder_loads_in_a_new_process_as_policy_and_as_encoder(tmp_path, policy):
    out = tmp_path / "found.json"
    subprocess.run([sys.executable, "-c", FRESH, str(policy), str(out)], check=True)
    name, found, vectors = json.loads(out.read_text())
    model, _ = nanochat.load(tmp_path / "nanochat", "sft")
    assert name == "NanoChat2026ForCausalLM"
    for ids, values, vector in zip([[5, 6, 7, 8], [9]], found, vectors, strict=True):
        near(values, logits(model, ids), 1e-5)
        with torch.inference_mode():
            states = model.model(torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
        near(vector, states / states.norm())
    assert sorted(path.name for path in policy.iterdir() if path.suffix == ".py") == []


@pytest.mark.parametrize(("max_tokens", "packed"), [(100, True), (SHORT + 1, True), (150, False)])
@pytest.mark.parametrize("layer", [None, 1, 2, 5])
def test_vectors_are_those_of_texts_alone_where_windows_cut_or_do_not(
    policy, tmp_path, max_tokens, packed, layer
):
    encoder = load_encoder(policy, pooling="mean", max_tokens=max_tokens, layer=layer)
    assert encoder.packed == packed
    ids = [tokens(length, length) for length in (max_tokens, 3, 3, 1, 60, max_tokens)]
    model, _ = nanochat.load(tmp_path / "nanochat", "sft")
    kept = []
    block = model.model if layer is None else model.model.layers[layer - 1]
    block.register_forward_hook(lambda _model, _inputs, output: kept.append(output))
    found = encoder.encode_tokens(ids)
    for vector, row in zip(found, ids, strict=True):
        logits(model, row)
        states = kept.pop()
        mean = getattr(states, "last_hidden_state", states)[0].mean(dim=0)
        near(vector, mean / mean.norm(), 2e-6)
    assert (
        found.tobytes() == np.concatenate([encoder.encode_tokens([row]) for row in ids]).tobytes()
    )


def test_a_pack_with_windows_is_refused(model):
    model.set_attn_implementation(packing.NAME)
    with pytest.raises(NotImplementedError, match="sliding window"):
        packing.run(model, [tokens(9)], 0, SHORT + 2)


# --- which checkpoint it is -----------------------------------------------------------------------


def test_between_the_two_architectures_there_is_none(tmp_path):
    state = weights_2026(VOCABULARY, SIZES_2026)
    for name in ("smear_gate.weight", "smear_lambda", "backout_lambda"):
        del state[name]
    store_2026(tmp_path, state=state)
    with pytest.raises(ModelError) as error:
        nanochat.load(tmp_path, "base")
    for date in ("2025-10-13", "2026-01-10", "2026-01-11", "2026-03-13", "2026-03-14"):
        assert date in str(error.value)
    store(tmp_path, window_pattern="SSSL")
    with pytest.raises(ModelError, match=r"window_pattern(?s:.)*2026-01-11"):
        nanochat.load(tmp_path, "base", "d2")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("backout_lambda"), r"1 missing \(backout_lambda\)"),
        (lambda state: state.pop("resid_lambdas"), r"5 missing \(resid_lambdas\.0"),
        (lambda state: state.pop("value_embeds.2.weight"), r"1 missing \(value_embeds\.2\.weight"),
        (lambda state: state.update({"value_embeds.1.weight": torch.ones(1)}), "1 unknown"),
        (lambda state: state.update({"new_lambda": torch.ones(1)}), r"1 unknown \(new_lambda\)"),
        (lambda state: state.update({"x0_lambdas": torch.ones(4)}), r"x0_lambdas has shape \(4,\)"),
        (lambda state: state.update({"smear_lambda": torch.ones(2)}), r"smear_lambda has shape"),
    ],
)
def test_other_weights_are_refused_by_name(tmp_path, spoil, message):
    state = weights_2026(VOCABULARY, SIZES_2026)
    spoil(state)
    store_2026(tmp_path, state=state)
    with pytest.raises(ModelError, match=message):
        nanochat.load(tmp_path, "base")


@pytest.mark.parametrize("pattern", ["", "SSXL", 3, None, ["S"]])
def test_another_window_pattern_is_refused(tmp_path, pattern):
    store_2026(tmp_path, window_pattern=pattern)
    with pytest.raises(ModelError, match=re.escape(f"window_pattern = {pattern!r}")):
        nanochat.load(tmp_path, "base")


def test_without_a_pattern_all_windows_are_long_as_in_nanochat(tmp_path):
    path = store_2026(tmp_path)
    meta = path.with_name("meta_000010.json")
    settings = json.loads(meta.read_text())
    del settings["model_config"]["window_pattern"]
    meta.write_text(json.dumps(settings))
    assert set(nanochat.load(tmp_path, "base")[0].config.layer_types) == {"full_attention"}


def test_compiled_and_16_bit_weights_and_padded_rows_arrive(tmp_path):
    state = weights_2026(VOCABULARY, SIZES_2026)
    for name in ("transformer.wte.weight", "value_embeds.2.weight"):
        state[name] = state[name].bfloat16()
    store_2026(tmp_path, state={f"_orig_mod.{name}": one for name, one in state.items()})
    model, _ = nanochat.load(tmp_path, "base")
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    table = model.model.layers[2].self_attn.value_embeds.weight
    assert VOCABULARY % 64
    assert torch.equal(table, state["value_embeds.2.weight"][:VOCABULARY].float())
    scales = [layer.residual_scale.item() for layer in model.model.layers]
    assert scales == state["resid_lambdas"].tolist()


def seed_of(model):
    return next(
        seed
        for seed in range(9)
        if torch.equal(
            model.lm_head.weight,
            weights_2026(VOCABULARY, SIZES_2026, seed)["lm_head.weight"][:VOCABULARY],
        )
    )


def test_the_deepest_tag_may_have_a_suffix_and_steps_are_numbers(tmp_path):
    for seed, (tag, step) in enumerate(
        [("d6", 999_999), ("d20_x", 999_999), ("d20_x", 1_000_000), ("d6", 3)]
    ):
        store_2026(tmp_path, tag=tag, step=step, seed=seed)
    assert seed_of(nanochat.load(tmp_path, "base")[0]) == 2
    assert seed_of(nanochat.load(tmp_path, "base", "d20_x", 999_999)[0]) == 1
    assert seed_of(nanochat.load(tmp_path, "base", "d6")[0]) == 0
    (tmp_path / "base_checkpoints" / "d20_x" / "model_2000000_backup.pt").touch()
    store_2026(tmp_path, tag="d20-y")
    with pytest.raises(ModelError, match=r"2 models of depth 20: d20-y, d20_x(?s:.)*name the tag"):
        nanochat.load(tmp_path, "base")
    store_2026(tmp_path, tag="d20", seed=7)
    assert seed_of(nanochat.load(tmp_path, "base")[0]) == 7


def test_a_folder_may_have_everything_in_one_place(tmp_path):
    base, flat = tmp_path / "nanochat", tmp_path / "flat"
    for step in (5, 6):
        store_2026(base, step=step, seed=step)
    shutil.copytree(base / "base_checkpoints" / "d5", flat)
    with pytest.raises(ModelError, match=r"tokenizer\.pkl is missing"):
        nanochat.load(flat, "base")
    shutil.copy(base / "tokenizer" / "tokenizer.pkl", flat)
    assert seed_of(nanochat.load(flat, "sft")[0]) == 6
    assert seed_of(nanochat.load(flat, "base", step=5)[0]) == 5
    assert seed_of(nanochat.load(flat, "base", "flat", 5)[0]) == 5
    with pytest.raises(ModelError, match=r"step 7(?s:.)*it has: 5, 6"):
        nanochat.load(flat, "base", step=7)
    with pytest.raises(ModelError, match=r"in the folder itself(?s:.)*leave the tag out"):
        nanochat.load(flat, "base", "d5")
    load_policy(published(flat, "rl", tmp_path / "policy"))


def test_checkpoints_in_other_places_are_named(tmp_path):
    store_2026(tmp_path / "nanochat")
    shutil.move(tmp_path / "nanochat" / "base_checkpoints" / "d5", tmp_path / "models" / "mine")
    for base, place in [(tmp_path, "models/mine"), (tmp_path / "models", "mine")]:
        with pytest.raises(ModelError, match=rf"it has: none(?s:.)*in {place}: give such a folder"):
            nanochat.load(base, "base")


def test_a_longer_vocabulary_than_the_tokenizers_is_refused(tmp_path):
    store_2026(tmp_path)
    shorter = encoding()
    del shorter["special_tokens"]["<|python_start|>"]
    (tmp_path / "tokenizer" / "tokenizer.pkl").write_bytes(pickled(shorter))
    with pytest.raises(ModelError, match=f"counts {VOCABULARY} tokens"):
        nanochat.load(tmp_path, "base")


# --- against nanochat itself ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    if not DEVELOPMENT.is_dir():
        pytest.skip("the development checkpoints are not at hand")
    prompts = json.loads((DEVELOPMENT / "prompts.json").read_text(encoding="utf-8"))["prompts"]
    assert len(prompts) == 25
    return prompts, np.load(DEVELOPMENT / "reference.npz")


@torch.inference_mode()
def outputs(model, ids):
    """Return hidden states, logits and all blocks' outputs of one sequence."""
    kept = {}
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out, at=at: kept.update({at: out[0].numpy()}))
        for at, layer in enumerate(model.model.layers)
    ]
    mixed = model.model.layers[0].input_layernorm
    hooks.append(
        mixed.register_forward_hook(lambda _m, inputs, _o: kept.update(mixed=inputs[0][0]))
    )
    tensor = torch.tensor([ids])
    hidden = model.model(tensor).last_hidden_state[0].numpy()
    for hook in hooks:
        hook.remove()
    return hidden, model(tensor).logits[0].numpy(), kept


def means(arrays):
    return np.stack([np.asarray(array, dtype=np.float64).mean(axis=0) for array in arrays])


@pytest.mark.parametrize("source", ["base", "sft", "rl"])
def test_means_are_nanochats(reference, source):
    prompts, arrays = reference
    model, _ = nanochat.load(DEVELOPMENT, source)
    assert type(model) is NanoChat2026ForCausalLM
    hidden, scores, _ = zip(*[outputs(model, one["ids"]) for one in prompts], strict=True)
    near(means(hidden), arrays[f"{source}_f32_mean_hidden"], 1e-5)
    near(means(scores), arrays[f"{source}_f32_mean_logits"], 1e-5)


def test_every_position_and_block_is_nanochats(reference):
    prompts, arrays = reference
    model, _ = nanochat.load(DEVELOPMENT, "base", "d4", 150)
    found = [outputs(model, one["ids"]) for one in prompts]
    chosen = arrays["hidden_prompts"]
    near(np.concatenate([found[at][0] for at in chosen]), arrays["base_f32_hidden"], 1e-5)
    near(np.concatenate([found[at][2][1] for at in chosen]), arrays["base_f32_block1_hidden"], 1e-5)
    for layer in range(4):
        near(means(one[2][layer] for one in found), arrays["base_f32_block_mean"][:, layer], 1e-5)
    near(means(one[2]["mixed"] for one in found), arrays["base_f32_block0_in_mean"], 1e-5)
    near(np.stack([one[1][-1] for one in found]), arrays["base_f32_last_logits"], 1e-5)
    full = [found[at][1] for at in arrays["full_logits_prompts"]]
    near(np.concatenate(full), arrays["base_f32_full_logits"], 1e-5)


def test_without_bos_it_is_nanochats(reference):
    prompts, arrays = reference
    model, tokenizer = nanochat.load(DEVELOPMENT, "base")
    texts = [prompts[at]["text"] for at in arrays["nobos_prompts"]]
    assert len(texts) == 22
    found = [outputs(model, ids) for ids in tokenizer(texts)["input_ids"]]
    near(means(one[0] for one in found), arrays["base_f32_nobos_mean_hidden"], 1e-5)
    near(np.stack([one[1][-1] for one in found]), arrays["base_f32_nobos_last_logits"], 1e-5)


@pytest.mark.parametrize("source", ["base", "sft"])
def test_greedy_tokens_are_nanochats(reference, source):
    prompts, arrays = reference
    model, _ = nanochat.load(DEVELOPMENT, source)
    model.generation_config.eos_token_id = None
    rows = [prompts[at]["ids"] for at in arrays["gen_prompts"]]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    settings = {"do_sample": False, "max_new_tokens": 20, "pad_token_id": 0}
    found = model.generate(ids, attention_mask=mask, **settings)[:, longest:]
    assert found.tolist() == arrays[f"{source}_f32_gen_tokens"].tolist()


def test_chats_are_tokenized_as_in_nanochat(reference, tmp_path):
    prompts, _ = reference
    tokenizer = load_tokenizer(published(DEVELOPMENT, "sft", tmp_path / "policy"))
    chats = [one for one in prompts if one["kind"] == "chat"]
    assert len(chats) > 1
    found = prompt_tokens(tokenizer, [one["messages"] for one in chats])
    assert found == [one["ids"] for one in chats]


def test_a_window_one_token_short_would_show(reference):
    prompts, arrays = reference
    model, _ = nanochat.load(DEVELOPMENT, "base")
    model.config.sliding_window -= 1
    hidden = means(outputs(model, one["ids"])[0] for one in prompts)
    assert np.abs(hidden - arrays["base_f32_mean_hidden"]).max() > 1e-3


@pytest.mark.parametrize("max_tokens", [128, 512])  # in packs, and in padded batches
@pytest.mark.parametrize("layer", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_an_encoders_vectors_are_nanochats(reference, tmp_path, max_tokens, layer, precision):
    prompts, arrays = reference
    folder = published(DEVELOPMENT, "base", tmp_path / "encoder")
    settings = {"layer": layer, "max_tokens": max_tokens, "precision": precision}
    encoder = load_encoder(folder, pooling="mean", **settings)
    assert encoder.packed == (max_tokens == 128)
    rows = [at for at, one in enumerate(prompts) if len(one["ids"]) <= max_tokens]
    expected = arrays["base_f32_mean_hidden"]
    expected = (expected if layer is None else arrays["base_f32_block_mean"][:, layer - 1])[rows]
    found = encoder.encode_tokens([prompts[at]["ids"] for at in rows])
    near(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), 1e-5)


@pytest.mark.parametrize("max_tokens", [128, 512])
def test_an_encoders_mean_logits_are_nanochats(reference, tmp_path, max_tokens):
    prompts, arrays = reference
    folder = published(DEVELOPMENT, "base", tmp_path / "encoder")
    encoder = load_encoder(folder, space="logits_full", max_tokens=max_tokens)
    rows = [at for at, one in enumerate(prompts) if len(one["ids"]) <= max_tokens]
    expected = arrays["base_f32_mean_logits"][rows]
    found = encoder.encode_tokens([prompts[at]["ids"] for at in rows])
    near(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), 1e-5)
