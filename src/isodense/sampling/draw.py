"""Drawing prompts by weight: stateless draws, a sampler for data loaders, spread subsets.

Draw ``i`` of the stream of a seed depends on the weights, the seed and ``i`` alone, so a run that
resumes at draw ``i`` or splits the stream over any number of processes sees the same prompts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from isodense.neighbors.graph import Graph
from isodense.pipeline.errors import IsodenseError


def draw(
    weights: np.ndarray,
    size: int,
    seed: int = 0,
    start: int = 0,
    replacement: bool = True,
    uniform: float = 0.0,
) -> np.ndarray:
    """Draw row numbers with probability proportional to weight.

    Parameters
    ----------
    weights : ndarray of shape (n,)
        Finite, not negative, not all zero; need not sum to 1. Any n: no limit at 2**24.
    size : int
        Number of draws.
    seed : int
        Names the stream.
    start : int
        Number of draws of the stream to skip.
    replacement : bool
        If false, the stream is a chain of passes. In a pass every row of positive probability
        comes once, in the order of successive weighted draws from the rows that are left
        (Efraimidis & Spirakis, 2006). A call computes whole passes: n log n each.
    uniform : float
        Share of the draws, from 0 to 1, that is uniform over all n rows: a row's probability is
        (1 − uniform) · w / Σw + uniform / n.

    Returns
    -------
    ndarray of shape (size,), int64

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
    weights = _mixed(_checked(weights), uniform)
    if min(size, seed, start) < 0:
        raise IsodenseError(f"size {size}, seed {seed} and start {start} must not be negative")
    if not replacement:
        return _draw_passes(weights, size, seed, start)
    cumulative = np.cumsum(weights)
    index = np.searchsorted(cumulative, _uniforms(size, seed, start) * cumulative[-1], side="right")
    return np.minimum(index, np.flatnonzero(weights)[-1]).astype(np.int64)


class DistributedWeightedSampler(Sampler[int]):
    """Weighted draws for a `torch.utils.data.DataLoader`, over many processes.

    Rank r takes draws r, r + num_replicas, r + 2·num_replicas, … of one stream, so the union over
    ranks is the same at any number of processes. With replacement, epoch e is the `num_samples`
    draws of :func:`draw` from draw e · num_samples on: one epoch continues the other. Without,
    epoch e is the first `num_samples` draws of pass e, so that no row comes twice in an epoch and
    every epoch follows the weights; what is left of a pass is not drawn.

    Parameters
    ----------
    weights : ndarray of shape (n,)
        See :func:`draw`.
    num_samples : int
        Draws per epoch over all ranks; a multiple of `num_replicas`. Without replacement at most
        the number of rows of positive probability.
    num_replicas, rank : int
        Number of processes and this one's number.
    seed : int
        Names the stream.
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
    Under accelerate, build the sampler with ``num_replicas=1``: ``Accelerator.prepare`` deals whole
    batches of the one stream out to the processes, and calls `set_epoch` with its own count of
    epochs. To resume, call ``loader.set_epoch(state["epoch"])`` on the prepared loader first and
    `load_state_dict` after it; see ``docs/sampling.md``.
    """

    def __init__(
        self,
        weights: np.ndarray,
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

    def __len__(self) -> int:
        return self.num_samples // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self._stride
        stream = draw(self.weights, self.num_samples, self.seed, start, self.replacement)
        mine = stream[self.rank :: self.num_replicas].tolist()
        first, self._resume_at = self._resume_at, 0
        for self._position in range(first + 1, len(mine) + 1):
            yield mine[self._position - 1]
        self._position = 0
        self.epoch += 1

    def set_epoch(self, epoch: int) -> None:
        """Move to the start of an epoch; the one in hand keeps its position."""
        if epoch != self.epoch:
            self.epoch, self._position, self._resume_at = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Return where the stream stands: epoch, and draws of it over all ranks.

        A DataLoader with workers, or one that accelerate has prepared, reads ahead of what it has
        handed out. In the middle of an epoch, count there what you have used: ``{"epoch": epoch,
        "drawn": steps * global_batch_size}`` is the state after that many steps.
        """
        return {"epoch": self.epoch, "drawn": self._position * self.num_replicas}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken, at the same or another number of processes.

        All else that the sampler was built with has to be the same.

        Raises
        ------
        IsodenseError
            If the draws taken so far do not divide among the processes, or exceed an epoch.
        """
        drawn = state["drawn"]
        if drawn % self.num_replicas:
            message = f"{drawn} draws were taken, not a multiple of {self.num_replicas}"
            raise IsodenseError(message, "resume with a number of processes that divides them")
        if not 0 <= drawn <= self.num_samples:
            message = f"{drawn} draws of an epoch of {self.num_samples} were taken"
            raise IsodenseError(message, "resume with the num_samples of the interrupted run")
        self.epoch = state["epoch"]
        self._position = self._resume_at = drawn // self.num_replicas


def select(
    weights: np.ndarray, graph: Graph, size: int, spread: bool = True, seed: int = 0
) -> np.ndarray:
    """Choose a subset without replacement, by weight and, with `spread`, away from itself.

    After each draw the weights of the drawn prompt's graph neighbours, in both directions, are
    multiplied by 1 − exp(−d² / 2r₀²), r₀ the median distance to the k-th neighbour.

    Parameters
    ----------
    weights : ndarray of shape (n,)
        See :func:`draw`.
    graph : Graph
        Neighbours of the same n rows.
    size : int
        At most n.
    spread : bool
        Whether a drawn prompt lowers its neighbours' weights.
    seed : int
        Names the subset.

    Returns
    -------
    ndarray of shape (size,), int64
        Row numbers in the order of choice.

    Raises
    ------
    IsodenseError
        If the weights cannot be used, do not match the graph, or `size` exceeds n.
    """
    left = _checked(weights).copy()
    if len(left) != len(graph) or not 0 <= size <= np.count_nonzero(left):
        message = f"{size} of {len(left)} weights over a graph of {len(graph)} rows"
        raise IsodenseError(message, "pass the graph of the same prompts, and a size below theirs")
    keep = _survival(graph)
    chosen = np.empty(size, dtype=np.int64)
    for step, uniform in enumerate(_uniforms(size, seed, 0)):
        if not left.any():  # every prompt left is a duplicate of a chosen one
            left = np.asarray(weights, dtype=np.float64).copy()
            left[chosen[:step]] = 0
        cumulative = np.cumsum(left)
        index = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
        chosen[step] = min(index, np.flatnonzero(left)[-1])
        row = slice(*keep.indptr[chosen[step] : chosen[step] + 2])
        if spread:
            left[keep.indices[row]] *= keep.data[row]
        left[chosen[step]] = 0
    return chosen


def _survival(graph: Graph):  # type: ignore[no-untyped-def]  # noqa: ANN202 (a scipy csr_array)
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


def _checked(weights: np.ndarray) -> np.ndarray:
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 1 or not len(weights):
        raise IsodenseError(f"weights have shape {weights.shape}; expected (n,) with n > 0")
    low, high = weights.min(), weights.max()  # both are nan if any weight is
    if not (low >= 0 and 0 < high < np.inf):
        message = "weights must be finite, not negative and not all zero"
        raise IsodenseError(message, "run `dvc repro density`")
    return weights


def _mixed(weights: np.ndarray, uniform: float) -> np.ndarray:
    """Return checked weights with a share of uniform draws mixed in, float64."""
    if not 0 <= uniform <= 1:
        message = f"uniform = {uniform} is not in 0 … 1"
        raise IsodenseError(message, "it is the share of draws that is uniform over all rows")
    if not uniform:
        return weights
    return (1 - uniform) * weights / weights.sum() + uniform / len(weights)


def _draw_passes(weights: np.ndarray, size: int, seed: int, start: int) -> np.ndarray:
    """Return draws `start` … `start + size` of the chain of passes without replacement."""
    rows = np.flatnonzero(weights)
    first, last = start // len(rows), -(-(start + size) // len(rows))
    passes = [rows[_order(weights, rows, seed, number)] for number in range(first, last)]
    begin = start - first * len(rows)
    return np.concatenate([rows[:0], *passes])[begin : begin + size].astype(np.int64)


def _order(weights: np.ndarray, rows: np.ndarray, seed: int, number: int) -> np.ndarray:
    """Return the order in which pass `number` draws the `rows`, those of positive weight.

    Exponential variables divided by the weights, sorted, are in the order of successive weighted
    draws without replacement (Efraimidis & Spirakis, Information Processing Letters 97, 2006).
    """
    uniforms = _uniforms(len(weights), seed, number * len(weights))[rows]
    with np.errstate(over="ignore"):  # the key of a weight near 0 may be infinite: it comes last
        keys = -np.log1p(-uniforms) / weights[rows]  # of 1 − u, which is never 0
    return np.argsort(keys, kind="stable")


def _uniforms(size: int, seed: int, start: int) -> np.ndarray:
    """Return numbers `start` … `start + size` of the seed's stream; Philox steps give 4 each."""
    bits = np.random.Philox(seed)
    bits.advance(start // 4)
    return np.random.Generator(bits).random(size + start % 4)[start % 4 :]
