"""Policies of many architectures through what the stages compute, against whole forward passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from isodense.models.inference.backbone import FAILURES, Backbone
from isodense.models.inference.generation import copies_caches
from isodense.models.inference.policy import load_policy
from isodense.pipeline.errors import IsodenseError
from isodense.reward.scoring.hidden_states import Features
from isodense.reward.scoring.padded import Padded
from tests.architecture_trials import LAYER, LIMITS, STAGES
from tests.architectures import ALL, checkpoint
from tests.tiny import edit

QUICK = {  # one of each kind that failed, or was wrong, before
    "embeddings": ("bloom", "qwen3_vl", "mamba", "nemotron_h", "t5"),
    "reward": ("mpt", "gpt_oss", "gemma4_text", "qwen3_next", "jamba", "mamba", "llava", "rwkv"),
    "evaluate": ("lfm2", "qwen3_next", "mamba", "recurrent_gemma", "minimax", "llava", "rwkv"),
}


def tried(stage: str, kind: str, folder: Path) -> None:
    if (stage, kind) not in LIMITS:
        STAGES[stage](folder)
        return
    with pytest.raises((*FAILURES, IsodenseError), match=LIMITS[stage, kind]):
        STAGES[stage](folder)


@pytest.mark.parametrize(
    ("stage", "kind"), [(stage, kind) for stage, kinds in QUICK.items() for kind in kinds]
)
def test_a_stage_computes_what_whole_forward_passes_do(tmp_path: Path, stage: str, kind: str):
    tried(stage, kind, checkpoint(tmp_path / kind, kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
@pytest.mark.filterwarnings("ignore")
def test_every_architecture_gets_through_or_is_refused_in_a_line(tmp_path: Path, kind: str):
    folder = checkpoint(tmp_path / kind, kind)
    for stage in STAGES:
        tried(stage, kind, folder)


PACKS, PADDED, WHOLE = (True, True), (False, True), (False, False)  # packed, sharing prompts


@pytest.mark.parametrize(
    ("kind", "how"),
    [("llama", PACKS), ("gptj", PADDED), ("nemotron", PADDED), ("mpt", WHOLE), ("lfm2", WHOLE)],
)
def test_prompts_run_once_where_the_answers_stay_the_same(tmp_path: Path, kind: str, how):
    folder = checkpoint(tmp_path / kind, kind)
    features = Features(folder, LAYER, "both", 64, 512)
    assert (features.padded is None, features.shares_prompts) == how
    assert copies_caches(load_policy(folder), 2) == (kind != "lfm2")


@pytest.mark.parametrize(("tokens", "how"), [(128, PACKS), (129, WHOLE)])
def test_a_window_shorter_than_a_conversation_runs_it_whole(tmp_path, tokens, how, caplog):
    folder = checkpoint(tmp_path / "mistral", "mistral")
    edit(folder / "config.json", sliding_window=128)
    with caplog.at_level("INFO", logger="isodense"):
        features = Features(folder, LAYER, "last", tokens, 512)
    assert (features.padded is None, features.shares_prompts) == how
    assert ("a window shorter than max_tokens, 129" in caplog.text) == (how == WHOLE)


@pytest.mark.parametrize(("tokens", "shared"), [(112, True), (120, False)])
def test_padding_counts_in_the_window_of_a_cache(tmp_path, tokens, shared):
    folder = checkpoint(tmp_path / "mistral", "mistral")
    edit(folder / "config.json", sliding_window=128)
    backbone = Backbone(folder, LAYER, "reward.layer", "cpu")
    assert Padded(backbone, "last", 2, 512).may_share(tokens) == shared
