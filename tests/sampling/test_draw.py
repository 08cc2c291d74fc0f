"""Draws follow the weights, and the stream does not depend on how it is cut up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.utils.data import DataLoader

from isodense.neighbors.build import knn_graph
from isodense.neighbors.graph import Graph
from isodense.pipeline.errors import IsodenseError
from isodense.sampling import draw as sampling
from isodense.sampling.draw import DistributedWeightedSampler, draw, select

WEIGHTS = np.array([0.0, 3.0, 1.0, 0.0, 2.5, 0.5, 0.0])
MODES = [(True, 0.0), (True, 0.3), (False, 0.0), (False, 0.3)]  # replacement, uniform


def agrees(observed, expected):
    """Chi-square of counts against probabilities; cells of probability 0 have to be empty."""
    observed, expected = np.ravel(observed), np.ravel(expected)
    possible = expected > 0
    assert not observed[~possible].any()
    assert expected.sum() == pytest.approx(1)
    return chisquare(observed[possible], observed.sum() * expected[possible]).pvalue > 1e-4


def table(first, second, n):
    return np.bincount(n * np.asarray(first) + second, minlength=n * n)


def test_frequencies_follow_the_weights():
    draws = draw(WEIGHTS, 50_000, seed=3)
    counts = np.bincount(draws, minlength=len(WEIGHTS))
    used = WEIGHTS > 0
    assert not counts[~used].any()
    assert chisquare(counts[used], 50_000 * WEIGHTS[used] / WEIGHTS.sum()).pvalue > 1e-4
    assert draws.dtype == np.int64


def test_streams_stay_what_they_were():
    recorded = [5, 5, 4, 1, 2, 4, 4, 1, 1, 1, 4, 5, 4, 5, 5, 1]
    assert draw(WEIGHTS, 16, seed=7, start=1000).tolist() == recorded
    recorded = [1, 2, 5, 4, 2, 5, 1, 4, 1, 2, 5, 1]
    assert draw(WEIGHTS, 12, seed=7, start=1001, replacement=False).tolist() == recorded


def test_successive_draws_are_independent():
    draws = draw(np.ones(4), 40_000, seed=1)
    counts = np.bincount(4 * draws[:-1] + draws[1:], minlength=16)
    assert chisquare(counts).pvalue > 1e-4
    first, second = draw(np.array([6.0, 3, 1]), 40_000, seed=2).reshape(-1, 2).T
    assert agrees(table(first, second, 3), np.outer([0.6, 0.3, 0.1], [0.6, 0.3, 0.1]))


def test_a_share_of_the_draws_is_uniform():
    mixed = [0.46, 0.28, 0.16, 0.1]  # 0.6 · (0.6, 0.3, 0.1, 0) + 0.4 / 4
    draws = draw(np.array([6.0, 3, 1, 0]), 40_000, seed=4, uniform=0.4)
    assert agrees(np.bincount(draws, minlength=4), mixed)
    assert agrees(table(*draws.reshape(-1, 2).T, 4), np.outer(mixed, mixed))
    even = draw(np.array([6.0, 3, 1, 0]), 40_000, seed=4, uniform=1.0)
    assert agrees(np.bincount(even, minlength=4), [0.25] * 4)


# P(first, second) of two weighted draws without replacement, p(a) · p(b) / (1 − p(a)), in 1/420
PAIRS = np.array(
    [
        [0, 189, 63, 0],  # of 0.6, 0.3, 0.1 and a row of weight 0
        [108, 0, 18, 0],
        [28, 14, 0, 0],
        [0, 0, 0, 0],
    ]
)


def test_draws_without_replacement_follow_the_weights_of_the_rows_left():
    passes = draw(np.array([6.0, 3, 1, 0]), 3 * 8000, seed=5, replacement=False).reshape(-1, 3)
    assert agrees(np.bincount(passes[:, 0], minlength=4), [0.6, 0.3, 0.1, 0])
    assert agrees(table(passes[:, 0], passes[:, 1], 4), PAIRS / 420)
    assert (np.sort(passes, axis=1) == [0, 1, 2]).all()
    firsts = passes[:, 0].reshape(-1, 2)  # of one pass and the next
    assert agrees(table(*firsts.T, 3), np.outer([0.6, 0.3, 0.1], [0.6, 0.3, 0.1]))


def test_draws_without_replacement_take_the_uniform_share_too():
    weights = np.array([4.0, 0, 0, 0])  # with a half uniform: 5/8, 1/8, 1/8, 1/8
    passes = draw(weights, 4 * 8000, 6, replacement=False, uniform=0.5).reshape(-1, 4)
    assert agrees(np.bincount(passes[:, 0], minlength=4), [0.625, 0.125, 0.125, 0.125])
    heavy, light = 5 / 24, 1 / 56  # 5/8 · 1/3 and 1/8 · 1/7; 1/8 · 5/7 for the heavy one second
    expected = np.full((4, 4), light)
    expected[0], expected[:, 0] = heavy, 5 / 56
    np.fill_diagonal(expected, 0)
    assert agrees(table(passes[:, 0], passes[:, 1], 4), expected)


def test_equal_keys_are_drawn_by_row_and_extreme_weights_in_their_order(monkeypatch):
    weights = np.array([1.0, 5e-324, 0, 1e300])
    assert draw(weights, 3, replacement=False).tolist() == [3, 0, 1]
    monkeypatch.setattr(sampling, "_uniforms", lambda size, seed, start: np.zeros(size))
    assert draw(weights, 6, replacement=False).tolist() == [0, 1, 3, 0, 1, 3]


def test_a_number_on_a_border_falls_on_the_next_row_that_can_be_drawn(monkeypatch):
    assert set(draw(np.array([0.0, 5e-324, 0]), 50).tolist()) == {1}  # shares of it round up to it
    monkeypatch.setattr(
        sampling, "_uniforms", lambda size, seed, start: np.array([0, 0.25, 0.5, 0.75])
    )
    weights = np.array([0, 2.0, 0, 1, 1, 0])
    assert draw(weights, 4).tolist() == [1, 1, 3, 4]
    assert list(DistributedWeightedSampler(weights, 4)) == [1, 1, 3, 4]


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 2**31), st.sampled_from(MODES[1:]))
def test_any_piece_of_any_stream_is_the_same(start, size, seed, mode):
    whole = draw(WEIGHTS, 100, seed, 0, *mode)
    assert (draw(WEIGHTS, size, seed, start, *mode) == whole[start : start + size]).all()


@pytest.mark.parametrize("uniform", [-0.1, 1.1, np.nan])
def test_a_share_outside_0_to_1_is_refused(uniform):
    with pytest.raises(IsodenseError, match=r"uniform = .* is not in 0 … 1\n  -> it is the share"):
        draw(WEIGHTS, 1, uniform=uniform)
    with pytest.raises(IsodenseError, match=r"uniform = .* is not in 0 … 1\n  -> it is the share"):
        DistributedWeightedSampler(WEIGHTS, 1, uniform=uniform)


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
    said = r"weights (have shape .* expected \(n,\)|must be finite, not negative .*\n  -> run `dvc)"
    with pytest.raises(IsodenseError, match=said):
        draw(np.array(weights), 1)


ROWS = np.arange(40.0)


def epoch_of(epoch, seed, mode, size=24):
    """The draws of an epoch by the definition in the sampler's docstring; 39 rows have weight."""
    replacement, uniform = mode
    pass_length = 40 if uniform else 39
    start = epoch * (size if replacement else pass_length)
    return draw(ROWS, size, seed, start, *mode).tolist()


def interleaved(ranks):
    return np.stack([list(rank) for rank in ranks], axis=1).ravel().tolist()


def samplers(replicas, mode, size=24):
    return [
        DistributedWeightedSampler(ROWS, size, replicas, rank, 9, *mode) for rank in range(replicas)
    ]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_ranks_share_one_stream_at_any_world_size(replicas, mode):
    ranks = samplers(replicas, mode)
    assert [len(rank) for rank in ranks] == [24 // replicas] * replicas
    for epoch in range(3):
        assert interleaved(ranks) == epoch_of(epoch, 9, mode)
    for rank in ranks:
        rank.set_epoch(1)
    assert interleaved(ranks) == epoch_of(1, 9, mode)


def test_epochs_with_replacement_continue_one_stream():
    (sampler,) = samplers(1, (True, 0.0))
    assert [*sampler, *sampler] == draw(ROWS, 48, 9).tolist()


@pytest.mark.parametrize("uniform", [0.0, 0.3])
def test_no_row_comes_twice_in_an_epoch_without_replacement(uniform):
    (sampler,) = samplers(1, (False, uniform), size=39)
    epochs = [list(sampler) for _ in range(3)]
    assert all(len(set(epoch)) == 39 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_epochs_without_replacement_follow_the_weights():
    sampler = DistributedWeightedSampler(np.array([6.0, 3, 1, 0]), 2, seed=3, replacement=False)
    epochs = np.array([list(sampler) for _ in range(6000)])
    assert agrees(table(*epochs.T, 4), PAIRS / 420)


def test_more_draws_than_rows_are_refused_without_replacement():
    assert len(list(DistributedWeightedSampler(WEIGHTS, 4, replacement=False))) == 4
    with pytest.raises(
        IsodenseError, match=r"num_samples = 5 of 4 rows that can be drawn.*\n  -> draw"
    ):
        DistributedWeightedSampler(WEIGHTS, 5, replacement=False)
    assert len(list(DistributedWeightedSampler(WEIGHTS, 7, replacement=False, uniform=0.1))) == 7


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("taken", [0, 12, 24, 36, 60])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_a_run_that_resumes_equals_one_that_was_not_cut(taken, replicas, mode):
    whole = [row for epoch in range(4) for row in epoch_of(epoch, 9, mode)]
    ranks = samplers(2, mode)
    streams = [itertools.chain(rank, rank, rank) for rank in ranks]
    first = [next(stream) for _ in range(taken // 2) for stream in streams]
    states = [rank.state_dict() for rank in ranks]
    assert states[0] == states[1]
    again = samplers(replicas, mode)
    for rank in again:
        rank.load_state_dict(states[0])
    rest = [interleaved(again) for _ in range(4 - again[0].epoch)]
    assert first + list(itertools.chain(*rest)) == whole


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_a_state_at_the_end_of_an_epoch_is_the_start_of_the_next(replicas, mode):
    ranks = samplers(replicas, mode)
    for rank in ranks:
        rank.load_state_dict({"epoch": 1, "drawn": 24})
        assert rank.state_dict() == {"epoch": 2, "drawn": 0}
    assert interleaved(ranks) + interleaved(ranks) == epoch_of(2, 9, mode) + epoch_of(3, 9, mode)


def test_after_the_last_draw_of_an_epoch_none_of_the_next_is_taken():
    (sampler,) = samplers(1, (True, 0.0))
    for epoch in (1, 2):
        list(sampler)
        assert sampler.state_dict() == {"epoch": epoch, "drawn": 0}


def test_ranks_share_rows_whose_keys_are_equal(monkeypatch):
    """Keys of the smallest weights are all infinite: the last piece of a pass holds them all."""
    weights = np.array([1.0] * 5 + [5e-324] * 19)
    monkeypatch.setattr(sampling, "BLOCK", 1)
    ranks = [DistributedWeightedSampler(weights, 24, 3, rank, 4, False) for rank in range(3)]
    expected = draw(weights, 24, seed=4, replacement=False).tolist()
    assert interleaved(ranks) == expected
    assert sorted(expected) == list(range(24))


def test_the_seed_is_0_unless_given():
    assert list(DistributedWeightedSampler(WEIGHTS, 12)) == draw(WEIGHTS, 12, seed=0).tolist()
    assert draw(WEIGHTS, 12).tolist() == draw(WEIGHTS, 12, seed=0).tolist()


def test_epochs_that_a_loop_numbers_go_on_after_the_end_of_one():
    for first in (1, 2):  # the epoch of the state, or the sampler's own
        (sampler,) = samplers(1, (True, 0.0))
        sampler.load_state_dict({"epoch": 1, "drawn": 24})
        drawn = []
        for epoch in range(first, 4):
            sampler.set_epoch(epoch)
            drawn += list(sampler)
        assert drawn == epoch_of(2, 9, (True, 0.0)) + epoch_of(3, 9, (True, 0.0))
        sampler.set_epoch(1)
        assert list(sampler) == epoch_of(1, 9, (True, 0.0))


@settings(deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 5),
    st.integers(0, 12),
    st.integers(0, 2),
    st.integers(0, 2**31),
    st.sampled_from(MODES),
)
def test_blocks_at_any_border_are_the_whole_stream(block, replicas, resumed, epoch, seed, mode):
    size, weights = 12 * replicas, np.arange(1.0, 61.0)
    start = epoch * (size if mode[0] else 60)
    whole = draw(weights, size, seed, start, *mode).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "BLOCK", block)
        ranks = [
            DistributedWeightedSampler(weights, size, replicas, rank, seed, *mode)
            for rank in range(replicas)
        ]
        for rank in ranks:
            rank.set_epoch(epoch)
            if resumed < 12:
                rank.load_state_dict({"epoch": epoch, "drawn": resumed * replicas})
        assert interleaved(ranks) == whole[resumed % 12 * replicas :]


@given(
    st.lists(st.sampled_from([0.0, 5e-324, 1.0, 2.0, 1e300]), min_size=1, max_size=60).filter(any),
    st.integers(0, 2**31),
    st.integers(1, 8),
    st.data(),
)
def test_the_pieces_of_a_pass_are_the_rows_sorted_by_key(weights, seed, size, data):
    weights = np.array(weights)
    rows = np.flatnonzero(weights)
    end = data.draw(st.integers(0, len(rows)))
    start = data.draw(st.integers(0, end))
    coarse = np.random.default_rng(seed).integers(0, 3, len(weights)) / 3  # many keys are equal
    with np.errstate(over="ignore"):
        keys = {row: -np.log1p(-coarse[row]) / weights[row] for row in rows.tolist()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_uniforms", lambda size, seed, start: coarse)
        pieces = list(sampling._pass(weights, rows, seed, 0, start, end, size))
    expected = sorted(keys, key=lambda row: (keys[row], row))[start:end]
    assert [row for piece in pieces for row in piece.tolist()] == expected


def test_a_long_stream_is_its_blocks():
    weights = np.random.default_rng(0).lognormal(size=30_000)
    for mode in MODES:
        sampler = DistributedWeightedSampler(weights, 20_000, 1, 0, 5, *mode)
        assert list(sampler) == draw(weights, 20_000, 5, 0, *mode).tolist()


def test_the_first_draw_makes_no_more_than_a_block(monkeypatch):
    made = []
    real = sampling._uniforms
    monkeypatch.setattr(
        sampling, "_uniforms", lambda size, *rest: made.append(size) or real(size, *rest)
    )
    next(iter(DistributedWeightedSampler(np.ones(100), 10**9)))
    assert made == [sampling.BLOCK]


def test_a_look_ahead_does_not_shorten_the_epoch():
    sampler = DistributedWeightedSampler(WEIGHTS, 12, seed=2)
    next(iter(sampler))
    assert list(sampler) == draw(WEIGHTS, 12, 2).tolist()


def test_draws_that_do_not_divide_among_the_ranks_are_refused():
    with pytest.raises(IsodenseError, match=r"10 draws .* multiple of 4\n.*resume with a number"):
        DistributedWeightedSampler(WEIGHTS, 12, 4).load_state_dict({"epoch": 0, "drawn": 10})
    with pytest.raises(IsodenseError, match=r"14 draws of .* of 12 were taken\n.*num_samples of"):
        DistributedWeightedSampler(WEIGHTS, 12, 2).load_state_dict({"epoch": 0, "drawn": 14})


@pytest.mark.parametrize("wrong", [{"size": -1}, {"start": -3}, {"seed": -1}])
def test_negative_numbers_are_refused(wrong):
    with pytest.raises(IsodenseError, match="must not be negative"):
        draw(WEIGHTS, **{"size": 1} | wrong)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", [(True, 0.0), (False, 0.3)])
def test_epochs_follow_a_data_loader(workers, mode):
    (sampler,) = samplers(1, mode)
    loader = DataLoader(list(range(40)), batch_size=5, sampler=sampler, num_workers=workers)
    assert len(loader) == 5
    assert batches(loader) + batches(loader) == epoch_of(0, 9, mode) + epoch_of(1, 9, mode)
    sampler.set_epoch(5)
    assert batches(loader) == epoch_of(5, 9, mode)
    sampler.load_state_dict({"epoch": 1, "drawn": 10})  # as counted: two batches were used
    assert batches(loader) + batches(loader) == epoch_of(1, 9, mode)[10:] + epoch_of(2, 9, mode)


def batches(loader):
    return [int(item) for batch in loader for item in batch]


def test_impossible_samplers_are_refused():
    with pytest.raises(IsodenseError, match=r"not a multiple of 2 replicas\n.*choose one"):
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


def test_the_second_choice_avoids_neighbours_by_the_documented_factor():
    """Rows 0 and 1 are r₀ apart, 2 and 3 a third of it, 4 and 5 three times: r₀ is the median."""
    near = np.array([[1], [0], [3], [2], [5], [4]], dtype=np.int32)
    apart = np.array([0.3, 0.3, 0.1, 0.1, 0.9, 0.9], dtype=np.float32)[:, None]
    graph = Graph(near, apart)
    pairs = [select(np.ones(6), graph, 2, seed=seed) for seed in range(6000)]
    left = np.repeat(1 - np.exp(-np.array([1, 1 / 9, 9]) / 2), 2)  # of a neighbour's weight
    expected = np.zeros((6, 6))
    for first, second in itertools.permutations(range(6), 2):
        weight = left[first] if near[first, 0] == second else 1.0
        expected[first, second] = weight / (4 + left[first]) / 6
    assert agrees(table(*np.array(pairs).T, 6), expected)


def by_cumulative_sums(weights, graph, size, spread, seed):
    """The choices as they are defined, all sums made anew from left to right for every draw."""
    left, chosen = np.array(weights, dtype=np.float64), []
    scale = np.median(graph.distances[:, -1].astype(np.float64))
    for uniform in np.random.Generator(np.random.Philox(seed)).random(size):
        if not left.any():
            left = np.array(weights, dtype=np.float64)
            left[chosen] = 0
        row = int(np.searchsorted(np.cumsum(left), uniform * np.cumsum(left)[-1], side="right"))
        chosen.append(row)
        closest = {}  # an edge listed from both ends at two distances counts by the shorter one
        for head, (tails, apart) in enumerate(zip(graph.indices, graph.distances, strict=True)):
            for tail, distance in zip(tails.tolist(), apart.tolist(), strict=True):
                if row in (head, tail):
                    other = tail if row == head else head
                    closest[other] = min(distance, closest.get(other, np.inf))
        if spread:
            for other, distance in closest.items():
                left[other] *= 1 - np.exp(-(distance**2) / (2 * scale**2))
        left[row] = 0
    return chosen


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_subset_is_that_of_cumulative_sums(seed, spread):
    weights = np.random.default_rng(seed).lognormal(size=400) * (np.arange(400) % 7 > 0)
    graph = knn_graph(clusters(), 9)
    expected = by_cumulative_sums(weights, graph, 150, spread, seed)
    assert select(weights, graph, 150, spread, seed).tolist() == expected


def test_an_impossible_subset_is_refused():
    graph = knn_graph(clusters(), 5)
    for weights, size in ((np.ones(3), 1), (np.ones(400), 401), (np.eye(400)[0], 2)):
        with pytest.raises(
            IsodenseError, match=r"weights over a graph of 400.*\n  -> pass the graph"
        ):
            select(weights, graph, size)
    assert select(np.ones(400), graph, 0).tolist() == []
    assert (
        select(np.ones(400), graph, 9).tolist() == select(np.ones(400), graph, 9, seed=0).tolist()
    )
