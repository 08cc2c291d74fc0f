"""Known kinds get the mass that is asked for, and the density decides within."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodense import density_weights
from isodense.density.estimate import estimate
from isodense.density.kinds import balance_kinds, kinds_of, load_kinds, shares
from isodense.density.params import DensityParams
from isodense.neighbors.build import knn_graph
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.params import as_dict, build
from tests.density.vectors import PARAMS, unit
from tests.tables import write_prompts

KINDS = ["hh"] * 60 + ["gsm8k"] * 30 + [""] * 10


def graph():
    return knn_graph(unit(np.random.default_rng(3).normal(size=(100, 5))), 50)


def mass(weights, kinds=KINDS):
    return {one["name"]: one["weighted"] for one in shares(kinds, weights)}


@pytest.mark.parametrize(
    ("power", "expected"),
    [
        (1.0, [1 / 3, 1 / 3, 1 / 3]),
        (0.0, [0.6, 0.3, 0.1]),
        (0.5, np.sqrt([0.6, 0.3, 0.1]) / np.sqrt([0.6, 0.3, 0.1]).sum()),
    ],
)
def test_the_mass_of_a_kind_is_a_power_of_its_share(power, expected):
    weights = density_weights(graph(), kinds=KINDS, balance_power=power)
    assert weights.sum() == pytest.approx(1)
    found = mass(weights)
    assert [found[name] for name in ("hh", "gsm8k", "")] == pytest.approx(list(expected))


def test_within_a_kind_the_density_decides():
    plain = density_weights(graph())
    weights = density_weights(graph(), kinds=KINDS)
    for first, last in ((0, 60), (60, 90), (90, 100)):
        ratio = weights[first:last] / plain[first:last]
        assert np.ptp(ratio) < 1e-12 * ratio.max()
    assert np.ptp(plain[:60]) > 0


def test_a_rarer_kind_is_drawn_more_often_for_each_of_its_prompts():
    weights = density_weights(graph(), kinds=KINDS, method="uniform")
    assert weights[0] < weights[60] < weights[90]
    assert weights[90] / weights[0] == pytest.approx(6)


def test_quotas_are_exact():
    quotas = {"hh": 0.25, "gsm8k": 0.7, "": 0.05}
    assert mass(density_weights(graph(), kinds=KINDS, quotas=quotas)) == pytest.approx(quotas)


@given(
    st.lists(st.sampled_from(["a", "b", "ü", "", "a\0"]), min_size=1, max_size=30),
    st.floats(0, 1),
    st.randoms(use_true_random=False),
)
def test_masses_do_not_depend_on_the_order_and_rise_with_the_share(kinds, power, random):
    weights = np.array([random.uniform(0.1, 5.0) for _ in kinds])
    found = mass(balance_kinds(weights, kinds, power, None), kinds)
    order = random.sample(range(len(kinds)), len(kinds))
    again = balance_kinds(weights[order], [kinds[row] for row in order], power, None)
    assert mass(again, [kinds[row] for row in order]) == pytest.approx(found)
    sizes = {kind: kinds.count(kind) for kind in kinds}
    assert sum(found.values()) == pytest.approx(1)
    for one in sizes:
        for other in sizes:
            expected = (sizes[one] / sizes[other]) ** (1 - power)
            assert found[one] / found[other] == pytest.approx(expected)


def test_occurrences_count_within_a_kind_only():
    counts = np.array([1000] + [1] * 99)
    weights = density_weights(graph(), kinds=KINDS, counts=counts, count_power=1.0)
    assert mass(weights) == pytest.approx({"hh": 1 / 3, "gsm8k": 1 / 3, "": 1 / 3})
    assert weights[0] > 100 * weights[1]


@pytest.mark.parametrize(
    ("quotas", "says"),
    [
        ({"hh": 0.5, "gsm8k": 0.5}, "quotas leaves out: ''"),
        ({"hh": 0.5, "gsm8k": 0.3, "": 0.1, "math": 0.1}, "no training prompt is: 'math'"),
        ({"hh": 0.5, "gsm8k": 0.3, "": 0.1}, "sum to 0.9, and not to 1"),
        ({"hh": 1.0, "gsm8k": 0.0, "": 0.0}, r"quotas\.gsm8k"),
    ],
)
def test_quotas_that_do_not_fit_are_named(quotas, says):
    with pytest.raises(IsodenseError, match=says):
        density_weights(graph(), kinds=KINDS, quotas=quotas)


def test_of_many_kinds_five_are_named():
    kinds = [f"k{number}" for number in range(7)]
    with pytest.raises(IsodenseError) as raised:
        balance_kinds(np.full(7, 1 / 7), kinds, 1.0, {"k0": 1.0})
    assert raised.value.message.endswith("leaves out: 'k1', 'k2', 'k3', 'k4', 'k5' and 1 more")
    assert raised.value.hint == "name each of the 7 kinds, 'k0', 'k1', 'k2', 'k3', 'k4', …"
    with pytest.raises(IsodenseError) as raised:
        balance_kinds(np.full(5, 0.2), kinds[:5], 1.0, dict.fromkeys(kinds, 1 / 7))
    assert raised.value.message.endswith("no training prompt is: 'k5', 'k6'")
    assert raised.value.hint == "name each of the 5 kinds, 'k0', 'k1', 'k2', 'k3', 'k4'"


def test_shares_are_those_of_prompts_and_of_draws_the_largest_kind_first():
    weights = np.array([0.1, 0.1, 0.2, 0.6])
    assert shares(["b", "a", "b", "c"], weights) == [
        {"name": "b", "prompts": 2, "uniform": 0.5, "weighted": pytest.approx(0.3)},
        {"name": "a", "prompts": 1, "uniform": 0.25, "weighted": pytest.approx(0.1)},
        {"name": "c", "prompts": 1, "uniform": 0.25, "weighted": pytest.approx(0.6)},
    ]


def test_quotas_need_a_column():
    with pytest.raises(IsodenseError, match="quotas needs balance_by"):
        build(DensityParams, as_dict(PARAMS) | {"quotas": {"hh": 1.0}}, "density")


def test_missing_or_too_few_kinds_are_an_error():
    params = PARAMS.model_copy(update={"balance_by": "label"})
    with pytest.raises(IsodenseError, match="balance_by: label needs the kinds"):
        estimate(graph(), params)
    with pytest.raises(IsodenseError, match=r"99 kinds for 100 prompts\n  -> pass one per row"):
        estimate(graph(), params, kinds=KINDS[1:])


def row(number, sources, **columns):
    return {"id": str(number), "sources": sources, **columns}


def test_the_source_is_that_of_most_occurrences_and_of_equal_ones_the_first():
    rows = [row(0, {"hh": 1, "gsm8k": 2}), row(1, {"hh": 1, "gsm8k": 1}), row(2, {"b": 1, "a": 1})]
    assert list(kinds_of(rows, "source")) == ["gsm8k", "hh", "b"]


def test_a_kind_is_a_text_a_whole_number_or_nothing():
    rows = [row(0, {}, level=3), row(1, {}, level="3"), row(2, {}), row(3, {}, level=True)]
    assert list(kinds_of(rows, "level")) == ["3", "3", "", "True"]
    with pytest.raises(IsodenseError, match=r"level is 0\.5 in prompt 0\n  -> name a column"):
        list(kinds_of([row(0, {}, level=0.5)], "level"))


def test_a_column_that_names_no_kinds_is_refused(tmp_path):
    rows = [
        {"id": str(number), "sources": {f"s{number // 10}": 1}, "count": 1, "split": split}
        | {"topic": f"t{number % 2}", "number": number}
        for number, split in enumerate(["train"] * 50 + ["heldout"])
    ]
    write_prompts(tmp_path / "prompts", rows)
    assert load_kinds(tmp_path / "prompts", "topic") == ["t0", "t1"] * 25
    by_source = load_kinds(tmp_path / "prompts", "source")
    assert by_source == [f"s{number // 10}" for number in range(50)]
    with pytest.raises(IsodenseError, match=r"has a column theme\n  -> name source, label or"):
        load_kinds(tmp_path / "prompts", "theme")
    with pytest.raises(
        IsodenseError, match=r"number has 50 values for 50 training prompts\n  -> name"
    ):
        load_kinds(tmp_path / "prompts", "number")
