"""Do density weights even out sets whose make-up is known? Ours and others, on twelve sets.

Usage
-----
pip install --no-deps geosketch fbpca        # without them, geosketch's rows are left out
python benchmarks/density.py                 # everything: weights, subsets, theory
python benchmarks/density.py weights --only "tail 1" --seeds 10
python benchmarks/density.py --real DIR      # requests of real users: benchmarks/labelled.py
python benchmarks/density.py --real DIR --policy models/policy      # benchmarks/encoders.py

Text sets are rows of the sample's generator, the intent their truth. *gap* is the share of the
Kullback-Leibler divergence between uniform sampling and even labels that the weights remove
(1 perfect, 0 no better than uniform, below 0 worse). The effective sample size is of *distinct*
prompts; masses of near-duplicates are added up first: 20 draws of 20 are not 20 prompts. Each seed
is another set; ± is the 95% t-interval over seeds. Needs models/encoder (`dvc repro models`).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import itertools
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.stats import spearmanr, t, vonmises_fisher
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import KernelDensity

import isodense
from isodense.density.balance import effective_sample_size, label_statistics
from isodense.density.duplicates import intrinsic_dimension
from isodense.density.estimate import estimate
from isodense.density.params import DensityParams
from isodense.download.sources import sample
from isodense.pipeline import params
from isodense.prompts.deduplicate import unique_prompts
from isodense.synthetic.counts import power_law_counts

ROOT = Path(__file__).resolve().parents[1]
PARAMS = params.load(ROOT / "params.yaml", "density", DensityParams)
SKETCH = importlib.util.find_spec("geosketch") is not None
OURS, CUT_OFF = "**ours**, soft_count", "ours, kernel cut off at k = 20"
EVEN, EPS = 0.97, 0.1  # label entropy from which a gap means nothing; 1 - cosine of duplicates
PLAIN, DISTINCT = "as they are", "at equal ESS of distinct prompts"
SUBSET, GARBAGE = 256, ""  # size; label of random strings
LETTERS = list("abcdefghijklmnopqrstuvwxyz0123456789 .,;!?#@")
Embed = Callable[[list[str]], np.ndarray]
Results = dict[str, dict[str, dict[str, np.ndarray]]]  # by set, scheme and measure; over seeds


@dataclass
class Data:
    """Unit vectors with their true labels, and what several schemes need of them."""

    X: np.ndarray
    labels: np.ndarray
    clusters: np.ndarray | None = None  # of near-duplicates; by default as ours finds them

    def __post_init__(self) -> None:
        self.clusters = self.duplicates if self.clusters is None else self.clusters

    @cached_property
    def graph(self) -> isodense.Graph:
        """Fifty nearest neighbours."""
        return isodense.knn_graph(self.X, 50)

    @cached_property
    def means(self) -> np.ndarray:
        """Which of √N clusters of k-means each row is in."""
        return KMeans(round(len(self.X) ** 0.5), n_init=1, random_state=0).fit_predict(self.X)

    @cached_property
    def duplicates(self) -> np.ndarray:
        """Duplicate clusters as the default finds them."""
        return estimate(self.graph, PARAMS).clusters

    @property
    def distances(self) -> np.ndarray:
        """Distances to them, kept off zero."""
        return np.maximum(self.graph.distances.astype(np.float64), 1e-6)


def texts(embed: Embed, seed: int, junk: int = 0, repeat: bool = False, **changes: float) -> Data:
    """Embed the prompts of 2,000 pairs, and random strings; `repeat` leaves exact copies in."""
    chosen = {"tail": 1.0, "copies": 0.08, "near": 0.15} | changes
    shape = sample.SampleParams(
        pairs=2000,
        exponent=chosen["tail"],
        duplicates=chosen["copies"],
        near_duplicates=chosen["near"],
        multi_turn=0.1,
    )
    pairs = sample.load(shape, np.random.default_rng(seed))
    prompts = unique_prompts([row | {"source": "sample"} for row in pairs], heldout=0.0)
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(LETTERS, rng.integers(10, 80))) for _ in range(junk)]
    labels = np.array([*(prompts.labels or []), *[GARBAGE] * junk])
    times = [*(row["count"] if repeat else 1 for row in prompts.rows), *[1] * junk]
    return Data(np.repeat(embed(prompts.texts + words), times, axis=0), np.repeat(labels, times))


def crowded(embed: Embed, seed: int) -> Data:
    """Give 40 random prompts 19 near-duplicates each, at a distance of about 0.1."""
    rng = np.random.default_rng(seed)
    data = texts(embed, seed, copies=0, near=0)
    rows = np.repeat(rng.choice(len(data.X), 40, replace=False), 19)
    X = np.concatenate([data.X, noisy(data.X[rows], 0.1, rng)])
    return Data(X, np.concatenate([data.labels, data.labels[rows]]), np.r_[: len(data.X), rows])


def mixture(seed: int, dim: int, exponent: float = 1.0) -> Data:
    """Draw 2,000 points of 100 Gaussians around random directions, sizes by a power law."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(100), power_law_counts(2000, exponent, 100))
    centres = noisy(np.zeros((100, dim)), 1.0, rng)
    return Data(noisy(centres[labels], 0.4, rng), labels.astype(str), np.arange(len(labels)))


def noisy(X: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Move rows by Gaussian noise of this length and return them as unit rows."""
    X = X + size / X.shape[1] ** 0.5 * rng.standard_normal(X.shape)
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)


SETS: dict[str, Callable[[Embed, int], Data]] = {
    "tail 0.5": lambda embed, seed: texts(embed, seed, tail=0.5),
    "tail 1": texts,
    "tail 1.5": lambda embed, seed: texts(embed, seed, tail=1.5),
    "no duplicates": lambda embed, seed: texts(embed, seed, copies=0, near=0),
    "near-duplicates": lambda embed, seed: texts(embed, seed, copies=0, near=0.5),
    "20-fold near-duplicates": crowded,
    "exact copies": lambda embed, seed: texts(embed, seed, copies=0.3, repeat=True),
    "garbage": lambda embed, seed: texts(embed, seed, junk=18),
    "mixture, 8-d": lambda _, seed: mixture(seed, 8),
    "mixture, 32-d": lambda _, seed: mixture(seed, 32),
    "even": lambda embed, seed: texts(embed, seed, tail=0.0),
    "even mixture": lambda _, seed: mixture(seed, 32, 0.0),
}


def inverse_kde(data: Data) -> np.ndarray:
    """Return 1 / density by a Gaussian kernel over all pairs, 0.4 median r₂₀ wide."""
    kde = KernelDensity(bandwidth=0.4 * np.median(data.distances[:, 19])).fit(data.X)
    log = kde.score_samples(data.X)
    return np.exp(log.min() - log)


def semdedup(data: Data, size: int | None = None) -> np.ndarray:
    """Drop prompts like one farther from their cluster's centre, or all but `size` of them."""
    similarity = np.empty(len(data.X))
    for cluster in range(data.means.max() + 1):
        rows = np.flatnonzero(data.means == cluster)
        rows = rows[np.argsort(data.X[rows] @ data.X[rows].mean(axis=0), kind="stable")]
        earlier = np.triu(np.ones((len(rows), len(rows)), dtype=bool), 1)
        similarity[rows] = np.where(earlier, data.X[rows] @ data.X[rows].T, -1).max(axis=0)
    limit = np.sort(similarity)[size - 1] if size else 1 - EPS
    return (similarity <= limit).astype(np.float64)


def sketch(data: Data, size: int | None = None) -> np.ndarray:
    """Return weights uniform over a geometric sketch of half the set, or of `size`."""
    from geosketch import gs  # of 100 principal components, as its authors advise

    X = data.X if data.X.shape[1] <= 100 else PCA(100, random_state=0).fit_transform(data.X)
    return 1.0 * np.isin(np.arange(len(X)), gs(X.astype(np.float64), size or len(X) // 2, seed=0))


def cut_off(data: Data) -> np.ndarray:
    """Return weights by the former idea: a kernel over 20 neighbours, and nothing beyond them."""
    sizes = np.bincount(data.duplicates)
    near, distances = data.duplicates[data.graph.indices[:, :20]], data.distances[:, :20]
    kernel = np.exp(-((distances / np.median(distances[:, -1]) / 0.4) ** 2) / 2) / sizes[near]
    log = np.log1p((kernel * (near != data.duplicates[:, None])).sum(axis=1))
    logs = -np.bincount(data.duplicates, weights=log) / sizes
    power = min(tempered(logs, np.arange(len(sizes)), 0.8 * len(sizes), low=1), 4)
    return (np.exp(power * logs) / sizes)[data.duplicates]


SUBSETS = {f"SemDeDup, ε = {EPS}": semdedup} | ({"geosketch, N/2": sketch} if SKETCH else {})
SCHEMES: dict[str, Callable[[Data], np.ndarray]] = {
    "uniform": lambda data: np.ones(len(data.X)),
    "1/r̄₁₀, the prototype": lambda data: 1 / data.distances[:, :10].mean(axis=1),
    "r̄₁₀": lambda data: data.distances[:, :10].mean(axis=1),
    "r₂₀^d": lambda data: data.distances[:, 19] ** intrinsic_dimension(data.graph.first(20)),
    "inverse KDE, all pairs": inverse_kde,
    "k-means √N, 1/size": lambda data: 1 / np.bincount(data.means)[data.means],
    **SUBSETS,
    "ours, knn (ess 0.7)": lambda data: isodense.density_weights(data.graph, method="knn", ess=0.7),
    "ours, balance": lambda data: isodense.density_weights(data.graph, method="balance"),
    CUT_OFF: cut_off,
    OURS: lambda data: isodense.density_weights(data.graph),
}


def ess(weights: np.ndarray, clusters: np.ndarray) -> float:
    """Return the effective number of clusters."""
    return effective_sample_size(np.bincount(clusters, weights=weights))


def tempered(logs: np.ndarray, clusters: np.ndarray, target: float, low: float = 0) -> float:
    """Return the largest power, at least `low`, of this effective number, or the nearest."""

    def excess(power: float) -> float:
        return ess(np.exp(power * (logs - logs.max())), clusters) - target

    powers = np.array([low, *np.geomspace(max(low, 0.02), 64, 120)])
    found = np.array([excess(power) for power in powers])
    if found[-1] >= 0 or found.max() < 0:
        return powers[-1 if found[-1] >= 0 else found.argmax()]
    last = np.flatnonzero(found >= 0)[-1]
    return brentq(excess, *powers[last : last + 2])


def weighed(scheme: str, weights: np.ndarray, data: Data, how: str) -> np.ndarray:
    """Return weights, or their power (or a subset) of as nearly the ESS of ours as it gets."""
    if how == PLAIN:
        return weights
    clusters = data.clusters if how == DISTINCT else np.arange(len(data.X))
    target = ess(SCHEMES[OURS](data), clusters)
    if scheme not in SUBSETS:
        logs = np.log(np.maximum(weights / weights.max(), 1e-300))
        return np.exp(tempered(logs, clusters, target) * (logs - logs.max()))
    size = target
    for _ in range(3):  # a subset can hold copies, so it takes more of them
        weights = SUBSETS[scheme](data, round(size))
        size = min(size * target / ess(weights, clusters), len(data.X))
    return weights


def measure(weights: np.ndarray, data: Data) -> dict[str, float]:
    """Return what weights do to the labels, and what they cost."""
    weights, named = weights / weights.sum(), data.labels != GARBAGE
    real = weights[named]
    found = label_statistics(real / real.sum(), data.labels[named].tolist())
    nearly_even = found["entropy_uniform"] >= EVEN
    change = 100 * (found["entropy"] - found["entropy_uniform"])
    return {
        "even": nearly_even,
        "score": change if nearly_even else found["gap"],
        "ess": ess(weights, data.clusters) / len(np.unique(data.clusters)),
        "max": weights.max() * len(weights),
        "garbage": (1 - real.sum()) / max(1 - named.mean(), 1e-9),
    }


def weights(sets: dict[str, list[Data]]) -> None:
    """Compare schemes as they are, at equal effective sample size, and at that of single rows."""
    kinds = (PLAIN, DISTINCT, "at equal ESS of rows")
    results: dict[str, Results] = {how: {name: {} for name in sets} for how in kinds}
    for (name, several), scheme in itertools.product(sets.items(), SCHEMES):
        pairs = [(SCHEMES[scheme](data), data) for data in several]
        for how in kinds:
            runs = [measure(weighed(scheme, *pair, how), pair[1]) for pair in pairs]
            results[how][name][scheme] = {k: np.array([run[k] for run in runs]) for k in runs[0]}
    for how, found in results.items():
        if how in (PLAIN, DISTINCT):
            compare(found, how)
        header = ["set", "best peer", "it", "ours", "ours − it", "ours − uniform"]
        rows = [[name, *verdict(found[name], how == PLAIN)] for name in found]
        table(f"Ours against the best peer, {how}", header, rows)


def compare(results: Results, how: str) -> None:
    """Print gaps, changes of entropy on nearly even sets, and what garbage gets."""
    flat = [name for name in results if results[name][OURS]["even"].all()]
    steep = [name for name in results if name not in flat]
    for measured, sets in (("Gap", steep), ("Change of label entropy, % of the largest,", flat)):
        rows = []
        for scheme in SCHEMES if sets else ():
            found = [results[name][scheme] for name in sets]
            means = [f"{np.mean([each[key] for each in found]):.2f}" for key in ("ess", "max")]
            rows.append([scheme, *(interval(each["score"]) for each in found), *means])
        table(f"{measured} of weights {how}", ["scheme", *sets, "ESS", "max/mean"], rows)
    rows = [[name, interval(f["garbage"])] for name, f in results.get("garbage", {}).items()]
    table(f"Garbage, weights {how}", ["scheme", "mass of garbage, of its share"], rows)


def verdict(found: dict[str, dict[str, np.ndarray]], weaker: bool) -> list[str]:
    """Return ours against the best peer, by seed; `weaker`: of those that have no lower ESS."""
    score = {scheme: each["score"] for scheme, each in found.items()}
    least = weaker * (found[OURS]["ess"].mean() - 0.005)
    peers = [peer for peer in found if "ours" not in peer and found[peer]["ess"].mean() >= least]
    best = max(peers, key=lambda peer: score[peer].mean(), default="none")
    score["none"] = np.nan * score[OURS]
    gained = (score[OURS] - score[peer] for peer in (best, "uniform"))
    return [best, *map(interval, (score[best], score[OURS], *gained))]


def farthest_first(data: Data, seed: int) -> np.ndarray:
    """Choose the prompt farthest from all chosen, again and again (greedy k-centre)."""
    chosen = [int(np.random.default_rng(seed).integers(len(data.X)))]
    nearest = np.full(len(data.X), -1.0)
    while len(chosen) < SUBSET:
        nearest = np.maximum(nearest, data.X @ data.X[chosen[-1]])
        chosen.append(int(nearest.argmin()))
    return np.array(chosen)


def selected(data: Data, seed: int, k: int = 20, spread: bool = True) -> np.ndarray:
    """Choose by weight and, with `spread`, away from the chosen."""
    return isodense.select(SCHEMES[OURS](data), data.graph.first(k), SUBSET, spread, seed)


CHOOSERS: dict[str, Callable[[Data, int], np.ndarray]] = {
    "random": lambda data, seed: np.random.default_rng(seed).permutation(len(data.X))[:SUBSET],
    "k-centre, greedy": farthest_first,
    **({"geosketch": lambda data, _: np.flatnonzero(sketch(data, SUBSET))} if SKETCH else {}),
    "ours, by weight alone": partial(selected, spread=False),
    "**ours**, spread, k 20": selected,
    "**ours**, spread, k 50": partial(selected, k=50),
}


def subsets(sets: dict[str, list[Data]]) -> None:
    """Print the share of labels that subsets of fixed size cover."""
    rows = [
        [name, *(interval(coverage(choose, several)) for several in sets.values())]
        for name, choose in CHOOSERS.items()
    ]
    table(f"Share of labels among {SUBSET} chosen", ["chosen", *sets], rows)


def coverage(choose: Callable[[Data, int], np.ndarray], several: list[Data]) -> list[float]:
    """Return the share of labels that have a prompt among the chosen, for each seed."""
    pairs = [(data.labels[choose(data, seed)], data.labels) for seed, data in enumerate(several)]
    return [len({*found} - {GARBAGE}) / len({*labels} - {GARBAGE}) for found, labels in pairs]


THEORY = {"1/r̄₁₀, the prototype": "1/d", "r̄₁₀": "−1/d", "r₂₀^d": "−1"}
THEORY |= {"inverse KDE, all pairs": "−1", CUT_OFF: "−a … 0", OURS: "−a … 0"}


def theory(seeds: int) -> None:
    """Hold weights against von Mises-Fisher densities, which are known at every point."""
    runs = [[slopes(dim, seed) for seed in range(seeds)] for dim in (2, 4, 8)]
    rows = [
        [name, THEORY.get(name, ""), *(interval([run[name] for run in some]) for some in runs)]
        for name in runs[0][0]
    ]
    header = ["slope of log weight on log density", "theory", "d = 2", "d = 4", "d = 8"]
    table("Sign and exponent", header, rows)


def slopes(dim: int, seed: int) -> dict[str, float]:
    """Return slopes of log weight on true log density for 3,000 points, and estimates."""
    law = vonmises_fisher(np.eye(dim + 1)[0], 2.0 * dim)
    X = law.rvs(3000, random_state=np.random.default_rng(seed))
    truth, data = law.logpdf(X), Data(X.astype(np.float32), np.zeros(len(X)))
    logs = {name: np.log(SCHEMES[name](data)) for name in THEORY}
    found = {name: np.polyfit(truth, log, 1)[0] for name, log in logs.items()}
    found["rank correlation, **ours**"] = spearmanr(logs[OURS], truth)[0]
    return {**found, "estimated d": intrinsic_dimension(data.graph.first(20))}


def interval(found: np.ndarray | list[float], digits: int = 2) -> str:
    """Return the mean and half of its 95% t-interval."""
    half = t.ppf(0.975, len(found) - 1) * np.std(found, ddof=1) / len(found) ** 0.5
    said = f"{np.mean(found):.{digits}f} ± {half:.{digits}f}"
    return said.replace("-", "−").replace("nan ± nan", "")


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table, if it has rows."""
    if rows:
        print(f"### {title}\n\n| {' | '.join(header)} |\n| --- |{' ---: |' * (len(header) - 1)}")
        print("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n", flush=True)


def caching(folder: Path, kept: Path | None = None, layer: int | None = None) -> Embed:
    """Return a function that embeds each text once, also over runs if there is a folder for it."""
    known: dict[str, np.ndarray] = {}
    encoder = cache(lambda: isodense.load_encoder(folder, layer=layer))
    for path in sorted(kept.glob("*.npz")) if kept else []:
        with np.load(path) as file:
            known.update(zip(file["texts"].tolist(), file["vectors"], strict=True))

    def embed(words: list[str]) -> np.ndarray:
        if new := list(dict.fromkeys(word for word in words if word not in known)):
            vectors = encoder().encode(new)
            known.update(zip(new, vectors, strict=True))
            if kept:
                kept.mkdir(parents=True, exist_ok=True)
                name = hashlib.sha256("\n".join(new).encode()).hexdigest()[:16]
                np.savez(kept / f"{name}.npz", texts=np.array(new), vectors=vectors)
        return np.stack([known[word] for word in words])

    return embed


def main() -> None:
    """Run the parts asked for."""
    parts = {"weights": weights, "subsets": subsets, "theory": lambda _: theory(args.seeds)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", default="all", choices=["all", *parts])
    parser.add_argument("--encoder", type=Path, default=Path("models/encoder"), help="its folder")
    parser.add_argument("--real", type=Path, metavar="DIR", help="files of labelled requests")
    parser.add_argument("--policy", type=Path, metavar="DIR", help="compare encoders on --real")
    parser.add_argument("--vectors", type=Path, help="folder that keeps embeddings between runs")
    parser.add_argument("--seeds", type=int, default=5, help="sets of each kind, 2 or more")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--only", choices=SETS, metavar="NAME", help=f"one of: {', '.join(SETS)}")
    args = parser.parse_args()
    seeds = range(args.first, args.first + args.seeds)
    embed = caching(args.encoder, args.vectors)
    if args.real and args.policy:
        import encoders

        encoders.run(args.real, embed, args.policy, args.vectors, seeds)
    elif args.real:
        import labelled

        labelled.run(args.real, embed, seeds)
    else:
        names = [] if args.part == "theory" else [args.only] if args.only else list(SETS)
        sets = {name: [SETS[name](embed, seed) for seed in seeds] for name in names}
        for part in parts if args.part == "all" else [args.part]:
            parts[part](sets)
    used = ["numpy", "scipy", "scikit-learn", "torch", *(["geosketch"] if SKETCH else [])]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in used)
    python = platform.python_version()
    print(f"{args.seeds} seeds, {os.cpu_count()} CPUs, Python {python}, {versions}")


if __name__ == "__main__":
    main()
