"""The arms of a comparison: how the reward and the training of each draw prompts."""

from __future__ import annotations

ARMS = {  # name: (reward.sampling, train.sampling)
    "uniform": ("uniform", "uniform"),
    "density": ("uniform", "density"),
    "count": ("uniform", "count"),
    "density-reward": ("density", "uniform"),
    "density-both": ("density", "density"),
}
