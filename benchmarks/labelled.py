"""Density weights on real requests whose labels are known: strength, k, and rewordings.

`python benchmarks/density.py --real DIR` runs it. DIR has `hwu64.jsonl.gz`,
`slurp_devel_test.jsonl.gz` and `snips.jsonl.gz`, rows `{"text", "label"}`, one per distinct text.

*Constructed* sets are cut to long tails, steps and mixtures; *natural* ones have the distribution
of labels they came with; *even* ones have as many rows of each label. Two *synthetic* ones are the
project's own. A gap is the share of the divergence from even labels that weights remove, on even
sets the change of entropy in percent. ± is the 95% t-interval over seeds, each of which draws all
sets anew; of a kind of sets, the mean over them is taken first.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from scipy.optimize import brentq

import isodense
from density import PARAMS, Embed, ess, interval, table, texts
from isodense.density import kernel
from isodense.density.balance import label_statistics
from isodense.density.estimate import Estimate, estimate, inverse_weights
from isodense.density.params import DensityParams
from isodense.prompts.conversations import encoder_text
from isodense.synthetic.requests import SkillsParams, load

TARGETS, KS, KEPT, DISTINCT = (0.95, 0.9, 0.8, 0.7), (20, 50, 100), 50, 20
GROUPS, SIZE, REACHES = 40, 10, (0.0, 0.5, 0.6)
Rows = list[tuple[str, str]]  # text and label
Files = dict[str, dict[str, list[str]]]  # texts by label, of each file


@dataclass
class Labelled:
    """Embedded requests with labels."""

    X: np.ndarray
    labels: np.ndarray

    @cached_property
    def graph(self) -> isodense.Graph:
        """A hundred nearest neighbours."""
        return isodense.knn_graph(self.X, max(KS))

    @cached_property
    def default(self) -> Estimate:
        """What the default finds; its duplicate clusters are those of every scheme."""
        return estimate(self.graph, PARAMS)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Prompts in the duplicate cluster of each."""
        return self.default.sizes

    def ess(self, weights: np.ndarray) -> float:
        """Return the effective share of the duplicate clusters."""
        clusters = self.default.clusters
        return ess(weights, clusters) / (clusters.max() + 1)

    def score(self, weights: np.ndarray, even: bool) -> float:
        """Return the gap, or the change of entropy in percent."""
        found = label_statistics(weights / weights.sum(), self.labels.tolist())
        return 100 * (found["entropy"] - found["entropy_uniform"]) if even else found["gap"]

    def reached(self, logs: np.ndarray, target: float, most: float) -> np.ndarray:
        """Return the weakest weights exp(-a · logs) / m, a up to `most`, of this ESS."""

        def excess(exponent: float) -> float:
            return self.ess(inverse_weights(logs, exponent, self.sizes)) - target

        exponent = most if excess(most) > 0 else brentq(excess, 0, most)
        return inverse_weights(logs, exponent, self.sizes)


def ours(data: Labelled, target: float, **changes: object) -> np.ndarray:
    """Return the weights of the default with these params."""
    return estimate(data.graph, PARAMS.model_copy(update={"ess": target, **changes})).weights


def d20(data: Labelled, target: float) -> np.ndarray:
    """Return weights that count 20 distinct neighbours of 50, the same number everywhere.

    Neighbours are kept while the nearer ones hold fewer than 20 distinct prompts, then the count is
    extrapolated as the default's.
    """
    found, graph = data.default, data.graph.first(KEPT)
    outside = found.clusters[graph.indices] != found.clusters[:, None]
    shares = outside / data.sizes[graph.indices]
    shares *= np.cumsum(shares, axis=1) - shares < DISTINCT
    scaled = graph.distances.astype(np.float64) ** 2 / (2 * found.scales.width**2)
    last = np.where(shares > 0, scaled, 0).max(axis=1)
    counts = (shares * np.exp(-scaled)).sum(axis=1)
    counts += kernel._beyond(shares.sum(axis=1), last, found.scales.dimension)
    logs = np.log1p(np.minimum(counts, len(counts)))
    means = np.bincount(found.clusters, weights=logs) / np.bincount(found.clusters)
    return data.reached(means[found.clusters], target, PARAMS.alpha_max)


def oracle(data: Labelled, target: float) -> np.ndarray:
    """Return weights by the size of a label, to the power that reaches the ESS, or 1 at most."""
    _, label, sizes = np.unique(data.labels, return_inverse=True, return_counts=True)
    return data.reached(np.log(sizes[label]), target, 1.0)


def read(folder: Path) -> Files:
    """Return the texts of the three files by label."""
    files: Files = {}
    for name in ("hwu64", "slurp_devel_test", "snips"):
        labels = files.setdefault(name.split("_")[0], {})
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
            for row in map(json.loads, stream):
                labels.setdefault(row["label"], []).append(row["text"])
    return {name: dict(sorted(labels.items())) for name, labels in files.items()}


def sized(
    file: dict[str, list[str]], rng: np.random.Generator, size: Callable[[int, int], int]
) -> Rows:
    """Draw `size(place, rows)` rows of each label, or all; labels have their places by lot."""
    rows = []
    for place, label in enumerate(rng.permutation(list(file))):
        found = file[label]
        drawn = rng.permutation(len(found))[: size(place, len(found))]
        rows += [(found[row], str(label)) for row in drawn]
    return rows


def tail(top: int, exponent: float) -> Callable[[int, int], int]:
    """Give the label at each place a power of it of the rows, four or more."""
    return lambda place, _: max(4, round(top * (place + 1) ** -exponent))


def step(high: int, low: int) -> Callable[[int, int], int]:
    """Give every other label few rows."""
    return lambda place, _: low if place % 2 else high


def mixed(files: Files, rng: np.random.Generator) -> Rows:
    """Mix two domains: seven labels of many rows, those of another file of few."""
    few = {label: found for label, found in files["hwu64"].items() if len(found) >= 12}
    return sized(files["snips"], rng, lambda *_: 200) + sized(few, rng, lambda *_: 12)


def domains(files: Files, rng: np.random.Generator) -> Rows:
    """Draw rows of domains (`alarm`, `calendar`, …) by a power law; the domain is the label.

    Within one, labels are as common as they are in the file.
    """
    return sized(by_domain(files["hwu64"]), rng, tail(700, 1.0))


def share(_: int, rows: int) -> int:
    """Take four fifths of a label's rows."""
    return round(0.8 * rows)


def large(file: dict[str, list[str]], least: int) -> dict[str, list[str]]:
    """Leave out labels of fewer rows."""
    return {label: found for label, found in file.items() if len(found) >= least}


def by_domain(file: dict[str, list[str]]) -> dict[str, list[str]]:
    """Join the labels of a domain."""
    return {
        name: [text for label in labels for text in file[label]]
        for name, labels in itertools.groupby(file, lambda label: label.split("_")[0])
    }


Sets = dict[str, dict[str, Callable[[np.random.Generator], Rows]]]


def sets_of(files: Files) -> Sets:
    """Return how each set of each kind is drawn."""
    hwu, slurp, snips = files["hwu64"], large(files["slurp"], 5), files["snips"]

    def cut(file: dict[str, list[str]], size: Callable[[int, int], int]) -> Callable[..., Rows]:
        return lambda rng: sized(file, rng, size)

    return {
        "constructed": {
            "HWU64, tail 0.7": cut(hwu, tail(190, 0.7)),
            "HWU64, tail 1": cut(hwu, tail(190, 1.0)),
            "HWU64, tail 1.3": cut(hwu, tail(190, 1.3)),
            "SLURP, tail 1": cut(large(slurp, 30), tail(200, 1.0)),
            "SNIPS, tail 1": cut(snips, tail(1000, 1.0)),
            "SNIPS, tail 2": cut(snips, tail(1500, 2.0)),
            "HWU64, 100 and 10": cut(large(hwu, 100), step(100, 10)),
            "SLURP, 50 and 5": cut(large(slurp, 50), step(50, 5)),
            "SNIPS, 500 and 50": cut(snips, step(500, 50)),
            "SNIPS and HWU64": partial(mixed, files),
            "HWU64, domains": partial(domains, files),
        },
        "natural": {
            "SLURP": cut(slurp, share),
            "SLURP, domains": cut(by_domain(slurp), share),
            "HWU64, domains as they are": cut(by_domain(hwu), lambda _, rows: round(0.4 * rows)),
        },
        "even": {
            "HWU64, 40 each": cut(large(hwu, 40), lambda *_: 40),
            "SLURP, 50 each": cut(large(slurp, 50), lambda *_: 50),
            "HWU64, nearly even": cut(hwu, lambda _, rows: round(0.3 * rows)),
            "SNIPS, 300 each": cut(snips, lambda *_: 300),
        },
    }


def skills(embed: Embed, seed: int) -> Labelled:
    """Embed the requests of the source `skills`."""
    shape = SkillsParams(
        requests=2400, exponent=1.0, duplicates=0.1, near_duplicates=0.15, heldout=0
    )
    found = {}
    for row in load(shape, np.random.default_rng(seed)):
        said = row["prompt"]  # a text, or messages
        found[said if isinstance(said, str) else encoder_text(said)] = row["label"]
    return Labelled(embed(list(found)), np.array(list(found.values())))


def drawn(embed: Embed, rows: Rows) -> Labelled:
    """Embed rows."""
    return Labelled(embed([text for text, _ in rows]), np.array([label for _, label in rows]))


SCHEMES: dict[str, Callable[[Labelled, float], np.ndarray]] = {
    **{f"k {k}": lambda data, target, k=k: ours(data, target, k=k) for k in KS},
    "d20": d20,
    **{
        f"paraphrases {c}": lambda data, target, c=c: ours(data, target, paraphrases=c)
        for c in REACHES[1:]
    },
    "oracle": oracle,
}
ALL = list(itertools.product(SCHEMES, TARGETS))
ONE = [("k 50", 0.9), ("k 50", 0.8), ("k 20", 0.8), ("d20", 0.8), ("oracle", 0.8)]
Scores = dict[tuple[str, float], np.ndarray]  # by scheme and ESS: scores and ESS over seeds


def strength(sets: dict[str, dict[str, list[Labelled]]]) -> None:
    """Print what weights of each strength do to the labels."""
    goals = [f"ESS {target}" for target in TARGETS]
    single = []
    for kind, named in sets.items():
        found = {name: measured(several, kind == "even", ALL) for name, several in named.items()}
        means = {one: np.mean([each[one] for each in found.values()], axis=0) for one in ALL}
        rows, differences = [], []
        for scheme in SCHEMES:
            scores, reached = zip(*(means[scheme, target] for target in TARGETS), strict=True)
            near = [f"{sizes.mean():.2f}" for sizes in reached]
            rows.append([scheme, *(interval(each, 3) for each in scores), *near])
            paired = (means[scheme, target][0] - means["k 50", target][0] for target in TARGETS)
            differences.append([f"{scheme} − k 50", *(interval(each, 3) for each in paired)])
        what = "change of entropy, %" if kind == "even" else "gap"
        header = [what, *goals, *(f"reached, {target}" for target in TARGETS)]
        table(f"{kind.capitalize()} sets ({len(named)})", header, rows)
        differences = [row for row in differences if not row[0].startswith(("k 50", "oracle"))]
        table(f"{kind.capitalize()} sets, by seed", ["difference", *goals], differences)
        for name, several in named.items():
            cells = (interval(found[name][one][0], 3) for one in ONE)
            single.append([f"{name} ({kind})", *facts(several), *cells])
    header = ["set", "rows", "labels", "D", "a at ESS 0.8"]
    table("Each set", header + [f"{scheme}, ESS {target}" for scheme, target in ONE], single)


def measured(several: list[Labelled], even: bool, chosen: list[tuple[str, float]]) -> Scores:
    """Return scores and effective sample sizes of a set, over its seeds."""
    runs = {one: [(SCHEMES[one[0]](data, one[1]), data) for data in several] for one in chosen}
    return {
        one: np.array([[data.score(w, even), data.ess(w)] for w, data in found]).T
        for one, found in runs.items()
    }


def facts(several: list[Labelled]) -> list[str]:
    """Return rows, labels and dimension of the first seed, and the mean exponent."""
    data, exponents = several[0], [one.default.exponent for one in several]
    sizes = [str(len(data.X)), str(len(np.unique(data.labels)))]
    return [*sizes, f"{data.default.scales.dimension:.1f}", f"{np.mean(exponents):.2f}"]


OPENINGS = ("please ", "can you ", "could you please ", "hey, ", "i want you to ", "would you ")
ENDINGS = (" please", " for me", " thanks", " if you can", ", okay")
SHORT = {"what is": "what's", "i am": "i'm", "do not": "don't", "i would": "i'd", "it is": "it's",
         "how is": "how's", "who is": "who's", "where is": "where's", "let us": "let's",
         "i have": "i've", "is not": "isn't", "that is": "that's"}  # fmt: skip
ALIKE = """show/display, tell me/let me know, play/put on, delete/remove, find/look up, get/fetch,
make/create, start/begin, start/launch, need/require, want/would like, turn off/switch off,
turn on/switch on, buy/purchase, email/mail, movie/film, song/track, meeting/appointment,
weather/forecast, big/large, nearby/close by, about/regarding, new/recent, list/enumerate,
schedule/plan, check/look at, send/write, call/phone, any/some, lights/lamps, food/a meal,
restaurant/place to eat, morning/a.m., how much/what amount of, remind me/give me a reminder,
set/put, order/get, give me/get me, news/headlines"""
SPARE = r"\b(please|the|a|an|some|hey|just|can you|could you|olly)\b ?"
WHEN = r"^(.+?) ((?:today|tomorrow|tonight|now|this \w+|next \w+|on \w+day|at \w+ [ap]m|in \w+))$"


def reworded(text: str, rng: np.random.Generator) -> str:
    """Say a request in other words: short forms, synonyms, order, what is polite, what is spare."""
    text = text.lower().rstrip(" .?!")
    alike = [pair.split("/") for pair in re.split(r",\s", ALIKE)]
    pairs = [*SHORT.items(), *map(tuple, alike)]
    pairs += [(other, one) for one, other in pairs]
    able = [pair for pair in pairs if re.search(rf"\b{re.escape(pair[0])}\b", text)]
    for place in rng.permutation(len(able))[: rng.integers(0, 3)]:
        text = re.sub(rf"\b{re.escape(able[place][0])}\b", able[place][1], text, count=1)
    if rng.random() < 0.5:
        text = re.sub(SPARE, "", text).strip()
    if rng.random() < 0.5:
        text = re.sub(WHEN, r"\2 \1", text)
    if rng.random() < 0.4:
        text = str(rng.choice(OPENINGS)) + text
    if rng.random() < 0.4:
        text += str(rng.choice(ENDINGS))
    return text


def rewordings(text: str, rng: np.random.Generator) -> list[str]:
    """Return nine rewordings that differ, or as many as there are."""
    found = dict.fromkeys(reworded(text, rng) for _ in range(60))
    return [one for one in found if one != text.lower()][: SIZE - 1]


def crowds(embed: Embed, rows: Rows, rng: np.random.Generator) -> tuple[Labelled, np.ndarray]:
    """Give 40 requests nine rewordings each; return the set and the group of each row, or -1."""
    words = [text for text, _ in rows]
    groups: dict[int, list[str]] = {}
    for row in rng.permutation(len(rows)):
        if len(groups) < GROUPS and len(words[row].split()) >= 5:
            others = rewordings(words[row], rng)
            if len(others) == SIZE - 1:
                groups[int(row)] = others
    group = np.full(len(rows), -1)
    group[list(groups)] = range(GROUPS)
    added = [one for others in groups.values() for one in others]
    labels = [label for _, label in rows] + ["" for _ in added]
    group = np.r_[group, np.repeat(np.arange(GROUPS), SIZE - 1)]
    return Labelled(embed(words + added), np.array(labels)), group


def masses(data: Labelled, group: np.ndarray, section: DensityParams) -> np.ndarray:
    """Return what each group of rewordings weighs, in units of its request without them."""
    n = (data.labels != "").sum()
    before = estimate(isodense.knn_graph(data.X[:n], max(KS)), section).weights
    after = estimate(data.graph, section).weights
    rest, first = group == -1, group[:n]
    alone = np.bincount(first[first >= 0], before[first >= 0]) / before[first < 0].sum()
    return np.bincount(group[~rest], after[~rest]) / after[rest].sum() / alone


def paraphrases(embed: Embed, sets: Sets, seeds: range) -> None:
    """Print how close rewordings are, and the mass of ten of them."""
    header = ["ten rewordings of a request, in", "cosine to each other, 10% to 90%", "uniform"]
    header += [f"paraphrases {c:g}" for c in REACHES] + ["default, ten copies"]
    rows, example = [], []
    for kind, name in (("natural", "SLURP"), ("constructed", "HWU64, tail 0.7")):
        cells: dict[str, list[float]] = {}
        cosines = []
        for seed in seeds:
            rng = np.random.default_rng(seed)
            chosen = sets[kind][name](rng)
            data, group = crowds(embed, chosen, rng)
            for one in range(GROUPS):
                near = data.X[group == one] @ data.X[group == one].T
                cosines += near[np.triu_indices(SIZE, 1)].tolist()
            for c in REACHES:
                found = masses(data, group, PARAMS.model_copy(update={"paraphrases": c}))
                cells.setdefault(str(c), []).append(found.mean())
            first = {group[row]: row for row in range(len(chosen)) if group[row] >= 0}
            same = data.X.copy()
            added = np.arange(len(chosen), len(group))
            same[added] = data.X[[first[group[row]] for row in added]]
            copies = masses(Labelled(same, data.labels), group, PARAMS)
            cells.setdefault("copies", []).append(copies.mean())
            example = example or rewordings(chosen[min(first.values())][0], rng)
        low, middle, high = np.quantile(cosines, [0.1, 0.5, 0.9])
        rows.append([name, f"{low:.2f} to {high:.2f}, median {middle:.2f}", "10",
                     *(interval(found) for found in cells.values())])  # fmt: skip
    table("Mass of rewordings, in units of their request alone", header, rows)
    print("One group:", " | ".join(example), "\n")


def run(folder: Path, embed: Embed, seeds: range) -> None:
    """Print all tables."""
    makers = sets_of(read(folder))
    paraphrases(embed, makers, seeds)
    sets = {
        kind: {
            name: [drawn(embed, make(np.random.default_rng(seed))) for seed in seeds]
            for name, make in named.items()
        }
        for kind, named in makers.items()
    }
    sample = [texts(embed, seed) for seed in seeds]
    sets["synthetic"] = {
        "sample": [Labelled(data.X, data.labels) for data in sample],
        "skills": [skills(embed, seed) for seed in seeds],
    }
    strength(sets)
