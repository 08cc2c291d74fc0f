"""What training records with dvclive: it repeats with the run, so no times and no speeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dvclive.live import Live
from tqdm import tqdm
from transformers import TrainerCallback

from isodense.pipeline.errors import TrainingError
from isodense.pipeline.stage import progress
from isodense.train.rewards import LOGGED

SERIES = {
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "frac_reward_zero_std",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "clipped_ratio",
    "loss": "loss",
    "grad_norm": "grad_norm",
}


class Record(TrainerCallback):
    """Writes the run's series with dvclive and shows its progress on stderr.

    DVC deletes the series of a run that was cut off; a checkpoint has them, too.

    Parameters
    ----------
    folder : str or Path
        Where dvclive writes ``metrics.json`` and ``plots/``.
    facts : dict
        Numbers that hold for the whole run.
    functions : sequence of str
        Names of the reward functions, each of which is a series.
    """

    def __init__(
        self, folder: str | Path, facts: Mapping[str, float], functions: Sequence[str] = ()
    ) -> None:
        self._live = Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)
        self._facts = facts
        self._series = SERIES | {f"rewards/{name}/mean": f"rewards/{name}" for name in functions}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the progress bar; of a resumed run, write the series so far."""
        self._bar = tqdm(total=state.max_steps, unit="step", **progress())
        for logs in state.log_history:
            self._point(logs["step"], logs)

    def on_log(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        """Write one point of each series."""
        self._point(state.global_step, event["logs"])

    def _point(self, step: int, logs: Mapping[str, Any]) -> None:
        if "reward" not in logs:
            return
        self._live.step = step
        logged = {name: name for name in logs if name.startswith(LOGGED)}
        for name, series in (self._series | logged).items():
            if (value := _number(logs, name)) is not None:
                self._live.log_metric(f"train/{series}", value)
        self._live.make_summary()
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix(reward=_number(logs, "reward"))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self._bar.close()

    def finish(self, facts: Mapping[str, float]) -> None:
        """Write the facts of the run that is done, `facts` among them."""
        for name, value in {**self._facts, **facts}.items():
            self._live.log_metric(f"train/{name}", value, plot=False)
        self._live.end()


def quarters(history: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the mean reward over the first and the last quarter of the trainer's log.

    Steps in which no reward function had an opinion are left out.

    Raises
    ------
    TrainingError
        If none had one in any step.
    """
    found = [_number(entry, "reward") for entry in history]
    rewards = [value for value in found if value is not None]
    if not rewards:
        message = "no reward function had an opinion on any completion of the run"
        raise TrainingError(message, "see that the column with the ground truth is the right one")
    size = max(1, len(rewards) // 4)
    return {
        "reward_first_quarter": float(np.mean(rewards[:size])),
        "reward_last_quarter": float(np.mean(rewards[-size:])),
    }


def steps_with_signal(history: Sequence[dict[str, Any]]) -> int:
    """Return in how many logged steps the rewards of some group differed and gave a gradient."""
    return sum(
        entry.get("frac_reward_zero_std") != 1 and entry.get("grad_norm") != 0
        for entry in history
        if "reward" in entry
    )


def _number(logs: Mapping[str, Any], name: str) -> float | None:
    """Return a logged number; None where no function had an opinion, which TRL logs as NaN."""
    value = logs.get(name)
    return None if value is None or not math.isfinite(value) else float(value)
