"""The arms of a comparison: the params that each sets, by name."""

from __future__ import annotations


def _arm(train: str, reward: str = "uniform", **density: str | float) -> tuple[str, ...]:
    """Return the settings of an arm, as ``section.key=value``."""
    others = (f"density.{key}={value}" for key, value in density.items())
    return (f"reward.sampling={reward}", f"train.sampling={train}", *others)


ARMS: dict[str, tuple[str, ...]] = {
    "uniform": _arm("uniform"),
    "density": _arm("density"),
    "count": _arm("count"),
    "oracle": _arm("label"),
    "inverted": _arm("inverted"),
    "density-0.9": _arm("density", ess=0.9),
    "density-0.7": _arm("density", ess=0.7),
    "semdedup": _arm("density", method="semdedup"),
    "clusters": _arm("density", method="clusters"),
    "density+redraw": (*_arm("density"), "train.redraw=decile"),
    "difficulty": _arm("difficulty"),
    "density+difficulty": _arm("density+difficulty"),
    "density-reward": _arm("uniform", reward="density"),
    "density-both": _arm("density", reward="density"),
}
DRAWING = tuple(arm for arm, settings in ARMS.items() if "reward.sampling=density" in settings)
