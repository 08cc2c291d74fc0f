"""The runs of a comparison: arms × seeds, and the params that each sets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isodense.experiments.arms import ARMS, DRAWING
from isodense.pipeline.errors import IsodenseError

SEED = "{seed}"  # in a setting: the run's seed
# Of what `dvc exp run -S` takes: not other files, whole sections or removals, which could set what
# the arms or the measure that decides depend on.
SETTING = re.compile(r"\+{0,2}\w+(\.[\w-]+)+=")


@dataclass(frozen=True)
class Run:
    """One run of a comparison, as a DVC experiment.

    Attributes
    ----------
    arm : str
        Key of `ARMS`.
    seed : int
        Seed of draws and completions, and of whatever a setting names by ``{seed}``.
    common : tuple of str
        Params that all arms of the seed set, in the form ``section.key=value`` of
        ``dvc exp run -S``. Runs that have them in common share the stages before the arms differ.
    of_arm : tuple of str
        Params that the arm sets.
    """

    arm: str
    seed: int
    common: tuple[str, ...]
    of_arm: tuple[str, ...]

    @property
    def settings(self) -> tuple[str, ...]:
        """All params to set."""
        return (*self.common, *self.of_arm)

    @property
    def name(self) -> str:
        """Name of the experiment; it differs if the settings differ."""
        digest = hashlib.sha256("\n".join(self.settings).encode()).hexdigest()
        return f"{self.arm}-{self.seed}-{digest[:6]}"


def plan_runs(arms: Sequence[str], seeds: int, settings: Sequence[str] = ()) -> list[Run]:
    """Return the runs of a comparison, all arms of a seed before the next seed.

    Parameters
    ----------
    arms : sequence of str
        Keys of `ARMS`; the first is the baseline that the others are compared with.
    seeds : int
        Number of seeds, at least 2.
    settings : sequence of str
        Params that all arms set, as ``section.key=value``; ``{seed}`` stands for the run's seed.

    Raises
    ------
    IsodenseError
        If there is nothing to compare, an arm is unknown or named twice, or a setting is not of
        that form, or one that the arms differ in.
    """
    wrong = [arm for arm in arms if arm not in ARMS]
    if wrong or len(set(arms)) < max(len(arms), 2) or seeds < 2:
        message = f"cannot compare the arms {', '.join(arms)} with {seeds} seeds"
        raise IsodenseError(message, f"name two or more of {', '.join(ARMS)}, and 2 seeds or more")
    unclear = [setting for setting in settings if not SETTING.match(setting)]
    if unclear:
        message = f"{unclear[0]!r} is no setting of one param"
        raise IsodenseError(message, "write section.key=value, each param by itself")
    varied = {"train.seed", *(_key(setting) for arm in arms for setting in ARMS[arm])}
    taken = [setting for setting in settings if _key(setting) in varied]
    if taken:
        raise IsodenseError(f"{taken[0]} is what the arms differ in", "choose among --arms instead")
    return [
        Run(
            arm,
            seed,
            tuple(setting.replace(SEED, str(seed)) for setting in settings),
            (*ARMS[arm], f"train.seed={seed}"),
        )
        for seed in range(seeds)
        for arm in arms
    ]


def require_different(arms: Sequence[str], params: dict[str, Any], settings: Sequence[str]) -> None:
    """Check that no two arms come to the same: by the params, or as the reward is not fitted.

    Parameters
    ----------
    arms : sequence of str
        Keys of `ARMS`.
    params : dict
        ``params.yaml``.
    settings : sequence of str
        What all arms set, as ``section.key=value``.

    Raises
    ------
    IsodenseError
        If an arm samples for the reward by density, but the reward is of a kind that is not fitted;
        or if two arms differ only in a param that has the value of the one in the other, too.
    """
    kind = effective(params, "reward.kind", settings)
    drawing = [arm for arm in arms if arm in DRAWING]
    if drawing and kind not in ("head", "full"):
        message = f"a reward of kind {kind} is not fitted: {drawing[0]} is the same as another arm"
        raise IsodenseError(message, "leave out " + " and ".join(drawing))
    keys = sorted({_key(setting) for arm in arms for setting in ARMS[arm]})
    known: dict[str, str] = {}
    for arm in arms:
        values = repr([effective(params, key, [*settings, *ARMS[arm]]) for key in keys])
        if (other := known.setdefault(values, arm)) != arm:
            own = " and ".join(sorted({*map(_key, ARMS[arm])} ^ {*map(_key, ARMS[other])}))
            message = (
                f"{other} and {arm} are the same: they differ in {own} only, which params.yaml"
            )
            raise IsodenseError(f"{message} or -S sets alike", f"change {own}, or leave out an arm")


def effective(params: dict[str, Any], name: str, settings: Sequence[str]) -> Any:
    """Return the value of a param, as the settings change it.

    Parameters
    ----------
    params : dict
        ``params.yaml``.
    name : str
        As ``section.key``.
    settings : sequence of str
        As ``section.key=value``; the last one counts.

    Raises
    ------
    IsodenseError
        If the value is no YAML.
    """
    import yaml

    value: Any = params
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    for setting in settings:
        if _key(setting) == name:
            try:
                value = yaml.safe_load(setting.partition("=")[2])
            except yaml.YAMLError:
                message = f"the value in {setting!r} cannot be read"
                raise IsodenseError(message, "correct it: it is YAML") from None
    return value


def _key(setting: str) -> str:
    return setting.lstrip("+").partition("=")[0]
