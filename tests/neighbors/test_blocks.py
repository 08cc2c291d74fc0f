"""Blocks of a search: resumed, shared by ranks, grown; always the bytes of one go."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from isodense.neighbors import blocks
from isodense.neighbors.blocks import (
    Search,
    Side,
    exact_search,
    fingerprint,
    finish,
    load_last,
    search_blocks,
)
from isodense.neighbors.exact import Exact, nearest
from isodense.pipeline.cache import Entry, Store
from isodense.pipeline.errors import ArtifactError
from isodense.pipeline.executor import Rank
from tests.neighbors.test_exact import unit

ALONE = Rank()
X = unit(300)
X[40:44] = X[40]
HELD = unit(30, seed=1)


def sides(train=X, heldout=HELD, k=7):
    return [
        Side("train", train, min(k, len(train) - 1)),
        Side("heldout", heldout, min(k, len(train))),
    ]


def same(one, two):
    return all(
        a.indices.tobytes() == b.indices.tobytes()
        and a.distances.tobytes() == b.distances.tobytes()
        for a, b in zip(one, two, strict=True)
    )


def at_once(given):
    train, heldout = given
    own = np.arange(len(train.vectors))
    return [
        nearest(train.vectors, train.vectors, train.k, own=own, device="cpu"),
        nearest(heldout.vectors, train.vectors, heldout.k, device="cpu"),
    ]


def run(folder, given=None, rank=ALONE, find=None, last=None, order=None):
    given = given or sides()

    def prepare():
        search = exact_search(given[0], last, "cpu")
        return Search(search.order if order is None else order, find or search.find)

    return search_blocks(given, prepare, Entry(folder), rank, size=64)


def test_blocks_give_the_bytes_of_one_go(tmp_path):
    assert same(run(tmp_path), at_once(sides()))


def test_rows_may_be_taken_in_any_order(tmp_path):
    order = np.random.default_rng(0).permutation(len(X))
    assert same(run(tmp_path, order=order), at_once(sides()))


def test_an_interrupted_search_goes_on_where_it_was(tmp_path):
    search, seen = exact_search(sides()[0], None, "cpu"), []

    def until_the_third(side, rows, done):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(rows[0])
        return search.find(side, rows, done)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, find=until_the_third)
    (tmp_path / "train-00001.safetensors").write_bytes(b"cut off by a full disk")
    again = []
    found = run(tmp_path, find=lambda s, r, t: again.append((s.name, r[0])) or search.find(s, r, t))
    assert again == [("train", 64), ("train", 192), ("train", 256), ("heldout", 0)]
    assert same(found, at_once(sides()))
    finished = run(tmp_path, find=lambda *_: pytest.fail("everything is there"))
    assert same(finished, found)


def test_ranks_share_the_blocks_and_the_first_one_joins_them(tmp_path):
    search, mine = exact_search(sides()[0], None, "cpu"), {0: [], 1: [], 2: []}

    def find(index):
        return lambda s, r, t: mine[index].append(r[0]) or search.find(s, r, t)

    others = [
        threading.Thread(target=run, args=(tmp_path, None, Rank(index, 3), find(index)))
        for index in (1, 2)
    ]
    for thread in others:
        thread.start()
    found = run(tmp_path, rank=Rank(0, 3), find=find(0))
    for thread in others:
        thread.join()
    assert [len(mine[index]) for index in range(3)] == [2, 2, 2]
    assert same(found, at_once(sides()))


def test_a_rank_that_falls_silent_is_named_with_its_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("isodense.pipeline.executor.TIMEOUT", 0.3)
    with pytest.raises(Exception, match=r"rank 1 \(never seen\).* 3 blocks are missing"):
        run(tmp_path, rank=Rank(0, 2))


def finished(store, count, held, k=7, recipe="r"):
    """Search among the first rows, as an earlier run did."""
    given = sides(X[:count], HELD[:held], k)
    entry = Entry(store / f"{recipe}-{count}-{held}")
    search_blocks(given, lambda: exact_search(given[0], None, "cpu"), entry, ALONE)
    finish(entry, recipe, given, [fingerprint(side.vectors) for side in given])


@pytest.mark.parametrize(
    ("count", "held", "k"),
    [(290, 30, 7), (299, 29, 7), (42, 3, 7), (5, 1, 7), (300, 30, 7), (300, 2, 7), (150, 30, 200)],
)
def test_a_grown_graph_has_the_bytes_of_a_new_one(tmp_path, count, held, k):
    finished(tmp_path, count, held, k)
    given = sides(k=k)
    last = load_last(Store(tmp_path, ""), "r", given)
    assert last.rows == count
    assert same(run(tmp_path / "run", given, last=last), at_once(given))


def test_the_largest_finished_graph_that_fits_is_grown(tmp_path):
    for count in (100, 250, 200):
        finished(tmp_path, count, 30)
    finished(tmp_path, 280, 30, recipe="another")
    other = sides(X[::-1][:290])
    entry = Entry(tmp_path / "other")
    search_blocks(other, lambda: exact_search(other[0], None, "cpu"), entry, ALONE)
    finish(entry, "r", other, [fingerprint(side.vectors) for side in other])
    store = Store(tmp_path, "")
    assert load_last(store, "r", sides()).rows == 250
    assert load_last(store, "r", sides(X[:240])).rows == 200
    assert load_last(store, "none", sides()) is None
    block = tmp_path / "r-250-30/train-00000.safetensors"
    block.write_bytes(block.read_bytes()[:-1])
    assert load_last(store, "r", sides()).rows == 200


def test_growing_compares_old_rows_with_new_ones_only(tmp_path, monkeypatch):
    finished(tmp_path, 290, 30)
    compared = []
    real = Exact.nearest

    def counting(self, queries, *rest, **settings):
        compared.append(len(queries) * len(self.X))
        return real(self, queries, *rest, **settings)

    last = load_last(Store(tmp_path, ""), "r", sides())
    monkeypatch.setattr(Exact, "nearest", counting)
    run(tmp_path / "run", last=last)
    assert sum(compared) == 290 * 10 + 10 * 300 + 30 * 10


def test_a_first_rank_without_work_still_prepares_for_the_others(tmp_path):
    run(tmp_path)
    for number in (1, 3):  # both of the second rank
        (tmp_path / f"train-0000{number}.safetensors").unlink()
    ready = threading.Event()
    search = exact_search(sides()[0], None, "cpu")

    def second():
        search_blocks(sides(), lambda: ready.wait(20) and search, Entry(tmp_path), Rank(1, 2), 64)

    other = threading.Thread(target=second)
    other.start()
    found = search_blocks(sides(), lambda: ready.set() or search, Entry(tmp_path), Rank(0, 2), 64)
    other.join()
    assert same(found, at_once(sides()))


def test_blocks_that_miss_a_row_are_never_joined(tmp_path):
    twice = np.arange(len(X))
    twice[70] = 0
    with pytest.raises(ArtifactError, match="do not hold each row once"):
        run(tmp_path, order=twice)


@pytest.mark.parametrize("change", ["row", "fewer", "heldout", "none"])
def test_a_graph_of_other_rows_is_not_grown(tmp_path, change):
    if change != "none":
        finished(tmp_path, 290, 20)
    train, heldout = X.copy(), HELD.copy()
    if change == "row":
        train[289] = train[0]
    if change == "heldout":
        heldout[0] = heldout[1]
    given = sides(train[:200] if change == "fewer" else train, heldout)
    assert load_last(Store(tmp_path, ""), "r", given) is None


def test_no_rows_are_no_trouble(tmp_path):
    given = [Side("train", X[:1], 0), Side("heldout", HELD[:0], 1)]
    search = exact_search(given[0], None, "cpu")
    graphs = search_blocks(given, lambda: search, Entry(tmp_path), ALONE)
    assert [graph.indices.shape for graph in graphs] == [(1, 0), (0, 1)]
    assert blocks.ROWS > 1
