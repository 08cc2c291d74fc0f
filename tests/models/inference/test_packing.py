"""A pack gives each sequence what it has alone, and attention never looks across sequences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers import AutoModel

from isodense.models.inference import packing
from isodense.models.inference.packing import Segment, segments
from tests.embeddings.test_encoder import architecture

LENGTHS = [33, 20, 20, 7, 7, 7, 3, 1]
BACK = ["llama", "qwen3"]  # looking only back
KINDS = ["bert", "roberta", "distilbert", *BACK]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: architecture(root / kind, kind) for kind in KINDS}


def rows_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(8, 150, (n,), generator=generator).tolist() for n in lengths]


def packed(folder):
    """Return a model that is set up for packs, and the position of a first token."""
    model = AutoModel.from_pretrained(folder).eval()
    model.set_attn_implementation(packing.NAME)
    first = 1 + model.config.pad_token_id if model.config.model_type == "roberta" else 0
    return model, first


def states(model, first, rows):
    """Return the states of each row of a pack."""
    with torch.inference_mode():
        whole = packing.run(model, rows, first, 64).last_hidden_state[0]
    return whole[: sum(map(len, rows))].split([len(row) for row in rows])


# --- packs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[], [4], [4, 4, 4], [9, 5, 5, 2, 2, 1], [3, 1, 3, 3]])
def test_segments_are_the_longest_runs_and_leave_no_token_out(lengths):
    found = segments(lengths)
    assert [part.length for part in found for _ in range(part.sequences)] == lengths
    assert [part.start for part in found] == [0, *[part.stop for part in found]][: len(found)]
    assert not found or found[-1].stop == sum(lengths)
    assert all(one.length != two.length for one, two in itertools.pairwise(found))
    assert all(isinstance(part, Segment) for part in found)


def test_segments_of_continued_sequences_are_apart_from_others_of_their_length():
    lengths, owners = [6, 4, 2, 2, 2, 2, 4], [None, None, 0, 0, 1, None, None]
    first, second = (0, 6), (6, 4)  # the sequences that are continued: start and length
    assert segments(lengths, owners) == [
        Segment(0, 1, 6),
        Segment(6, 1, 4),
        Segment(10, 2, 2, *first),
        Segment(14, 1, 2, *second),
        Segment(16, 1, 2),
        Segment(18, 1, 4),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_is_its_sequences_alone(folders, kind):
    model, first = packed(folders[kind])
    stock, rows = AutoModel.from_pretrained(folders[kind]).eval(), rows_of(LENGTHS)
    with torch.inference_mode():
        for row, found in zip(rows, states(model, first, rows), strict=True):
            alone = stock(input_ids=torch.tensor([row])).last_hidden_state[0]
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_changing_one_sequence_changes_no_byte_of_the_others(folders, kind):
    model, first = packed(folders[kind])
    rows, other = rows_of(LENGTHS), rows_of(LENGTHS, seed=1)
    before = states(model, first, rows)
    for changed in range(len(rows)):
        mixed = [other[i] if i == changed else rows[i] for i in range(len(rows))]
        after = states(model, first, mixed)
        same = [torch.equal(one, two) for one, two in zip(before, after, strict=True)]
        assert same == [i != changed for i in range(len(rows))]


def test_a_pack_is_filled_up_and_the_filling_is_a_sequence_of_its_own(folders):
    model, first = packed(folders["bert"])
    rows = rows_of([7, 7])
    with torch.inference_mode():
        filled = packing.run(model, rows, first, 64).last_hidden_state[0]
    assert len(filled) == 16
    longer = states(model, first, [*rows, *rows_of([9, 5], seed=2)])
    assert torch.equal(filled[:14], torch.cat(longer[:2]))


PROMPTS, ANSWERS, OWNERS = [20, 20, 7], [5, 5, 3, 17, 5, 1], [0, 0, 1, 1, 2, 2]


def with_answers(seed=0):
    """Return a pack of prompts and answers, and which each row continues."""
    rows = rows_of([*PROMPTS, *ANSWERS], seed)
    return rows, [None] * len(PROMPTS) + OWNERS


def states_of_answers(model, rows, owners):
    with torch.inference_mode():
        whole = packing.run(model, rows, 0, 64, owners).last_hidden_state[0]
    lengths = [len(row) for row in rows]
    return whole[: sum(lengths)].split(lengths)[len(PROMPTS) :]


@pytest.mark.parametrize("kind", BACK)
def test_answers_that_continue_a_prompt_are_the_end_of_the_whole_conversation(folders, kind):
    model, _ = packed(folders[kind])
    stock, (rows, owners) = AutoModel.from_pretrained(folders[kind]).eval(), with_answers()
    found = states_of_answers(model, rows, owners)
    for answer, owner, states in zip(rows[len(PROMPTS) :], OWNERS, found, strict=True):
        with torch.inference_mode():
            alone = stock(input_ids=torch.tensor([rows[owner] + answer])).last_hidden_state[0]
        torch.testing.assert_close(states, alone[len(rows[owner]) :], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", BACK)
def test_an_answer_has_the_same_bytes_whatever_else_is_in_the_pack(folders, kind):
    model, _ = packed(folders[kind])
    (rows, owners), (other, _) = with_answers(), with_answers(seed=1)
    before = states_of_answers(model, rows, owners)
    for number, owner in enumerate(OWNERS):
        kept = {owner, len(PROMPTS) + number}
        mixed = [rows[place] if place in kept else other[place] for place in range(len(rows))]
        after = states_of_answers(model, mixed, owners)
        assert torch.equal(after[number], before[number])
        pair = [rows[owner], rows[len(PROMPTS) + number]]
        with torch.inference_mode():
            alone = packing.run(model, pair, 0, 64, [None, 0]).last_hidden_state[0]
        assert torch.equal(alone[len(pair[0]) :][: len(pair[1])], before[number])


@pytest.mark.parametrize("kind", BACK)
def test_the_bytes_of_answers_do_not_depend_on_the_threads(folders, kind):
    model, _ = packed(folders[kind])
    answers, threads = list(range(1, 24)), torch.get_num_threads()
    rows, owners = rows_of([20, *answers]), [None] + [0] * len(answers)
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with torch.inference_mode():
                found.append(packing.run(model, rows, 0, 64, owners).last_hidden_state)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_model_that_looks_both_ways_continues_nothing(folders):
    model, first = packed(folders["bert"])
    with pytest.raises(NotImplementedError, match="both ways"):
        packing.run(model, rows_of([9, 4]), first, 64, [None, 0])


def test_a_model_has_its_own_attention_back_for_a_while_also_after_an_error(folders):
    model, first = packed(folders["bert"])
    ids = torch.tensor([[9, 10, 11]])
    expected = AutoModel.from_pretrained(folders["bert"]).eval()(input_ids=ids).last_hidden_state
    with packing.stock_attention(model):
        torch.testing.assert_close(model(input_ids=ids).last_hidden_state, expected)
    with pytest.raises(KeyboardInterrupt), packing.stock_attention(model):
        raise KeyboardInterrupt
    assert model.config._attn_implementation == packing.NAME
    torch.testing.assert_close(states(model, first, ids.tolist())[0], expected[0])


# --- attention ------------------------------------------------------------------------------------


def by_definition(query, key, value, lengths, scaling, causal):
    """Return softmax(QKᵀ)V of each sequence, each head and each query by itself, in float64."""
    query, key, value = (heads[0].double().numpy() for heads in (query, key, value))
    share, start = len(query) // len(key), 0
    out = np.empty((query.shape[1], len(query), value.shape[2]))
    for length in lengths:
        for head, at in itertools.product(range(len(query)), range(start, start + length)):
            seen = slice(start, at + 1 if causal else start + length)
            scores = np.exp(key[head // share, seen] @ query[head, at] * scaling)
            out[at, head] = scores / scores.sum() @ value[head // share, seen]
        start += length
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("heads", "groups", "size"), [(4, 4, 16), (4, 2, 8), (3, 1, 20), (2, 2, 5)]
)
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_attention_is_softmax_by_sequence(causal, heads, groups, size, scaling):
    generator = torch.Generator().manual_seed(size)
    lengths = [9, 4, 4, 1]
    query, key, value = (
        torch.randn(1, n, sum(lengths), size, generator=generator) for n in (heads, groups, groups)
    )
    module = torch.nn.Module()
    module.is_causal = causal
    runs = segments(lengths)
    out, weights = packing._attention(
        module, query, key, value, None, segments=runs, longest=9, scaling=scaling
    )
    assert weights is None
    assert out.shape == (1, sum(lengths), heads, size)
    expected = by_definition(query, key, value, lengths, scaling or size**-0.5, causal)
    np.testing.assert_allclose(out[0].numpy(), expected, atol=2e-6)


def test_a_continued_sequence_is_seen_before_the_own_tokens():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, n, 9 + 4, 8, generator=generator) for n in (4, 2, 2))
    module = torch.nn.Module()
    module.is_causal = True
    runs = segments([9, 2, 2], [None, 0, 0])
    out, _ = packing._attention(module, query, key, value, None, segments=runs, longest=11)
    for kept in ([9, 10], [11, 12]):  # the tokens of each of the two, after those of the first
        whole = [*range(9), *kept]
        heads = [heads[:, :, whole] for heads in (query, key, value)]
        expected = by_definition(*heads, [11], 8**-0.5, True)
        np.testing.assert_allclose(out[0, whole].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"softcap": 50.0}, "softcap"),
        ({"s_aux": torch.ones(2)}, "s_aux"),
        ({"position_bias": torch.ones(2)}, "position_bias"),
        ({"sliding_window": 8}, "sliding window"),
    ],
)
def test_attention_that_cannot_be_packed_is_refused(settings, words):
    heads = torch.ones(1, 2, 9, 4)
    call = {"segments": segments([9]), "longest": 9}
    with pytest.raises(NotImplementedError, match=words):
        packing._attention(torch.nn.Module(), heads, heads, heads, None, **call, **settings)
    harmless = {"softcap": None, "sliding_window": 9}  # as wide as the longest sequence
    packing._attention(torch.nn.Module(), heads, heads, heads, None, **call, **harmless)


@pytest.mark.parametrize(("hidden", "heads"), [(40, 2), (36, 4), (24, 8)])
def test_heads_of_any_size_ignore_their_place_in_the_pack(tmp_path, hidden, heads):
    """Heads of 20, 9 and 3 floats, none of which fills cache lines."""
    folder = architecture(tmp_path, "bert", hidden_size=hidden, num_attention_heads=heads)
    model, first = packed(folder)
    rows = rows_of(LENGTHS)
    together = states(model, first, rows)
    for row, found in zip(rows, together, strict=True):
        assert torch.equal(states(model, first, [row])[0], found)
    stock = AutoModel.from_pretrained(folder).eval()
    for row, found in zip(rows, together, strict=True):
        with torch.inference_mode():
            alone = stock(input_ids=torch.tensor([row])).last_hidden_state[0]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)
