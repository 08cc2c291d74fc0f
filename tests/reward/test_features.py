from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from isodense.pipeline.errors import ModelError
from isodense.reward import features
from isodense.reward.features import load_features
from isodense.reward.pairs import sides
from isodense.reward.scoring.hidden_states import Features
from tests import tiny
from tests.cached import CHANGES, change
from tests.rl import make_pairs, reward_params

PARAMS = reward_params(batch_tokens=256)
OLD = 8 * 86_400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.policy(tmp_path_factory.mktemp("models") / "policy")


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch):
    """Give 100 answers, in blocks of 16."""
    monkeypatch.setattr(features, "BLOCK", 16)
    return sides(make_pairs(50))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the answers whose features are computed, block by block."""
    counts: list[int] = []
    whole = Features.of_tokens

    def counting(self, asked, answered, on_batch=None):
        rows = whole(self, asked, answered, on_batch)
        counts.append(len(answered))
        return rows

    monkeypatch.setattr(Features, "of_tokens", counting)
    return counts


def load(texts, folder: Path, store: Path, **changes):
    return load_features(*texts, folder, reward_params(**changes), "cpu", store)


def test_the_bytes_are_those_of_features_made_in_one_go(folder: Path, texts, tmp_path: Path):
    rows, cut = load(texts, folder, tmp_path)
    expected = Features(folder, 2, "both", 128, 2048)(*texts)
    assert rows.dtype == np.float32
    assert np.array_equal(rows, expected)
    assert not cut.any()
    again, _ = load(texts, folder, tmp_path)
    assert np.array_equal(again, expected)


@pytest.mark.slow
def test_processes_give_the_same_bytes(folder: Path, texts, tmp_path: Path, monkeypatch):
    rows, _ = load(texts, folder, tmp_path / "one")
    monkeypatch.setenv("ISODENSE_WORKERS", "2")
    assert np.array_equal(load(texts, folder, tmp_path / "two")[0], rows)


def test_a_finished_run_computes_nothing_again(folder: Path, texts, tmp_path: Path, computed):
    load(texts, folder, tmp_path)
    assert len(computed) == -(-sum(computed) // 16)
    computed.clear()
    load(texts, folder, tmp_path, l2=1.0, batch_tokens=64, sampling="density")
    assert computed == []


def test_a_killed_run_goes_on_where_it_stopped(
    folder: Path, texts, tmp_path: Path, computed, monkeypatch: pytest.MonkeyPatch
):
    whole = Features.of_tokens

    def killed(self, asked, answered, on_batch=None):
        if len(computed) == 3:
            raise KeyboardInterrupt
        return whole(self, asked, answered, on_batch)

    with monkeypatch.context() as patch:
        patch.setattr(Features, "of_tokens", killed)
        with pytest.raises(KeyboardInterrupt):
            load(texts, folder, tmp_path)
    assert computed == [16, 16, 16]
    rows, _ = load(texts, folder, tmp_path)
    assert sum(computed) == len(set(zip(map(str, texts[0]), texts[1], strict=True)))
    assert np.array_equal(rows, Features(folder, 2, "both", 128, 2048)(*texts))


@pytest.mark.parametrize("damage", ["cut short", "not a number", "another shape"])
def test_a_damaged_block_is_made_again(folder: Path, texts, tmp_path: Path, computed, damage: str):
    rows, _ = load(texts, folder, tmp_path)
    computed.clear()
    path = sorted(tmp_path.glob("reward-features/*/*.npy"))[1]
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        block = np.load(path)
        block[3, 3] = np.nan
        np.save(path, block if damage == "not a number" else np.zeros((15, 64), dtype=np.float32))
    again, _ = load(texts, folder, tmp_path)
    assert computed == [16]
    assert np.array_equal(again, rows)


@pytest.mark.parametrize("changes", [{"layer": 1}, {"pooling": "last"}, {"max_tokens": 20}])
def test_other_features_are_other_blocks(
    folder: Path, texts, tmp_path: Path, computed, changes: dict
):
    load(texts, folder, tmp_path)
    computed.clear()
    load(texts, folder, tmp_path, **changes)
    assert sum(computed) > 90


def test_another_policy_or_text_is_other_blocks(folder: Path, texts, tmp_path: Path, computed):
    load(texts, folder, tmp_path)
    for policy, answers in (
        (tiny.policy(tmp_path / "policy", seed=1), texts[1]),
        (folder, ["mouse!", *texts[1][1:]]),
    ):
        computed.clear()
        load((texts[0], answers), policy, tmp_path)
        assert sum(computed) > 90


@pytest.mark.parametrize("what", CHANGES)
def test_another_library_device_or_recipe_is_other_blocks(
    folder: Path, texts, tmp_path: Path, computed, what, monkeypatch: pytest.MonkeyPatch
):
    load(texts, folder, tmp_path)
    computed.clear()
    change(what, "isodense.reward.features", "transformers", monkeypatch)
    load(texts, folder, tmp_path)
    assert sum(computed) > 90


def test_cut_conversations_are_told(folder: Path, tmp_path: Path):
    prompts = [tiny.user("egg " * 200), tiny.user("cat")]
    assert load((prompts, ["a", "b"]), folder, tmp_path)[1].tolist() == [True, False]


def test_a_layer_that_is_not_there_is_an_error(folder: Path, texts, tmp_path: Path):
    with pytest.raises(ModelError, match=r"reward\.layer = 9"):
        load(texts, folder, tmp_path, layer=9)


def test_what_nobody_used_for_a_week_is_deleted(folder: Path, texts, tmp_path: Path, computed):
    load(texts, folder, tmp_path)
    load(texts, folder, tmp_path, layer=1)
    entries = tmp_path / "reward-features"
    mine, other = sorted(entries.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in (mine, other):
        past = path.stat().st_mtime - OLD
        os.utime(path, (past, past))
    computed.clear()
    load(texts, folder, tmp_path)
    assert computed == []
    assert list(entries.iterdir()) == [mine]
