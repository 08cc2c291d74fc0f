"""Every metric that means something was left out, cut, fell back or failed is said in words."""

from __future__ import annotations

import json

import pytest

from isodense.pipeline.notices import notices, summary
from tests.rl import ROOT

SAID = [  # metrics, stage, text, whether it deserves a look
    (
        {"download": {"examples": 97, "bad_rows": 3, "unusable": {}}},
        "download",
        "3 rows left out: malformed (3.0%)",
        True,
    ),
    (
        {"download": {"examples": 9, "bad_rows": 0, "unusable": {"image parts": 1}}},
        "download",
        "1 row left out: image parts (10.0%)",
        True,
    ),
    ({"prompts": {"no_text": 1}}, "prompts", "1 example without text left out", True),
    (
        {"prompts": {"conflicting": {"answer": 2}}},
        "prompts",
        "2 prompts with examples that disagree in answer",
        True,
    ),
    (
        {"prompts": {"dropped_conflicting": 2}},
        "prompts",
        "2 prompts left out as conflicting",
        False,
    ),
    (
        {"embeddings": {"truncated_share": 0.04}},
        "embeddings",
        "4.0% of the prompts cut at embeddings.max_tokens",
        False,
    ),
    (
        {"embeddings": {"truncated_share": 0.06}},
        "embeddings",
        "6.0% of the prompts cut at embeddings.max_tokens",
        True,
    ),
    (
        {"embeddings": {"truncated_share": 0.0, "windows": {"prompts": 1200, "most": 7}}},
        "embeddings",
        "1,200 prompts read in windows, at most 7 each",
        False,
    ),
    (
        {"embeddings": {"equal_after_cutting": 1200}},
        "embeddings",
        "1,200 prompts equal only after cutting",
        True,
    ),
    (
        {"embeddings": {"padded": "a window"}},
        "embeddings",
        "texts ran in padded batches, slower than packs: a window",
        False,
    ),
    (
        {"neighbors": {"recall": 0.968, "method": "ivf"}},
        "neighbors",
        "3.2% of the true neighbours missed (ivf)",
        False,
    ),
    (
        {"reward": {"unknown_pairs": 5}},
        "reward",
        "5 pairs left out: the prompt is not in the set",
        True,
    ),
    (
        {"reward": {"train_pairs": 90, "heldout_pairs": 10, "truncated_pairs": 6}},
        "reward",
        "6 pairs cut at reward.max_tokens",
        True,
    ),
    (
        {"reward": {"beats_chance": False}},
        "reward",
        "the reward is not shown to be better than chance on held-out pairs",
        True,
    ),
    (
        {"reward": {"functions": {"exact": {"no_opinion": 0.25}}}},
        "reward",
        "exact has no opinion on 25.0% of the completions",
        True,
    ),
    (
        {"reward": {"sampled": {"passed_over": 3}}},
        "reward",
        "3 prompts of the check passed over: no room in the context",
        True,
    ),
    (
        {"reward": {"sampled": {"no_opinion": 0.5}}},
        "reward",
        "50.0% of the sampled prompts have no reward",
        True,
    ),
    (
        {"reward": {"sampled": {"frac_reward_zero_std": 0.5}}},
        "reward",
        "50.0% of the sampled groups have one reward",
        False,
    ),
    (
        {"reward": {"sampled": {"clipped_ratio": 0.0001}}},
        "reward",
        "under 0.1% of the sampled completions cut at their limit",
        False,
    ),
    (
        {"train": {"draws": 30, "skipped_draws": 1}},
        "train",
        "1 draw of prompts beyond train.max_prompt_tokens skipped",
        False,
    ),
    (
        {"train": {"steps_with_signal": 20}, "step": 24},
        "train",
        "4 steps without signal: no group had two rewards",
        True,
    ),
    ({"train": {"changed": 0}}, "train", "the policy is unchanged", True),
    (
        {"eval": {"base": {"clipped_ratio": 0.9}, "trained": {"clipped_ratio": 0.004}}},
        "evaluate",
        "completions cut at evaluate.max_completion_tokens: 90.0% untrained, 0.4% trained",
        False,
    ),
    (
        {"eval": {"base": {}, "trained": {"frac_reward_zero_std": 0.25}}},
        "evaluate",
        "groups with one reward: 0.0% untrained, 25.0% trained",
        False,
    ),
    (
        {"eval": {"base": {}, "trained": {"reward": None}}},
        "evaluate",
        "no reward function had an opinion on the trained policy's completions",
        True,
    ),
]


@pytest.mark.parametrize(("metrics", "stage", "text", "serious"), SAID)
def test_what_is_not_zero_is_said(metrics: dict, stage: str, text: str, serious: bool):
    (notice,) = notices(metrics)
    assert (notice.stage, notice.text, notice.serious) == (stage, text, serious)
    assert summary(metrics) == f"; {text}"


def test_zeros_and_other_numbers_say_nothing():
    assert (
        notices({"download": {"examples": 2, "bad_rows": 0, "unusable": {}, "repeated": 1}}) == []
    )
    assert notices({"embeddings": {"truncated_share": 0.0}, "prompts": {"no_text": 0}}) == []
    assert notices({"neighbors": {"recall": 1.0, "method": "exact"}, "step": 3}) == []
    assert notices({"train": {"steps_with_signal": 3, "changed": 1}, "step": 3}) == []
    assert notices({"prompts": "not a section"}) == []


def test_the_default_run_has_these():
    metrics: dict = {}
    for path in sorted((ROOT / "reports/metrics").glob("*.json")):
        metrics |= json.loads(path.read_text())
    metrics |= json.loads((ROOT / "reports/train/metrics.json").read_text())
    assert not any(notice.serious for notice in notices(metrics))
    assert {notice.stage for notice in notices(metrics)} <= {"reward", "evaluate"}
