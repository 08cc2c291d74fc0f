"""Prompts that are equal only in what the encoder reads are counted, and too many are refused."""

from __future__ import annotations

import json

import pytest

from isodense.embeddings.build import embed
from isodense.embeddings.truncation import cut_prompts, equal_after_cutting, require_few
from isodense.pipeline.cache import Entry
from isodense.pipeline.errors import ModelError
from tests import tiny
from tests.embeddings.test_build import PARAMS
from tests.tables import publish_prompts

SUFFIX = " ".join(tiny.WORDS * 3)  # more tokens than are read
ANSWERS = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.encoder(tmp_path_factory.mktemp("model") / "encoder")


def run(tmp_path, folder, texts, name="out"):
    pairs = ({"prompt": tiny.user(text), **ANSWERS, "source": "test"} for text in texts)
    publish_prompts(pairs, tmp_path / "prompts", 0.2)
    params = PARAMS.model_copy(update={"max_tokens": 32, "rows_per_shard": 8})
    return embed(tmp_path / "prompts", folder, params, "cpu", tmp_path / "cache", tmp_path / name)


def test_problems_with_one_long_suffix_stop_the_stage(tmp_path, folder):
    texts = [f"problem {i} {SUFFIX}" for i in range(30)]
    with pytest.raises(ModelError, match=r"30 of 50 prompts \(60%\) are equal") as caught:
        run(tmp_path, folder, texts + tiny.texts(20))
    assert "raise embeddings.max_tokens" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_few_are_counted_over_all_shards_and_none_leave_the_metrics_as_they_were(tmp_path, folder):
    plain = tiny.texts(60)
    assert "equal_after_cutting" not in run(tmp_path / "none", folder, plain)
    texts = [f"red {SUFFIX}", *plain, f"blue {SUFFIX}", f"{SUFFIX} alone"]
    report = run(tmp_path, folder, texts)
    assert report["equal_after_cutting"] == 2  # in the first shard and in the last
    assert run(tmp_path, folder, texts, "again")["equal_after_cutting"] == 2  # from the cache
    assert report["prompts"] == 63


def test_shards_of_a_version_without_hashes_are_counted_and_not_embedded_again(tmp_path, folder):
    texts = [f"red {SUFFIX}", *tiny.texts(60), f"blue {SUFFIX}"]
    run(tmp_path, folder, texts)
    for path in (tmp_path / "cache/embeddings").glob("*/counts.json"):
        counts = json.loads(path.read_text())
        counts.pop("cut_prompts", None)
        with Entry(path.parent).writing("counts.json") as made:
            made.write_text(json.dumps(counts))
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/*/*/rows.npy")}
    assert run(tmp_path, folder, texts, "again")["equal_after_cutting"] == 2
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())


def test_what_was_equal_before_cutting_is_not_counted():
    ids = [[1, 2], [1, 2], [1, 2], [3, 4], [3, 4], [5]]
    whole = {0: [9, 1, 2], 1: [8, 1, 2], 3: [7, 3, 4], 4: [7, 3, 4]}
    pairs = cut_prompts(ids, whole, max_tokens=2)
    assert len(pairs) == 5  # the last is shorter
    assert equal_after_cutting(pairs) == 3  # 0, 1, and 2, which is what is left of them
    assert equal_after_cutting([]) == 0


def test_a_share_of_five_percent_is_let_pass():
    require_few(5, 100, 256)
    with pytest.raises(ModelError, match="6 of 100"):
        require_few(6, 100, 256)
