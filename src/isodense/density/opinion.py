"""What the weights will do to a set of prompts, in words, each with the number behind it.

What the weights move of the draws, compared with uniform sampling, is a total variation distance.
It is held against what near-duplicates alone would move, all prompts of a duplicate cluster drawn
as one. The rest is split along *crowds*: walks from prompt to denser neighbour that end at the same
place (mode seeking on a neighbour graph, Koontz, Narendra and Fukunaga 1976). Draws move within a
crowd, from its middle to its edge, or from one to another. Crowds are joined into *domains* until
none has more than a few neighbours outside.

Vectors do not say whether a crowd is a kind that is asked too often or a topic as wide as it is
large. In the first case weights make labels more even, in the second less, so a case says what
moves, and only known labels say what that does to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from isodense.density.estimate import Estimate
from isodense.density.kinds import balance_kinds, shares
from isodense.density.params import DensityParams
from isodense.neighbors.graph import Graph

WITHOUT_DENSITY = ("uniform", "semdedup", "clusters")
NEAR = 10  # neighbours outside the duplicate cluster among which a denser one is sought
LEAVING = 0.05  # of the neighbours of a domain are outside it, at most
LARGE = 0.05  # of the distinct prompts are in a domain, at least
FEW = 0.05  # of the draws: near-duplicates that move less do not dominate
CONTRAST = 2.0  # below it there is little to even out
STILL = 0.02  # of the draws: less hardly moves
BETWEEN = 0.3  # of what moves; where less is between crowds there might as well be one
MOST = 0.7  # of what moves between crowds does so between domains
NEARLY_ALL = 0.95  # of the distinct prompts: domains that hold fewer are a few large kinds
SAME = 1e-3  # of entropy: less is no change
LOPSIDED = 0.97  # entropy of kinds under uniform sampling up to which a gap says something
SURVEYED = 20_000  # rows whose neighbours join crowds
TINY = 1e-12


def judge(
    found: Estimate,
    graph: Graph,
    params: DensityParams,
    known: Mapping[str, Mapping[str, float]],
    balanced: list[str] | None = None,
    counts: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return what the weights do, in O(n·k).

    Parameters
    ----------
    found : Estimate
        What :func:`isodense.density.estimate.estimate` returns for `graph` and `params`.
    graph : Graph
    params : DensityParams
    known : mapping of str to mapping
        What :func:`isodense.density.balance.label_statistics` says of known kinds, under the name
        of each, such as ``label``. Where there is one kind only, there is nothing to say.
    balanced : list of str, optional
        The kinds whose draws were set by ``balance_by``: what moves is then sought within them.
    counts : ndarray of shape (n,), optional
        Occurrences, where ``count_power`` makes them count: what they move is not the density's.

    Returns
    -------
    dict
        Empty where the weights do not follow from the density. Else ``case``, one of ``copies``,
        ``even``, ``wide``, ``domains`` and ``crowds``; as shares of all draws ``moved`` by the
        weights, ``moved_by_copies`` by sharing those of duplicate clusters alone, and
        ``moved_by_density`` beyond that; ``contrast``, the soft count at the ninth decile of the
        distinct prompts over that at the first; as shares of ``moved_by_density``
        ``between_crowds`` and ``between_domains``; ``in_domains``, the share of the distinct
        prompts in large ones, and ``domains``, the number of these; and of each known name
        ``<name>_entropy_uniform``, ``<name>_entropy`` and, where there is one, ``<name>_gap``.
    """
    if params.method in WITHOUT_DENSITY:
        return {}
    sizes, first = np.bincount(found.clusters), np.unique(found.clusters, return_index=True)[1]
    uniform, copies = np.full(len(graph), 1 / len(graph)), 1 / sizes[found.clusters] / len(sizes)
    base = copies if counts is None else copies * np.float64(counts) ** params.count_power
    base = base / base.sum()
    if balanced is not None:
        quotas = {kind["name"]: kind["weighted"] for kind in shares(balanced, found.weights)}
        base = balance_kinds(base, balanced, 1.0, quotas)
    low, high = np.quantile(found.density[first], [0.1, 0.9])
    crowds = _crowds(graph.first(params.k), found)
    domains = _domains(graph.first(params.k), crowds, copies)
    beyond = _moved(found.weights, base)
    opinion = {
        "moved": _moved(found.weights, uniform),
        "moved_by_copies": _moved(copies, uniform),
        "moved_by_density": beyond,
        "contrast": float(np.exp(high - low)),
        "between_crowds": _moved(found.weights, base, crowds) / max(beyond, TINY),
        "between_domains": _moved(found.weights, base, domains) / max(beyond, TINY),
        "in_domains": float(copies[domains > 0].sum()),
        "domains": int(domains.max()),
    }
    for name, even in known.items():
        measures = [one for one in ("entropy_uniform", "entropy", "gap") if one in even]
        if even["labels"] > 1:
            opinion |= {f"{name}_{measure}": even[measure] for measure in measures}
    opinion = {name: round(value, 4) for name, value in opinion.items()}
    return {"case": _case(opinion), **opinion}


def _case(of: Mapping[str, float]) -> str:
    if of["moved_by_copies"] >= max(of["moved_by_density"], FEW):
        return "copies"
    if of["contrast"] < CONTRAST or of["moved_by_density"] < STILL:
        return "even"
    if of["between_crowds"] < BETWEEN:
        return "wide"
    apart = of["between_domains"] >= MOST * of["between_crowds"]
    return "domains" if apart and of["in_domains"] >= NEARLY_ALL else "crowds"


def _moved(weights: np.ndarray, base: np.ndarray, parts: np.ndarray | None = None) -> float:
    """Return the total variation distance of two weightings, or of their sums over parts."""
    gained = weights - base
    gained = gained if parts is None else np.bincount(parts, gained)
    return float(np.abs(gained).sum() / 2)


def _crowds(graph: Graph, found: Estimate) -> np.ndarray:
    """Return where the walk from each prompt to a nearest denser one ends, numbered from 0."""
    rows = np.arange(len(graph))
    rank = np.empty(len(graph), dtype=np.int32)
    rank[np.argsort(found.density, kind="stable")] = rows
    outside = found.clusters[graph.indices] != found.clusters[:, None]
    denser = rank[graph.indices] > rank[:, None]
    denser &= np.cumsum(outside, axis=1, dtype=np.int16) <= NEAR
    ends = rows
    if graph.k:
        step = graph.indices[rows, denser.argmax(axis=1)]
        ends = np.where(denser.any(axis=1), step, rows)
    while not np.array_equal(ends, further := ends[ends]):
        ends = further
    return np.unique(ends, return_inverse=True)[1]


def _domains(graph: Graph, crowds: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Join crowds until none has more than a few neighbours outside; return the large ones from 1.

    In rounds, each crowd of many neighbours outside joins the one that most of these are in, for
    its size (Borůvka 1926). What is in no large domain is in 0.
    """
    rows = slice(None, None, max(1, len(graph) // SURVEYED))
    heads, tails = np.repeat(crowds[rows], graph.k), crowds[graph.indices[rows].ravel()]
    links = _summed(heads, tails, np.repeat(masses[rows], graph.k), crowds.max() + 1)
    links, domains = (links + links.T).tocsr(), crowds
    while True:
        count, pairs = links.shape[0], links.tocoo()
        total = np.asarray(links.sum(axis=1)).ravel()
        out = pairs.row != pairs.col
        head, tail, link = pairs.row[out], pairs.col[out], pairs.data[out]
        leaving = np.bincount(head, link, count) > LEAVING * total
        order = np.lexsort((tail, -link / np.sqrt(total[tail]), head))
        best = order[np.unique(head[order], return_index=True)[1]]
        best = best[leaving[head[best]]]
        if not len(best):
            break
        joined = _summed(head[best], tail[best], np.ones(len(best)), count)
        into = connected_components(joined, directed=False)[1]
        domains = into[domains]
        links = _summed(into[pairs.row], into[pairs.col], pairs.data, into.max() + 1)
    large = np.bincount(domains, masses) >= LARGE
    return (np.cumsum(large) * large)[domains]


def _summed(heads: np.ndarray, tails: np.ndarray, values: np.ndarray, count: int) -> csr_array:
    return coo_array((values, (heads, tails)), shape=(count, count)).tocsr()


def sentences(opinion: Mapping[str, Any], standalone: bool = False) -> list[str]:
    """Return in plain sentences what :func:`judge` found: the case first, then known kinds.

    Parameters
    ----------
    opinion : mapping
    standalone : bool
        Name the options of ``isodense weigh`` in place of a project's params.
    """
    if not opinion:
        return []
    known = [name.removesuffix("_entropy") for name in opinion if name.endswith("_entropy")]
    kinds = [_of_kinds(opinion, name, standalone) for name in known]
    return [*_of_case(opinion, standalone), *kinds]


def _of_case(of: Mapping[str, Any], standalone: bool) -> list[str]:
    tenths = (
        f"a crowded prompt (one in ten is more so) has {of['contrast']:,.1f} times as many "
        "distinct ones around it as a sparse one (one in ten is more so)"
    )
    ess = "--ess" if standalone else "density.ess"
    if of["case"] == "copies":
        rest = "which is little" if of["contrast"] < CONTRAST else "which counts as well"
        return [
            f"Dominated by near-duplicates: the weights move {of['moved']:.0%} of the draws, and "
            f"drawing each duplicate cluster as one prompt would alone move "
            f"{of['moved_by_copies']:.0%}, so they are {_copied(of):.0%} of it.",
            f"Use the weights, or drop near-duplicates. Density moves "
            f"{of['moved_by_density']:.0%} beyond them, {rest}: {tenths}.",
        ]
    if of["case"] == "even" and of["contrast"] < CONTRAST:
        return [
            f"Nearly even, as far as the encoder tells: {tenths}, and the density moves "
            f"{of['moved_by_density']:.0%} of the draws.",
            "Weights close to uniform are right here; there is little to gain.",
        ]
    if of["case"] == "even":
        return [
            f"All but uniform weights: the density moves {of['moved_by_density']:.0%} of the "
            f"draws, although {tenths}. A lower {ess} moves more."
        ]
    moved = f"Of the {of['moved_by_density']:.0%} of the draws that the density moves, "
    if of["case"] == "wide":
        gentle = f"{ess} 0.9" if standalone else f"{ess}: 0.9"
        return [
            f"One wide crowd of prompts, or several alike: {tenths}. {moved}"
            f"{1 - of['between_crowds']:.0%} go from typical prompts of a crowd to unusual ones of "
            "the same crowd.",
            "Weights favour what is unlike the rest, garbage too: read the prompts with the "
            f"largest. Prefer uniform or gentle ones ({gentle} or more), unless you want more "
            "unusual prompts.",
        ]
    if of["case"] == "domains":
        by = "-S density.balance_by=COLUMN" if standalone else "density.balance_by"
        return [
            f"A mixture of {of['domains']} separate domains: {tenths}. {moved}"
            f"{of['between_domains']:.0%} go from one domain to another.",
            "How dense a domain is depends on how alike its prompts are, not only on how many: "
            f"where sources or labels are known, set their shares with {by}, and the density "
            "decides within them.",
        ]
    unknown = ", and vectors do not tell which it is: labels of some prompts would"
    return [
        f"Dense crowds of similar prompts beside sparse ones: {tenths}. {moved}"
        f"{of['between_crowds']:.0%} go from one crowd to another.",
        "Use the weights where dense crowds are kinds that come too often. Where large kinds are "
        f"also varied they make kinds less even{'' if 'label_entropy' in of else unknown}.",
    ]


def _of_kinds(of: Mapping[str, Any], name: str, standalone: bool) -> str:
    before, after = of[f"{name}_entropy_uniform"], of[f"{name}_entropy"]
    said = f"Known {name}s are {_change(of, name)} under uniform sampling, entropy {before:.3f} to "
    said += f"{after:.3f} (1 is even)"
    gap = of.get(f"{name}_gap")
    if gap is not None and before < LOPSIDED:
        change = f"remove {gap:.0%} of" if gap >= 0 else f"add {-gap:.0%} to"
        said += f": the weights {change} the unevenness"
    if after < before - SAME:
        by = f"-S density.balance_by={name}" if standalone else f"density.balance_by: {name}"
        said += f"; {by} makes them even"
    return f"{said}."


def short(opinion: Mapping[str, Any]) -> str:
    """Return what :func:`judge` found in a few words, empty where it found nothing."""
    if not opinion:
        return ""
    words = {
        "copies": f"{_copied(opinion):.0%} of it due to near-duplicates alone",
        "even": "little of it by density",
        "wide": "from typical prompts of one wide crowd to unusual ones",
        "domains": f"between {opinion['domains']} separate domains",
        "crowds": "from dense crowds to sparse ones",
    }
    by = f"density moves {opinion['moved_by_density']:.0%}"  # and not what balances known kinds
    by = f"weights move {opinion['moved']:.0%}" if opinion["case"] in ("copies", "even") else by
    said = f"{by} of the draws, {words[opinion['case']]}"
    if "label_entropy" in opinion:
        said += f"; labels are {_change(opinion, 'label')} uniform"
    return said


def _copied(of: Mapping[str, float]) -> float:
    return min(of["moved_by_copies"] / max(of["moved"], TINY), 1.0)


def _change(of: Mapping[str, float], name: str) -> str:
    gain = of[f"{name}_entropy"] - of[f"{name}_entropy_uniform"]
    if abs(gain) < SAME:
        return "as even as"
    return "more even than" if gain > 0 else "less even than"
