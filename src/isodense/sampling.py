"""Drawing prompts by weight: stateless draws, a sampler for data loaders, spread subsets.

Draw ``i`` of the stream of a seed depends on the seed and ``i`` alone, so a run that resumes at
draw ``i`` or splits the stream over any number of processes sees the same prompts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from isodense.errors import IsodenseError
from isodense.graph import Graph


def draw(weights: np.ndarray, size: int, seed: int = 0, start: int = 0) -> np.ndarray:
    """Draw row numbers with replacement, with probability proportional to weight.

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

    Returns
    -------
    ndarray of shape (size,), int64

    Raises
    ------
    IsodenseError
        If the weights are empty, negative, not finite or all zero, or a number is negative.

    Examples
    --------
    >>> import numpy as np
    >>> stream = draw(np.array([0.2, 0.3, 0.5]), 10, seed=1)
    >>> bool((stream[4:] == draw(np.array([0.2, 0.3, 0.5]), 6, seed=1, start=4)).all())
    True
    """
    weights = _checked(weights)
    if min(size, seed, start) < 0:
        raise IsodenseError(f"size {size}, seed {seed} and start {start} must not be negative")
    cumulative = np.cumsum(weights)
    index = np.searchsorted(cumulative, _uniform(size, seed, start) * cumulative[-1], side="right")
    return np.minimum(index, np.flatnonzero(weights)[-1]).astype(np.int64)


class DistributedWeightedSampler(Sampler[int]):
    """Weighted draws with replacement for a `torch.utils.data.DataLoader`, over many processes.

    Rank r takes draws r, r + num_replicas, r + 2·num_replicas, … of one stream, so the union over
    ranks is the same at any number of processes.

    Parameters
    ----------
    weights : ndarray of shape (n,)
        See :func:`draw`.
    num_samples : int
        Draws per epoch over all ranks; a multiple of `num_replicas`.
    num_replicas, rank : int
        Number of processes and this one's number.
    seed : int
        Names the stream.

    Raises
    ------
    IsodenseError
        If the weights or the numbers cannot be used.
    """

    def __init__(
        self,
        weights: np.ndarray,
        num_samples: int,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        if not 0 <= rank < num_replicas:
            raise IsodenseError(f"rank {rank} is not in 0 … {num_replicas - 1}")
        if num_samples < 1 or num_samples % num_replicas:
            message = f"num_samples = {num_samples} is not a multiple of {num_replicas} replicas"
            raise IsodenseError(message, "choose one that is, so that all ranks draw as many")
        self.weights = _checked(weights)
        self.num_samples, self.num_replicas, self.rank = num_samples, num_replicas, rank
        self.seed, self.epoch = seed, 0
        self._position = self._resume_at = 0

    def __len__(self) -> int:
        return self.num_samples // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        stream = draw(self.weights, self.num_samples, self.seed, self.epoch * self.num_samples)
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

        A DataLoader with workers draws ahead of what it has handed out; take the state between
        epochs there, or use ``num_workers=0``.
        """
        return {"epoch": self.epoch, "drawn": self._position * self.num_replicas}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken, at the same or another number of processes.

        Raises
        ------
        IsodenseError
            If the draws taken so far do not divide among the processes.
        """
        if state["drawn"] % self.num_replicas:
            message = f"{state['drawn']} draws were taken, not a multiple of {self.num_replicas}"
            raise IsodenseError(message, "resume with a number of processes that divides them")
        self.epoch = state["epoch"]
        self._position = self._resume_at = state["drawn"] // self.num_replicas


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
        Of the same n rows.
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
    for step, uniform in enumerate(_uniform(size, seed, 0)):
        if not left.any():  # every prompt left is a copy of a chosen one
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
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        message = "weights must be finite, not negative and not all zero"
        raise IsodenseError(message, "run `dvc repro density`")
    return weights


def _uniform(size: int, seed: int, start: int) -> np.ndarray:
    """Return numbers `start` … `start + size` of the seed's stream; Philox steps give 4 each."""
    bits = np.random.Philox(seed)
    bits.advance(start // 4)
    return np.random.Generator(bits).random(size + start % 4)[start % 4 :]
