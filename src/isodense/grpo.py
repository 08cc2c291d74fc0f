"""The TRL side of training: the trainer of a plan, its reward function and its record.

Only TRL's public interface is used. What dvclive records repeats with the run: no times, no speeds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from dvclive.live import Live
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from isodense.conversations import Message
from isodense.errors import TrainingError
from isodense.policy import load_tokenizer
from isodense.stage import progress

Score = Callable[[Sequence[list[Message]], Sequence[str]], np.ndarray]

SERIES = {
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "zero_signal_groups",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "truncated",
    "loss": "loss",
    "grad_norm": "grad_norm",
}


def make_trainer(
    policy: str | Path, score: Score, config: GRPOConfig, rows: Sequence[dict[str, Any]]
) -> GRPOTrainer:
    """Return a trainer that walks through `rows` in order.

    Parameters
    ----------
    policy : str or Path
        The untrained policy's folder.
    score : callable
        ``(prompts, completions) -> ndarray of shape (n,)``.
    config : GRPOConfig
        Its ``shuffle_dataset`` is off.
    rows : sequence of dict
        Prompts (``id``, ``prompt``) in the order of the plan.
    """
    transformers_logging.disable_progress_bar()
    # TRL's own use of a name that transformers is about to drop.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    plan = Dataset.from_list([{"prompt": row["prompt"], "prompt_id": row["id"]} for row in rows])
    tokenizer = load_tokenizer(policy)
    tokenizer.padding_side = "left"
    trainer = GRPOTrainer(
        model=str(policy),
        reward_funcs=reward_function(score, int(config.num_generations or 1)),
        args=config,
        train_dataset=plan,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def reward_function(score: Score, group: int) -> Callable[..., list[float | None]]:
    """Return `score` in the form that TRL calls, with its inputs and outputs checked.

    Raises
    ------
    TrainingError
        When called: if a group mixes prompts, or the rewards are not one finite number each.
    """

    def reward(
        prompts: list[list[Message]],
        completions: list[list[Message]],
        prompt_id: list[str],
        **_: Any,
    ) -> list[float | None]:
        whole = len(prompt_id) % group == 0  # with several processes, groups may lie across them
        groups = [prompt_id[start : start + group] for start in range(0, len(prompt_id), group)]
        if whole and any(len(set(ids)) > 1 for ids in groups):
            raise TrainingError("a group holds completions of several prompts")
        scores = np.asarray(score(prompts, [answer[-1]["content"] for answer in completions]))
        if scores.shape != (len(completions),) or not np.isfinite(scores).all():
            message = f"the reward of {len(completions)} completions is {scores!r:.200}"
            raise TrainingError(message, "it must be one finite number per completion")
        return [float(value) for value in scores]

    return reward


class Record(TrainerCallback):
    """Writes the run's series with dvclive and shows its progress on stderr.

    Parameters
    ----------
    folder : str or Path
        Where dvclive writes ``metrics.json`` and ``plots/``.
    facts : dict
        Numbers that hold for the whole run.
    """

    def __init__(self, folder: str | Path, facts: Mapping[str, float]) -> None:
        self._live = Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)
        self._facts = facts

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the progress bar."""
        self._bar = tqdm(total=state.max_steps, unit="step", **progress())

    def on_log(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        """Write one point of each series."""
        logs = event["logs"]
        if "reward" not in logs:
            return
        self._live.step = state.global_step
        for name, series in SERIES.items():
            if logs.get(name) is not None:
                self._live.log_metric(f"train/{series}", float(logs[name]))
        self._live.make_summary()
        self._bar.update(state.global_step - self._bar.n)
        self._bar.set_postfix(reward=f"{logs['reward']:.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar and write the run's facts."""
        self._bar.close()
        for name, value in {**self._facts, **quarters(state.log_history)}.items():
            self._live.log_metric(f"train/{name}", value, plot=False)
        self._live.end()


def quarters(history: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the mean reward over the first and the last quarter of the trainer's log."""
    rewards = [entry["reward"] for entry in history if "reward" in entry]
    size = max(1, len(rewards) // 4)
    return {
        "reward_first_quarter": float(np.mean(rewards[:size])),
        "reward_last_quarter": float(np.mean(rewards[-size:])),
    }
