"""Each case of the opinion, on sets that were made to be one, and the words for it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from isodense.density.balance import label_statistics
from isodense.density.estimate import estimate
from isodense.density.opinion import judge, sentences, short
from isodense.neighbors.build import knn_graph
from isodense.synthetic.counts import power_law_counts
from tests.density.vectors import PARAMS, circle, reordered, unit, with_groups


def noisy(X, size, rng):
    return unit(X + size / X.shape[1] ** 0.5 * rng.normal(size=X.shape))


def wide(rng, n=1500, dim=8):
    """One Gaussian around a direction."""
    return noisy(np.eye(1, dim).repeat(n, 0), 0.6, rng)


def even(rng, n=1500, dim=8):
    """Uniform directions."""
    return unit(rng.normal(size=(n, dim)))


def kinds(rng, n=1500, dim=32):
    """A hundred Gaussians around random directions, and how large each is by a power law."""
    labels = np.repeat(np.arange(100), power_law_counts(n, 1.0, 100))
    return noisy(unit(rng.normal(size=(100, dim)))[labels], 0.4, rng), labels


def domains(rng, dim=16):
    """Three Gaussians around random directions, each twice as wide as the one before."""
    centres = unit(rng.normal(size=(3, dim)))
    parts = [noisy(centres[[i]].repeat(500, 0), 0.15 * 2**i, rng) for i in range(3)]
    return np.concatenate(parts), np.repeat(np.arange(3), 500)


def copies(rng, share=0.4, times=10):
    """One Gaussian of which some have near-duplicates."""
    X = wide(rng, 1000)
    copied = np.repeat(X[: int(len(X) * share / times)], times, axis=0)
    return np.concatenate([X, noisy(copied, 0.01, rng)])


SETS = {
    "wide": wide,
    "even": even,
    "crowds": lambda rng: kinds(rng)[0],
    "domains": lambda rng: domains(rng)[0],
    "copies": copies,
}


def judged(X, known=None, balanced=None, **changes):
    graph, params = knn_graph(X, 50), PARAMS.model_copy(update=changes)
    found = estimate(graph, params, kinds=balanced)
    even = {name: label_statistics(found.weights, column) for name, column in (known or {}).items()}
    return judge(found, graph, params, even, balanced)


@pytest.mark.parametrize("ess", [0.8, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", SETS)
def test_each_set_is_the_case_it_was_made_to_be(case, seed, ess):
    opinion = judged(SETS[case](np.random.default_rng(seed)), ess=ess)
    assert opinion["case"] == case, opinion
    json.dumps(opinion, allow_nan=False)


def test_copies_alone_move_what_their_number_says():
    X, group = with_groups(0, groups=20, size=10, lone=800, noise=1e-4)
    opinion = judged(X)
    masses = np.bincount(group) / len(X)
    expected = np.abs(masses - 1 / len(masses)).sum() / 2
    assert opinion["moved_by_copies"] == pytest.approx(expected, abs=1e-4)
    assert opinion["case"] == "copies"
    assert f"alone move {expected:.0%}" in sentences(opinion)[0]


def test_what_moves_between_domains_is_what_they_gain_or_lose():
    X, labels = domains(np.random.default_rng(3))
    graph = knn_graph(X, 50)
    found = estimate(graph, PARAMS)
    opinion = judge(found, graph, PARAMS, {})
    masses = np.bincount(labels, found.weights)
    assert opinion["domains"] == 3
    expected = np.abs(masses - 1 / 3).sum() / 2
    assert opinion["between_domains"] * opinion["moved_by_density"] == pytest.approx(
        expected, abs=2e-4
    )
    assert masses[2] > masses[1] > masses[0]  # the wider, the sparser
    said = sentences(opinion)
    assert said[0].startswith("A mixture of 3 separate domains")
    assert "density.balance_by" in said[1]


def test_within_balanced_kinds_nothing_moves_between_them():
    X, labels = domains(np.random.default_rng(4))
    opinion = judged(X, balanced=[str(label) for label in labels], balance_by="label")
    assert opinion["between_domains"] == pytest.approx(0, abs=1e-3)
    assert opinion["case"] == "wide"
    opinion |= {"moved": 0.37, "moved_by_density": 0.12}  # most by balancing uneven kinds
    assert short(opinion).startswith("density moves 12% of the draws, from typical prompts")


def test_the_order_of_the_rows_makes_no_difference():
    X = SETS["crowds"](np.random.default_rng(5))
    graph, order = knn_graph(X, 50), np.random.default_rng(6).permutation(len(X))
    first, other = (
        judge(estimate(one, PARAMS), one, PARAMS, {}) for one in (graph, reordered(graph, order))
    )
    assert first == pytest.approx(other, abs=1e-3)


def test_known_labels_have_the_last_word():
    X, labels = kinds(np.random.default_rng(7))
    names = [str(label) for label in labels]
    better = judged(X, {"label": names})
    assert better["label_gap"] > 0
    assert "Known labels are more even than under uniform sampling" in sentences(better)[-1]
    assert "vectors do not tell" not in " ".join(sentences(better))
    assert "vectors do not tell" in " ".join(sentences(judged(X)))
    assert short(better).endswith("; labels are more even than uniform")
    X, labels = domains(np.random.default_rng(8))
    worse = judged(X, {"source": [str(label) for label in labels]})
    assert "Known sources are less even than under uniform sampling" in sentences(worse)[-1]
    assert "density.balance_by: source" in sentences(worse)[-1]
    assert "labels" not in short(worse)


def test_weights_that_move_nothing_are_said_to_be_uniform_and_not_the_density_even():
    said = sentences({"case": "even", "moved": 0.01, "moved_by_density": 0.01, "contrast": 20.0,
                      "between_crowds": 0.1})  # fmt: skip
    assert said[0].startswith("All but uniform weights: the density moves 1% of the draws")
    assert "20.0 times" in said[0]


def test_what_counts_move_is_not_put_down_to_the_density():
    rng = np.random.default_rng(9)
    graph, counts = knn_graph(wide(rng), 50), rng.integers(1, 1000, size=1500)
    plain = judge(estimate(graph, PARAMS), graph, PARAMS, {})
    params = PARAMS.model_copy(update={"count_power": 1.0})
    counted = judge(estimate(graph, params, counts), graph, params, {}, counts=counts)
    assert counted["case"] == plain["case"] == "wide"
    assert counted["moved"] > plain["moved"]
    assert counted["moved_by_density"] == pytest.approx(plain["moved_by_density"], abs=0.03)


@pytest.mark.parametrize("case", SETS)
def test_plain_words_name_the_settings_of_a_project_or_of_weigh(case):
    labels = {"label_entropy_uniform": 0.9, "label_entropy": 0.8, "label_gap": -0.25}
    of = {"case": case, "moved": 0.3, "moved_by_copies": 0.2, "moved_by_density": 0.25,
          "contrast": 5.0, "between_crowds": 0.5, "between_domains": 0.4, "domains": 3,
          **labels}  # fmt: skip
    project, alone = " ".join(sentences(of)), " ".join(sentences(of, standalone=True))
    assert "the weights add 25% to the unevenness; density.balance_by: label makes" in project
    assert "-S density.balance_by=label makes" in alone
    if case in ("even", "wide"):
        assert ("density.ess" in project, "--ess" in project) == (True, False)
        assert ("density.ess" in alone, "--ess" in alone) == (False, True)
    for unexplained in ("rim", "decile", "gap"):
        assert not re.search(rf"\b{unexplained}\b", project)


@pytest.mark.parametrize("method", ["soft_count", "knn", "balance"])
@pytest.mark.parametrize("angles", [np.zeros(1), np.arange(2.0), np.arange(3.0), np.zeros(30)])
def test_any_number_of_prompts_has_an_opinion(angles, method):
    opinion = judged(circle(angles), method=method)
    assert opinion["case"] in SETS
    json.dumps(opinion, allow_nan=False)
    assert all(sentences(opinion))
    assert short(opinion)


@pytest.mark.parametrize("method", ["uniform", "semdedup"])
def test_weights_that_do_not_follow_the_density_get_no_opinion(method):
    opinion = judged(even(np.random.default_rng(0), 100), method=method)
    assert opinion == {}
    assert sentences(opinion) == []
    assert short(opinion) == ""
