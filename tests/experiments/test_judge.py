"""All arms are judged alike, by density and over labels."""

from __future__ import annotations

import numpy as np
import pytest

from isodense.experiments.judge import _by_label, by_density

REWARDS = np.array([[1.0, 3.0], [10.0, 20.0], [5.0, np.nan]])


def test_rewards_are_averaged_by_density():
    rows = [{"density": density} for density in (3.0, 1.0, 2.0)]
    found = by_density(REWARDS, rows)
    assert found == {"all": pytest.approx(22 / 3), "sparse": 15.0, "crowded": 2.0}


def test_rewards_are_averaged_over_labels():
    assert _by_label(REWARDS, ["a", "b", "b"]) == {"over_labels": pytest.approx((2 + 10) / 2)}
    assert _by_label(REWARDS, ["a", None, "a"]) == {}
    assert _by_label(REWARDS, []) == {}
