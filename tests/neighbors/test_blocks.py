"""Blocks of a search: resumed, shared, grown, slice by slice; always the bytes of one go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from isodense.neighbors import blocks
from isodense.neighbors.blocks import (
    ExactSearch,
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
from tests.neighbors.test_exact import unit

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


def run(folder, given=None, last=None, order=None, most=None):
    given = given or sides()

    def prepare():
        search = exact_search(given[0], last, "cpu", most)
        return search if order is None else replace(search, order=order)

    return search_blocks(given, prepare, Entry(folder), size=64)


def test_blocks_give_the_bytes_of_one_go(tmp_path):
    assert same(run(tmp_path), at_once(sides()))


def test_rows_may_be_taken_in_any_order(tmp_path):
    order = np.random.default_rng(0).permutation(len(X))
    assert same(run(tmp_path, order=order), at_once(sides()))


@pytest.mark.parametrize("most", [7, 8, 100, 299, 300, 1000])
def test_slices_give_the_bytes_of_one_go(tmp_path, most):
    assert same(run(tmp_path, most=most), at_once(sides()))
    assert not list(tmp_path.glob("*.part.*"))
    wide = sides(k=200)  # more than a slice has
    assert same(run(tmp_path / "wide", wide, most=max(most, 20)), at_once(wide))


@pytest.fixture
def searches(monkeypatch):
    """What is searched for: the first row of each task, and its slice."""
    seen, real = [], ExactSearch.__call__

    def watched(self, queries, own, k, start, X):
        if len(seen) == watched.until:
            raise KeyboardInterrupt
        seen.append((len(queries), start))
        return real(self, queries, own, k, start, X)

    watched.until = None
    monkeypatch.setattr(ExactSearch, "__call__", watched)
    return watched, seen


def test_an_interrupted_search_goes_on_where_it_was(tmp_path, searches):
    watched, seen = searches
    watched.until = 3
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    (tmp_path / "train-64-to-127.safetensors").write_bytes(b"cut off by a full disk")
    watched.until, seen[:] = None, []
    found = run(tmp_path)
    assert seen == [(64, 0), (64, 0), (44, 0), (30, 0)]  # the second, the two last, the held-out
    assert same(found, at_once(sides()))
    seen[:] = []
    assert same(run(tmp_path), found)
    assert not seen


def test_an_interrupted_search_keeps_the_slices_that_were_finished(tmp_path, searches):
    watched, seen = searches
    watched.until = 8  # six blocks in the first slice, two in the second
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, most=100)
    part = tmp_path / "train-64-to-127.part.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    watched.until, seen[:] = None, []
    assert same(run(tmp_path, most=100), at_once(sides()))
    starts = [start for _, start in seen]
    assert [starts.count(start) for start in (0, 100, 200)] == [1, 5, 6]
    watched.until, seen[:] = 8, []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "other", most=100)
    watched.until, seen[:] = None, []
    assert same(run(tmp_path / "other", most=90), at_once(sides()))  # other slices: from nothing
    assert len(seen) == 6 * 4


def finished(store, count, held, k=7, recipe="r", size=blocks.ROWS):
    """Search among the first rows, as an earlier run did."""
    given = sides(X[:count], HELD[:held], k)
    entry = Entry(store / f"{recipe}-{count}-{held}")
    search_blocks(given, lambda: exact_search(given[0], None, "cpu"), entry, size)
    finish(entry, recipe, given, [fingerprint(side.vectors) for side in given], size)


@pytest.mark.parametrize(
    ("count", "held", "k"),
    [(290, 30, 7), (299, 29, 7), (42, 3, 7), (5, 1, 7), (300, 30, 7), (300, 2, 7), (150, 30, 200)],
)
def test_a_grown_graph_has_the_bytes_of_a_new_one(tmp_path, count, held, k):
    finished(tmp_path, count, held, k, size=count // 2)
    given = sides(k=k)
    last = load_last(Store(tmp_path, ""), "r", given)
    assert last.rows == count
    for most in (None, 31):
        assert same(run(tmp_path / f"{most}", given, last=last, most=most), at_once(given))


def test_blocks_of_one_size_are_never_taken_for_those_of_another(tmp_path):
    given = sides(X[:50], unit(140, seed=2))  # held-out ones: two blocks of 70, or of 100 and 40
    for size in (70, 100, 50):
        search_blocks(given, lambda: exact_search(given[0], None, "cpu"), Entry(tmp_path), size)
        (tmp_path / f"heldout-{size}-to-{min(2 * size, 140) - 1}.safetensors").unlink()
    for size in (70, 100, 50):
        run = search_blocks(
            given, lambda: exact_search(given[0], None, "cpu"), Entry(tmp_path), size
        )
        assert same(run, at_once(given))


def test_a_graph_whose_blocks_have_another_size_now_is_grown(tmp_path, caplog):
    caplog.set_level("INFO", "isodense")
    finished(tmp_path, 290, 30, size=64)
    store = Store(tmp_path, "")
    for path in tmp_path.rglob("train-64-to-127.*"):
        path.unlink()  # of the size of before
    assert load_last(store, "r", sides()) is None
    assert not caplog.text
    finished(tmp_path, 290, 30, size=100)
    assert load_last(store, "r", sides()).rows == 290
    assert "growing" in caplog.text


@pytest.mark.parametrize("first", [None, 250, 280])
@pytest.mark.parametrize("then", [None, 250, 280])
def test_slices_go_on_from_what_they_have_found_only_with_the_graph_that_they_grew(
    tmp_path, searches, first, then
):
    watched, seen = searches
    lasts = {None: None}
    for count, held in ((250, 30), (280, 20)):
        finished(tmp_path / f"{count}", count, held)
        lasts[count] = load_last(Store(tmp_path / f"{count}", ""), "r", sides())
    watched.until = len(seen) + 5
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", last=lasts[first], most=100)
    assert list((tmp_path / "run").glob("*.part.safetensors"))
    watched.until = None
    assert same(run(tmp_path / "run", last=lasts[then], most=100), at_once(sides()))


def test_the_largest_finished_graph_that_fits_is_grown(tmp_path):
    for count in (100, 250, 200):
        finished(tmp_path, count, 30)
    finished(tmp_path, 280, 30, recipe="another")
    other = sides(X[::-1][:290])
    entry = Entry(tmp_path / "other")
    search_blocks(other, lambda: exact_search(other[0], None, "cpu"), entry)
    finish(entry, "r", other, [fingerprint(side.vectors) for side in other])
    store = Store(tmp_path, "")
    assert load_last(store, "r", sides()).rows == 250
    assert load_last(store, "r", sides(X[:240])).rows == 200
    assert load_last(store, "none", sides()) is None
    block = tmp_path / "r-250-30/train-0-to-249.safetensors"
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
    graphs = search_blocks(given, lambda: search, Entry(tmp_path))
    assert [graph.indices.shape for graph in graphs] == [(1, 0), (0, 1)]
    assert blocks.ROWS > 1
