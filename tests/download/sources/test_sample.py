import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from isodense.download.sources import sample
from isodense.download.sources.sample_intents import read_intents
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.params import build

DEFAULTS = {
    "pairs": 2000,
    "exponent": 1.0,
    "duplicates": 0.08,
    "near_duplicates": 0.15,
    "multi_turn": 0.1,
}
INTENTS = read_intents()
DIGEST = """
import hashlib, json, numpy as np
from isodense.download.sources import sample
from isodense.download.sources.sample_intents import read_intents
params = sample.SampleParams(
    pairs=300, exponent=1.0, duplicates=0.08, near_duplicates=0.15, multi_turn=0.1
)
rows = sample.load(params, np.random.default_rng(7))
print(hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest())
"""


def make(seed=0, **changes):
    params = sample.SampleParams(**(DEFAULTS | changes))
    return list(sample.load(params, np.random.default_rng(seed)))


def prompts(rows, label=None):
    return [
        tuple(turn["content"] for turn in row["prompt"])
        for row in rows
        if label in (None, row["label"])
    ]


def text(row, answer):
    return row[answer][0]["content"]


def key(prompt):
    """Letters only, politeness left out: what case, spaces and punctuation cannot change."""
    polite = r"\b(hi|hello|hey|there|good morning|quick question|please|pl[sz]|thank(s|x| you)"
    polite += r"|thx|cheers|in advance|and)\b"
    return tuple(re.sub(r"[\W_]|" + polite, "", turn.lower()) for turn in prompt)


@pytest.fixture(scope="module")
def rows():
    return make()


# --- The rows


def test_rows_are_conversational_preference_pairs(rows):
    assert len(rows) == 2000
    for row in rows:
        assert list(row) == ["prompt", "chosen", "rejected", "label"]
        roles = [turn["role"] for turn in row["prompt"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        for answer in ("chosen", "rejected"):
            assert [turn["role"] for turn in row[answer]] == ["assistant"]


def test_texts_are_filled_in_and_clean(rows):
    slot = re.compile(r"\{[A-Za-z_]+\}")
    for row in rows:
        for turn in [*row["prompt"], *row["chosen"], *row["rejected"]]:
            assert turn["content"].strip()
            assert not slot.search(turn["content"])
        assert "  " not in text(row, "chosen")
        assert text(row, "chosen") == text(row, "chosen").strip()
        assert text(row, "chosen") != text(row, "rejected")
        assert len(text(row, "chosen").split()) <= 45
        assert len(text(row, "rejected").split()) <= 85


def test_labels_follow_the_power_law(rows):
    counts = [Counter(row["label"] for row in rows)[intent.intent] for intent in INTENTS]
    assert counts == sorted(counts, reverse=True)
    assert min(counts) >= 4
    slope = np.polyfit(np.log(np.arange(1, 31)), np.log(counts[:30]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.03)


def test_at_least_sixty_labels_come_mixed(rows):
    labels = [row["label"] for row in rows]
    assert len(set(labels)) >= 60
    assert len(set(labels[:100])) > 20
    assert labels[:200].count(INTENTS[0].intent) < 80


def test_the_top_intent_has_many_distinct_prompts(rows):
    assert len(set(prompts(rows, INTENTS[0].intent))) >= 300


@pytest.mark.parametrize("duplicates", [0.0, 0.08, 0.5])
def test_exact_duplicates_have_the_asked_share(duplicates):
    rows = make(duplicates=duplicates)
    assert len(rows) - len(set(prompts(rows))) == round(duplicates * len(rows))


def test_exact_duplicates_gather_in_the_head(rows):
    copied = [
        len(prompts(rows, intent.intent)) - len(set(prompts(rows, intent.intent)))
        for intent in INTENTS
    ]
    assert sum(copied[:7]) > 0.65 * sum(copied)
    assert max(Counter(prompts(rows)).values()) >= 3


def test_near_duplicates_are_present():
    def merged(share):
        distinct = set(prompts(make(duplicates=0.0, near_duplicates=share)))
        return len(distinct) - len({key(prompt) for prompt in distinct})

    assert merged(0.0) <= 8  # templates that differ by little more than their case
    # Slips of the finger change the key, and several copies of one prompt can share a key.
    assert 120 <= merged(0.15) <= 300
    assert merged(0.4) > 2 * merged(0.15)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_multi_turn_prompts_have_the_asked_share(share):
    rows = make(multi_turn=share)
    having = {intent.intent for intent in INTENTS if intent.dialogues}
    turns = [len(row["prompt"]) for row in rows if row["label"] in having]
    assert np.mean(np.array(turns) > 1) == pytest.approx(share, abs=0.03)
    assert all(len(row["prompt"]) == 1 for row in rows if row["label"] not in having)


def test_length_gives_nothing_away(rows):
    for size in (len, lambda answer: len(answer.split())):
        chosen = np.array([size(text(row, "chosen")) for row in rows])
        rejected = np.array([size(text(row, "rejected")) for row in rows])
        accuracy = np.mean(chosen > rejected) + np.mean(chosen == rejected) / 2
        assert 0.4 < accuracy < 0.6


def test_prompts_differ_in_length_and_register(rows):
    single = [prompt[0] for prompt in prompts(rows) if len(prompt) == 1]
    words = np.array([len(prompt.split()) for prompt in single])
    assert np.quantile(words, 0.05) <= 5
    assert np.quantile(words, 0.95) >= 20
    assert 0.2 < np.mean([prompt[0].islower() for prompt in single]) < 0.7


# --- Determinism, odd sizes


def test_the_same_seed_gives_the_same_rows():
    assert make(seed=5) == make(seed=5)
    assert make(seed=5) != make(seed=6)


def test_rows_do_not_depend_on_the_hash_seed():
    def digest(hash_seed):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", DIGEST]
        return subprocess.check_output(command, env=environment, text=True).strip()

    params = sample.SampleParams(
        pairs=300, exponent=1.0, duplicates=0.08, near_duplicates=0.15, multi_turn=0.1
    )
    here = json.dumps(list(sample.load(params, np.random.default_rng(7))))
    assert digest("1") == digest("2") == hashlib.sha256(here.encode()).hexdigest()


@pytest.mark.parametrize("pairs", [1, 3, 70, 71, 500])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 3.0])
def test_any_size_sums_and_reaches_every_intent(pairs, exponent):
    counts = Counter(row["label"] for row in make(pairs=pairs, exponent=exponent))
    assert counts.total() == pairs
    assert len(counts) == min(pairs, len(INTENTS)) or pairs < len(INTENTS)


def test_intents_outlive_their_combinations():
    rows = make(pairs=6000, exponent=3.0, duplicates=0.0, near_duplicates=0.0)
    assert len(set(prompts(rows))) == len(rows)


def test_too_many_copies_are_a_fault():
    values = DEFAULTS | {"duplicates": 0.6, "near_duplicates": 0.5}
    with pytest.raises(IsodenseError, match=r"duplicates \(0\.6\) and near_duplicates \(0\.5\)"):
        build(sample.SampleParams, values, "sample")
    assert build(sample.SampleParams, DEFAULTS, "sample")
