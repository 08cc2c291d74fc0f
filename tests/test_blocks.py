"""Blocks of a search: resumed, shared by ranks, grown; always the bytes of one go."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from isodense import blocks
from isodense.blocks import Search, Side, exact_search, keep_last, load_last, search_blocks
from isodense.exact import Exact, nearest
from isodense.ranks import Rank
from tests.test_exact import unit

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

    return search_blocks(given, prepare, folder, rank, size=64)


def test_blocks_give_the_bytes_of_one_go(tmp_path):
    assert same(run(tmp_path), at_once(sides()))


def test_rows_may_be_taken_in_any_order(tmp_path):
    order = np.random.default_rng(0).permutation(len(X))
    assert same(run(tmp_path, order=order), at_once(sides()))


def test_an_interrupted_search_goes_on_where_it_was(tmp_path):
    search, seen = exact_search(sides()[0], None, "cpu"), []

    def until_the_third(side, rows, told):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(rows[0])
        return search.find(side, rows, told)

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
    monkeypatch.setattr("isodense.ranks.SILENT", 0.3)
    with pytest.raises(Exception, match=r"rank 1 \(never seen\).* 3 blocks are missing"):
        run(tmp_path, rank=Rank(0, 2))


def kept(folder, count, held, k=7):
    """Keep the graph of the first rows."""
    given = sides(X[:count], HELD[:held], k)
    keep_last(folder, given, at_once(given))


@pytest.mark.parametrize(
    ("count", "held", "k"),
    [(290, 30, 7), (299, 29, 7), (42, 3, 7), (5, 1, 7), (300, 30, 7), (300, 2, 7), (150, 30, 200)],
)
def test_a_grown_graph_has_the_bytes_of_a_new_one(tmp_path, count, held, k):
    kept(tmp_path / "last", count, held, k)
    given = sides(k=k)
    last = load_last(tmp_path / "last", given)
    assert last.rows == count
    assert same(run(tmp_path / "run", given, last=last), at_once(given))


def test_growing_compares_old_rows_with_new_ones_only(tmp_path, monkeypatch):
    kept(tmp_path / "last", 290, 30)
    compared = []
    real = Exact.nearest

    def counting(self, queries, *rest, **settings):
        compared.append(len(queries) * len(self.X))
        return real(self, queries, *rest, **settings)

    last = load_last(tmp_path / "last", sides())
    monkeypatch.setattr(Exact, "nearest", counting)
    run(tmp_path / "run", last=last)
    assert sum(compared) == 290 * 10 + 10 * 300 + 30 * 10


@pytest.mark.parametrize("change", ["row", "fewer", "heldout", "stump", "none"])
def test_a_graph_of_other_rows_is_not_grown(tmp_path, change):
    if change != "none":
        kept(tmp_path / "last", 290, 20)
    train, heldout = X.copy(), HELD.copy()
    if change == "row":
        train[289] = train[0]
    if change == "heldout":
        heldout[0] = heldout[1]
    if change == "stump":
        (tmp_path / "last" / "train-indices.npy").write_bytes(b"\x93NUMPY")
    given = sides(train[:200] if change == "fewer" else train, heldout)
    assert load_last(tmp_path / "last", given) is None


def test_no_rows_are_no_trouble(tmp_path):
    given = [Side("train", X[:1], 0), Side("heldout", HELD[:0], 1)]
    graphs = search_blocks(given, lambda: exact_search(given[0], None, "cpu"), tmp_path, ALONE)
    assert [graph.indices.shape for graph in graphs] == [(1, 0), (0, 1)]
    assert blocks.ROWS > 1
