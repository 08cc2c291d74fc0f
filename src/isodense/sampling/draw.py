"""Weighted sampling of prompts: stateless draws, a sampler for data loaders, diverse subsets.

A seed defines a stream of draws. Draw ``i`` depends on the weights, the seed and ``i`` only, so a
run that resumes at draw ``i``, or splits the stream over any number of processes, sees the same
prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from torch.utils.data import Sampler

from isodense.neighbors.graph import Graph
from isodense.pipeline.errors import IsodenseError
from isodense.sampling.sum_tree import SumTree
from isodense.sampling.weights import Weights

BLOCK = 2048  # draws that a sampler makes at once; speed only


def draw(
    weights: np.ndarray | Weights,
    size: int,
    seed: int = 0,
    start: int = 0,
    replacement: bool = True,
    uniform: float = 0.0,
) -> np.ndarray:
    """Draw row numbers with probability proportional to weight.

    Parameters
    ----------
    weights : ndarray of shape (n,), or Weights
        Finite, not negative, not all zero; need not sum to 1. Unlike in torch.multinomial, n may
        exceed 2**24.
    size : int
        Number of draws.
    seed : int
        Seed of the stream.
    start : int
        Number of draws of the stream to skip.
    replacement : bool
        If false, the stream is a sequence of passes. A pass draws every row of positive probability
        once, by successive weighted draws without replacement (Efraimidis & Spirakis, 2006). A call
        computes the keys of all n rows for each pass it touches, and sorts those it returns.
    uniform : float
        Share of the draws, in [0, 1], that is uniform over all n rows: the probability of a row is
        (1 − uniform) · w / Σw + uniform / n.

    Returns
    -------
    ndarray of shape (size,), int64
        Row numbers.

    Raises
    ------
    IsodenseError
        If the weights are empty, negative, not finite or all zero, a number is negative, or
        `uniform` is not in [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> stream = draw(np.array([0.2, 0.3, 0.5]), 10, seed=1)
    >>> bool((stream[4:] == draw(np.array([0.2, 0.3, 0.5]), 6, seed=1, start=4)).all())
    True
    >>> sorted(draw(np.array([0.2, 0.3, 0.5]), 3, seed=1, replacement=False).tolist())
    [0, 1, 2]
    """
    probabilities = _mixed(_checked(weights), uniform)
    if min(size, seed, start) < 0:
        raise IsodenseError(f"size {size}, seed {seed} and start {start} must not be negative")
    if not replacement:
        return _draw_passes(probabilities, size, seed, start)
    last = np.flatnonzero(probabilities)[-1]
    return _at(np.cumsum(probabilities), last, _uniforms(size, seed, start))


class DistributedWeightedSampler(Sampler[int]):
    """Weighted draws for a `torch.utils.data.DataLoader`, over many processes.

    Rank r takes draws r, r + num_replicas, r + 2·num_replicas, … of one stream, so the union over
    ranks is the same at any number of processes. With replacement, epoch e is the `num_samples`
    draws of :func:`draw` from draw e · num_samples on, so epochs continue one stream. Without
    replacement, epoch e is the first `num_samples` draws of pass e, so no row comes twice in an
    epoch and every epoch follows the weights; the rest of a pass is not used.

    Parameters
    ----------
    weights : ndarray of shape (n,), or Weights
        See :func:`draw`.
    num_samples : int
        Draws per epoch over all ranks, a multiple of `num_replicas`. Without replacement at most
        the number of rows of positive probability.
    num_replicas : int
        Number of processes.
    rank : int
        Number of this process, from 0.
    seed : int
        Seed of the stream.
    replacement : bool
        Whether a row can come twice in an epoch.
    uniform : float
        Share of the draws that is uniform over all rows; see :func:`draw`.

    Raises
    ------
    IsodenseError
        If the weights or the numbers cannot be used.

    Notes
    -----
    Draws are made in blocks, so the first batch does not wait for the epoch. Without replacement,
    the first block takes one look at every row.

    Under accelerate, build the sampler with ``num_replicas=1``: ``Accelerator.prepare`` distributes
    whole batches of one stream over the processes, and calls `set_epoch` by a counter of its own.
    To resume, call `load_state_dict` and then ``loader.set_epoch(sampler.epoch)`` on the prepared
    loader; see ``docs/stages/sampling.md``.

    Examples
    --------
    >>> import isodense
    >>> w = isodense.load_weights("data/density")
    >>> sampler = isodense.DistributedWeightedSampler(w, num_samples=8, seed=1)
    >>> list(sampler) == isodense.draw(w, 8, seed=1).tolist()
    True
    >>> second = isodense.DistributedWeightedSampler(w, 8, num_replicas=2, rank=1, seed=1)
    >>> list(second) == isodense.draw(w, 8, seed=1)[1::2].tolist()
    True
    """

    def __init__(
        self,
        weights: np.ndarray | Weights,
        num_samples: int,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        replacement: bool = True,
        uniform: float = 0.0,
    ) -> None:
        if not 0 <= rank < num_replicas:
            raise IsodenseError(f"rank {rank} is not in 0 … {num_replicas - 1}")
        if num_samples < 1 or num_samples % num_replicas:
            message = f"num_samples = {num_samples} is not a multiple of {num_replicas} replicas"
            raise IsodenseError(message, "choose one that is, so that all ranks draw as many")
        self.weights = _mixed(_checked(weights), uniform)
        self.num_samples, self.num_replicas, self.rank = num_samples, num_replicas, rank
        self.seed, self.replacement, self.epoch = seed, replacement, 0
        self._stride = num_samples if replacement else int(np.count_nonzero(self.weights))
        if num_samples > self._stride:
            message = f"num_samples = {num_samples} of {self._stride} rows that can be drawn"
            raise IsodenseError(message, "draw fewer, with replacement, or with uniform above 0")
        self._position = self._resume_at = 0
        self._finished: int | None = None

    def __len__(self) -> int:
        return self.num_samples // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        self._position, self._resume_at, self._finished = self._resume_at, 0, None
        blocks = self._with_replacement if self.replacement else self._pass
        for block in blocks(self._position, self.epoch):
            for row in block.tolist():
                self._position += 1
                yield row
        self._position = 0
        self.epoch += 1

    def _with_replacement(self, first: int, epoch: int) -> Iterator[np.ndarray]:
        """Yield the draws of this rank from its draw `first` of an epoch on."""
        start = epoch * self._stride
        for position in range(first, len(self), BLOCK):
            size = min(BLOCK, len(self) - position) * self.num_replicas
            uniforms = _uniforms(size, self.seed, start + position * self.num_replicas)
            mine = uniforms[self.rank :: self.num_replicas]
            yield _at(self._cumulative, self._rows[-1], mine)

    def _pass(self, first: int, epoch: int) -> Iterator[np.ndarray]:
        """Do the same without replacement."""
        position = begin = first * self.num_replicas
        size = BLOCK * self.num_replicas
        for rows in _pass(
            self.weights, self._rows, self.seed, epoch, begin, self.num_samples, size
        ):
            yield rows[(self.rank - position) % self.num_replicas :: self.num_replicas]
            position += len(rows)

    @cached_property
    def _cumulative(self) -> np.ndarray:
        return np.cumsum(self.weights)

    @cached_property
    def _rows(self) -> np.ndarray:
        return np.flatnonzero(self.weights)

    def set_epoch(self, epoch: int) -> None:
        """Move to the start of an epoch; nothing changes if it is the current one.

        Right after a state at the end of an epoch was loaded, that epoch has no draws left.
        """
        if epoch != self.epoch:
            drawn = len(self) if epoch == self._finished else 0
            self.epoch, self._position, self._resume_at = epoch, drawn, drawn

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and the number of draws taken in it over all ranks, as ``drawn``.

        A DataLoader with workers, or one that accelerate has prepared, prefetches, so in the middle
        of an epoch ``drawn`` counts more than the run has used. Then build the state from the
        number of steps: ``{"epoch": epoch, "drawn": steps * global_batch_size}``.
        """
        return {"epoch": self.epoch, "drawn": self._position * self.num_replicas}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a state, with the same or another number of processes.

        After the last draw of an epoch comes the first of the next one, so a state with all draws
        of epoch e taken is the start of epoch e + 1. All other arguments of the sampler have to be
        the same as those of the interrupted run.

        Parameters
        ----------
        state : dict
            ``epoch`` and ``drawn``, see :meth:`state_dict`.

        Raises
        ------
        IsodenseError
            If the draws taken so far do not divide by the number of processes, or exceed an epoch.
        """
        drawn = state["drawn"]
        if drawn % self.num_replicas:
            message = f"{drawn} draws were taken, not a multiple of {self.num_replicas}"
            raise IsodenseError(message, "resume with a number of processes that divides them")
        if not 0 <= drawn <= self.num_samples:
            message = f"{drawn} draws of an epoch of {self.num_samples} were taken"
            raise IsodenseError(message, "resume with the num_samples of the interrupted run")
        self.epoch, self._finished = state["epoch"], None
        if drawn == self.num_samples:
            self.epoch, self._finished, drawn = self.epoch + 1, self.epoch, 0
        self._position = self._resume_at = drawn // self.num_replicas


def select(
    weights: np.ndarray | Weights, graph: Graph, size: int, spread: bool = True, seed: int = 0
) -> np.ndarray:
    """Choose a subset by weighted draws without replacement and, with `spread`, diverse.

    With `spread`, each draw multiplies the weights of the drawn prompt's neighbours in the graph,
    in both directions, by 1 − exp(−d² / 2r₀²), where r₀ is the median distance to the k-th
    neighbour. A draw takes time in proportion to log n and to the neighbours of the drawn prompt;
    which prompt a random number falls on is decided by sums in the order of
    :class:`isodense.sampling.sum_tree.SumTree`.

    Parameters
    ----------
    weights : ndarray of shape (n,), or Weights
        See :func:`draw`.
    graph : Graph
        Graph of the same n rows.
    size : int
        Number of prompts, at most the number of positive weights.
    spread : bool
        Whether a drawn prompt lowers the weights of its neighbours.
    seed : int
        Seed of the draws.

    Returns
    -------
    ndarray of shape (size,), int64
        Row numbers in the order of the draws.

    Raises
    ------
    IsodenseError
        If the weights cannot be used, do not match the graph, or `size` is out of range.

    Examples
    --------
    Of two prompts in one place, only one is chosen:

    >>> import isodense
    >>> graph = isodense.knn_graph(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), k=1)
    >>> chosen = isodense.select(np.ones(3), graph, size=2)
    >>> 2 in chosen
    True
    """
    left = _checked(weights)
    if len(left) != len(graph) or not 0 <= size <= np.count_nonzero(left):
        message = f"{size} of {len(left)} weights over a graph of {len(graph)} rows"
        raise IsodenseError(message, "pass the graph of the same prompts, and a size below theirs")
    factors = _spread_factors(graph) if spread else None
    tree = SumTree(left)
    chosen = np.empty(size, dtype=np.int64)
    for step, uniform in enumerate(_uniforms(size, seed, 0)):
        if not tree.total:  # every remaining prompt is a duplicate of a chosen one
            tree = SumTree(left)
            tree.multiply(chosen[:step], 0.0)
        chosen[step] = tree.find(uniform)
        if factors is not None:
            row = slice(*factors.indptr[chosen[step] : chosen[step] + 2])
            tree.multiply(factors.indices[row], factors.data[row])
        tree.multiply(chosen[step : step + 1], 0.0)
    return chosen


def _spread_factors(graph: Graph):  # type: ignore[no-untyped-def]  # noqa: ANN202 (a scipy csr_array)
    """Return factors 1 − exp(−d² / 2r₀²) of the graph's edges in both directions."""
    from scipy.sparse import csr_array

    scale = np.median(graph.distances[:, -1].astype(np.float64)) if graph.k else 1.0
    factor = 1 - np.exp(-(graph.distances.astype(np.float64) ** 2) / (2 * max(scale, 1e-12) ** 2))
    head = np.repeat(np.arange(len(graph)), graph.k)
    tail, covered = graph.indices.ravel(), (1 - factor).ravel()
    one_way = csr_array((covered, (head, tail)), shape=(len(graph), len(graph)))
    both = one_way.maximum(one_way.T).tocsr()
    both.data = 1 - both.data
    return both


def _checked(weights: np.ndarray | Weights) -> np.ndarray:
    if isinstance(weights, Weights):
        weights = weights.weights
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 1 or not len(weights):
        raise IsodenseError(f"weights have shape {weights.shape}; expected (n,) with n > 0")
    low, high = weights.min(), weights.max()  # both are nan if any weight is
    if not (low >= 0 and 0 < high < np.inf):
        message = "weights must be finite, not negative and not all zero"
        raise IsodenseError(message, "run `dvc repro density`")
    return weights


def _mixed(weights: np.ndarray, uniform: float) -> np.ndarray:
    """Return the probabilities of a mixture of weighted and uniform draws, float64.

    Without uniform draws, the weights are returned unscaled.
    """
    if not 0 <= uniform <= 1:
        message = f"uniform = {uniform} is not in 0 … 1"
        raise IsodenseError(message, "it is the share of draws that is uniform over all rows")
    if not uniform:
        return weights
    return (1 - uniform) * weights / weights.sum() + uniform / len(weights)


def _at(cumulative: np.ndarray, last: int, uniforms: np.ndarray) -> np.ndarray:
    """Return the rows that numbers in [0, 1) fall on; `last` is the last of positive weight."""
    index = np.searchsorted(cumulative, uniforms * cumulative[-1], side="right")
    return np.minimum(index, last).astype(np.int64)


def _draw_passes(weights: np.ndarray, size: int, seed: int, start: int) -> np.ndarray:
    """Return `size` draws from draw `start` on, of the sequence of passes without replacement."""
    rows = np.flatnonzero(weights)
    pieces = [rows[:0]]
    for number in range(start // len(rows), -(-(start + size) // len(rows))):
        begin = max(start - number * len(rows), 0)
        end = min(start + size - number * len(rows), len(rows))
        pieces += _pass(weights, rows, seed, number, begin, end, end - begin)
    return np.concatenate(pieces).astype(np.int64)


def _pass(
    weights: np.ndarray, rows: np.ndarray, seed: int, number: int, start: int, end: int, size: int
) -> Iterator[np.ndarray]:
    """Yield draws `start` … `end` of pass `number` over the `rows`, those of positive weight.

    Exponential variables divided by the weights, sorted, are in the order of successive weighted
    draws without replacement (Efraimidis & Spirakis, Information Processing Letters 97, 2006); of
    equal keys, the lower row comes first. A piece holds the keys between two quantiles, so the
    first, of about `size` draws, sorts no others. Each next one is eight times as long: all of them
    together take little more than sorting everything.
    """
    uniforms = _uniforms(len(weights), seed, number * len(weights))[rows]
    with np.errstate(over="ignore"):  # the key of a weight near 0 may be infinite: it sorts last
        keys = -np.log1p(-uniforms) / weights[rows]  # log(1 − u), as u may be 0 but never 1
    below, position = -1.0, 0
    if 0 < start < end:
        least = _ranked(keys, start)
        below, position = np.nextafter(least, -1.0), int(np.count_nonzero(keys < least))
    while position < end:
        limit = _ranked(keys, min(max(position, start) + size, end) - 1)
        piece = np.flatnonzero((keys > below) & (keys <= limit))
        piece = rows[piece[np.argsort(keys[piece], kind="stable")]]
        yield piece[max(start - position, 0) : end - position]
        below, position, size = limit, position + len(piece), size * 8


def _ranked(keys: np.ndarray, rank: int) -> float:
    return float(np.partition(keys, rank)[rank])


def _uniforms(size: int, seed: int, start: int) -> np.ndarray:
    """Return `size` numbers in [0, 1) from number `start` on of the stream of a seed.

    A step of the counter of Philox gives four numbers.
    """
    bits = np.random.Philox(seed)
    bits.advance(start // 4)
    return np.random.Generator(bits).random(size + start % 4)[start % 4 :]
