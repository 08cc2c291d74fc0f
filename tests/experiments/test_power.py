"""Seeds needed for a difference, against tables of the paired t test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from isodense.experiments.power import power, seeds_needed


def with_effect(effect: float) -> np.ndarray:
    """Return differences whose mean is `effect` standard deviations."""
    values = np.array([-1.0, 0.0, 1.0])
    return values / values.std(ddof=1) + effect


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_as_many_seeds_as_tables_of_power_say(effect: float, pairs: int):
    assert seeds_needed(with_effect(effect)) == seeds_needed(-with_effect(effect)) == pairs


@pytest.mark.parametrize(("effect", "pairs"), [(0.1, 5), (0.7, 18), (3.0, 3)])
def test_power_is_that_of_the_noncentral_t_distribution(effect: float, pairs: int):
    limit, shift = stats.t.ppf(0.975, pairs - 1), effect * pairs**0.5
    found = stats.nct.sf(limit, pairs - 1, shift) + stats.nct.cdf(-limit, pairs - 1, shift)
    assert power(effect, pairs) == pytest.approx(found, abs=1e-4)


def test_what_does_not_vary_is_shown_by_two_seeds_and_nothing_by_none():
    assert seeds_needed(np.array([1.0, 1.0])) == 2
    assert seeds_needed(np.array([1.0, -1.0])) is None
    assert seeds_needed(np.array([1.0])) is None
    assert power(1000.0, 2) == pytest.approx(1)
