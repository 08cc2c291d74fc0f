"""Regions are the communities that were put in, with the words that were put in."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import time
import urllib.request

import numpy as np
import pyarrow.parquet as pq
import pytest

from isodense.neighbors.build import knn_graph
from isodense.neighbors.graph import Graph
from isodense.report.atlas import write_atlas
from isodense.report.prompts import Prompts
from isodense.report.regions import changes, communities, find_regions
from isodense.report.words import distinctive
from tests.report.test_page import ASIDE, HELD, TRAIN, rows, write_artifacts

SIZES = (24, 18, 14)
THEMES = ("boil eggs in hot water", "name an active volcano", "translate thank you to french")


def crowds(seed: int = 0) -> np.ndarray:
    """Return unit vectors in three crowds that lie far apart."""
    rng = np.random.default_rng(seed)
    centres = np.eye(3, 8).repeat(SIZES, axis=0)
    X = centres + 0.1 * rng.normal(size=centres.shape)
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)


def made(weights: np.ndarray, heldout: int = 0) -> Prompts:
    count = sum(SIZES)
    held = np.arange(count + heldout) >= count
    texts = [f"please {theme} {n}" for theme, size in zip(THEMES, SIZES, strict=True)
             for n in range(size)]  # fmt: skip
    texts += ["please boil eggs"] * heldout
    relative = np.where(held, np.nan, np.append(weights, np.ones(heldout)))
    size = len(texts)
    ones, no = np.ones(size, dtype=np.int64), np.zeros(size, dtype=bool)
    ids = [f"{row:032x}" for row in range(size)]
    return Prompts(ids, texts, ones, held, no, ["s"] * size, [""] * size, relative)


def of_crowds(weights, heldout=0):
    graph, count = knn_graph(crowds(), k=12), sum(SIZES)
    coordinates = np.repeat([[0, 0], [5, 0], [0, 5]], SIZES, axis=0).astype(np.float32)
    coordinates = np.concatenate([coordinates, np.zeros((heldout, 2), np.float32)])
    near = np.zeros((heldout, 1), np.int32)  # their nearest is the first prompt
    of_heldout = Graph(near, np.ones((heldout, 1), np.float32))
    return find_regions(made(weights, heldout), graph, of_heldout, coordinates), count


def test_each_crowd_is_a_region_with_its_own_words_share_and_place():
    weights = np.repeat([0.5, 1.0, 2.5], SIZES)
    mean = weights.mean()
    weights /= mean
    (found, numbers), _ = of_crowds(weights)
    np.testing.assert_array_equal(numbers, np.repeat([0, 1, 2], SIZES))
    assert [one.prompts for one in found] == list(SIZES)
    for one, theme in zip(found, THEMES, strict=True):
        assert {*one.name.split(" · ")} <= {*theme.split()}
        assert one.name.split(" · ") == one.words[:3]
    assert [(one.x, one.y) for one in found] == [(0, 0), (5, 0), (0, 5)]
    np.testing.assert_allclose([one.uniform for one in found], np.array(SIZES) / sum(SIZES))
    np.testing.assert_allclose([one.factor for one in found], np.array([0.5, 1, 2.5]) / mean)
    assert f"{found[2].name} (2.2 ×); less often than uniformly: {found[0].name}" in changes(found)


def test_a_heldout_prompt_is_in_the_region_of_its_nearest():
    (_, numbers), count = of_crowds(np.ones(sum(SIZES)), heldout=3)
    assert numbers[count:].tolist() == [0, 0, 0]


def test_communities_repeat():
    graph = knn_graph(crowds(1), k=12)
    np.testing.assert_array_equal(communities(graph), communities(graph))


def test_a_graph_without_neighbours_is_one_region():
    assert communities(Graph.empty(3, 0)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["这是机器学习的问题", "机器学习很难"], {"机器学习"}),
        (["データベースを作る", "データベースとは何"], {"データベース"}),
        (["Как сварить яйцо", "яйцо вкрутую"], {"яйцо"}),
        (["अंडा कैसे उबालें", "अंडा उबालना"], {"अंडा"}),
        (["ডিম সেদ্ধ", "ডিম ভাজা"], {"ডিম"}),
        (["달걀 삶는 법", "달걀 요리"], {"달걀"}),
    ],
)
def test_words_of_other_scripts(texts, words):
    first, second = distinctive([texts, ["name a volcano", "a volcano in Italy"]])
    assert words <= set(first)
    assert second[0] == "volcano"


def test_one_long_text_does_not_name_a_class():
    eggs = ["boil eggs", "fry eggs", "spam " * 100]
    assert distinctive([eggs, ["name a volcano"]])[0][0] == "eggs"


def test_texts_without_words_have_no_words():
    assert distinctive([["12 + 3", "..."], ["4 * 5"]]) == [[], []]
    assert distinctive([]) == []
    assert changes([]) == ""


# --- for Embedding Atlas --------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    made = write_artifacts(tmp_path / "data")
    folders = (made.prompts, made.density, made.neighbors, made.map)
    assert write_atlas(*folders, tmp_path / "atlas.parquet") == TRAIN + HELD
    return tmp_path / "atlas.parquet"


def test_the_table_has_every_prompt_with_what_it_weighs(table):
    found = pq.read_table(table)
    prompts = rows(True, ASIDE)
    assert found["id"].to_pylist() == [row["id"] for row in prompts]
    assert found["text"].to_pylist() == [row["text"] for row in prompts]
    held = [row for row, split in enumerate(found["split"].to_pylist()) if split == "heldout"]
    assert held == sorted(ASIDE)
    empty = [row for row, weight in enumerate(found["weight"].to_pylist()) if weight is None]
    assert empty == held
    assert np.nanmean(found["weight"].to_numpy()) == pytest.approx(1, abs=1e-5)
    assert found["x"].to_pylist()[7] == 1
    assert found["y"].to_pylist()[7] == 1
    assert None not in found["region"].to_pylist()


@pytest.mark.slow
def test_embedding_atlas_opens_it_with_no_more_than_x_and_y(table):
    program = shutil.which("embedding-atlas")
    if program is None:
        pytest.skip("needs `pip install embedding-atlas`, in an environment of its own if need be")
    with subprocess.Popen(
        [program, str(table), "--x", "x", "--y", "y", "--host", "127.0.0.1", "--port", "50551"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            shown = json.loads(_answer("http://127.0.0.1:50551/data/metadata.json"))
            assert shown["props"]["data"]["projection"] == {"x": "x", "y": "y"}
            served = pq.read_table(
                io.BytesIO(_answer("http://127.0.0.1:50551/data/dataset.parquet"))
            )
            assert served["id"].to_pylist() == pq.read_table(table)["id"].to_pylist()
        finally:
            process.kill()


def _answer(address: str) -> bytes:
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(address) as answer:
                return answer.read()
        except OSError:
            assert time.monotonic() < end, "it does not answer"
            time.sleep(0.5)
