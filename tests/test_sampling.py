"""Draws follow the weights, and the stream does not depend on how it is cut up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.utils.data import DataLoader

from isodense.errors import IsodenseError
from isodense.graph import Graph
from isodense.neighbors import knn_graph
from isodense.sampling import DistributedWeightedSampler, draw, select

WEIGHTS = np.array([0.0, 3.0, 1.0, 0.0, 2.5, 0.5, 0.0])


def test_frequencies_follow_the_weights():
    draws = draw(WEIGHTS, 50_000, seed=3)
    counts = np.bincount(draws, minlength=len(WEIGHTS))
    used = WEIGHTS > 0
    assert not counts[~used].any()
    assert chisquare(counts[used], 50_000 * WEIGHTS[used] / WEIGHTS.sum()).pvalue > 1e-4
    assert draws.dtype == np.int64


def test_successive_draws_are_independent():
    draws = draw(np.ones(4), 40_000, seed=1)
    table = np.bincount(4 * draws[:-1] + draws[1:], minlength=16)
    assert chisquare(table).pvalue > 1e-4


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 2**31))
def test_any_piece_of_the_stream_is_the_same(start, size, seed):
    whole = draw(WEIGHTS, 100, seed)
    assert (draw(WEIGHTS, size, seed, start) == whole[start : start + size]).all()


def test_seeds_name_different_streams():
    assert (draw(np.ones(1000), 50, 0) != draw(np.ones(1000), 50, 1)).sum() > 40


def test_more_prompts_than_torch_multinomial_takes():
    weights = np.zeros(2**24 + 10)
    weights[[5, -1]] = 1, 3
    draws = draw(weights, 4000, seed=0)
    assert set(draws.tolist()) == {5, 2**24 + 9}
    assert (draws > 5).mean() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    "weights", [[], [[1.0]], [0.0, 0.0], [1.0, -1.0], [1.0, np.nan], [np.inf, 1.0]]
)
def test_unusable_weights_are_refused(weights):
    with pytest.raises(IsodenseError):
        draw(np.array(weights), 1)


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_ranks_share_one_stream_at_any_world_size(replicas):
    ranks = [DistributedWeightedSampler(WEIGHTS, 24, replicas, rank, 9) for rank in range(replicas)]
    for epoch in range(2):
        taken = np.stack([list(rank) for rank in ranks], axis=1).ravel()
        assert (taken == draw(WEIGHTS, 24, 9, epoch * 24)).all()


def test_a_sampler_resumes_in_the_middle_of_an_epoch_and_at_another_world_size():
    whole = DistributedWeightedSampler(WEIGHTS, 24, seed=9)
    expected = [*whole, *whole]
    cut = DistributedWeightedSampler(WEIGHTS, 24, seed=9)
    stream = iter(cut)
    first = [next(stream) for _ in range(10)]
    state = cut.state_dict()
    ranks = [DistributedWeightedSampler(WEIGHTS, 24, 2, rank, 9) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    rest = np.stack([[*rank, *rank] for rank in ranks], axis=1).ravel().tolist()
    assert first + rest == expected


def test_a_look_ahead_does_not_shorten_the_epoch():
    sampler = DistributedWeightedSampler(WEIGHTS, 12, seed=2)
    next(iter(sampler))
    assert list(sampler) == draw(WEIGHTS, 12, 2).tolist()


def test_draws_that_do_not_divide_among_the_ranks_are_refused():
    with pytest.raises(IsodenseError, match="10 draws were taken, not a multiple of 4"):
        DistributedWeightedSampler(WEIGHTS, 12, 4).load_state_dict({"epoch": 0, "drawn": 10})


@pytest.mark.parametrize("wrong", [{"size": -1}, {"start": -3}, {"seed": -1}])
def test_negative_numbers_are_refused(wrong):
    with pytest.raises(IsodenseError, match="must not be negative"):
        draw(WEIGHTS, **{"size": 1} | wrong)


def test_epochs_follow_a_data_loader():
    sampler = DistributedWeightedSampler(WEIGHTS, 6, seed=2)
    loader = DataLoader(list(range(7)), batch_size=2, sampler=sampler)
    assert len(loader) == 3
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        taken = [int(item) for batch in loader for item in batch]
        assert taken == draw(WEIGHTS, 6, 2, epoch * 6).tolist()


def test_impossible_samplers_are_refused():
    with pytest.raises(IsodenseError, match="not a multiple of 2"):
        DistributedWeightedSampler(WEIGHTS, 7, 2)
    with pytest.raises(IsodenseError, match=r"rank 2 is not in 0 … 1"):
        DistributedWeightedSampler(WEIGHTS, 8, 2, 2)


def clusters():
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(20, 16)), 20, axis=0) + 0.05 * rng.normal(size=(400, 16))
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)


def test_a_spread_subset_covers_more_clusters_than_chance():
    graph = knn_graph(clusters(), 30)
    covered = {
        spread: np.mean(
            [len({i // 20 for i in select(np.ones(400), graph, 20, spread, s)}) for s in range(10)]
        )
        for spread in (True, False)
    }
    assert covered[True] > covered[False] + 2


def test_a_subset_has_no_repeats_and_can_be_everything():
    graph = knn_graph(clusters(), 30)
    assert sorted(select(np.ones(400), graph, 400, seed=1)) == list(range(400))
    copies = knn_graph(np.repeat(clusters()[:1], 8, axis=0), 7)
    assert sorted(select(np.ones(8), copies, 8)) == list(range(8))
    assert (select(np.ones(400), graph, 9, seed=1) == select(np.ones(400), graph, 9, seed=1)).all()


def test_a_subset_follows_the_weights():
    graph = Graph(np.empty((3, 0), np.int32), np.empty((3, 0), np.float32))
    first = [select(np.array([1.0, 0, 3]), graph, 1, seed=seed)[0] for seed in range(400)]
    assert np.bincount(first, minlength=3)[1] == 0
    assert np.mean(np.array(first) == 2) == pytest.approx(0.75, abs=0.07)


def test_an_impossible_subset_is_refused():
    graph = knn_graph(clusters(), 5)
    for weights, size in ((np.ones(3), 1), (np.ones(400), 401), (np.eye(400)[0], 2)):
        with pytest.raises(IsodenseError, match="weights over a graph of 400"):
            select(weights, graph, size)
