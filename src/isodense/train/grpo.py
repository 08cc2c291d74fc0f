"""The TRL side of training: the trainer of a plan, its reward function, checkpoints and record.

Only TRL's public interface is used. What dvclive records repeats with the run: no times, no speeds.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from dvclive.live import Live
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from isodense.models.inference.policy import load_policy, load_tokenizer
from isodense.pipeline.artifact import write_json
from isodense.pipeline.errors import TrainingError
from isodense.pipeline.stage import progress
from isodense.prompts.conversations import Message
from isodense.train.checkpoints import Stop, finalize

Score = Callable[[Sequence[list[Message]], Sequence[str]], np.ndarray]

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


def make_trainer(
    policy: str | Path,
    score: Score,
    config: GRPOConfig,
    rows: Sequence[dict[str, Any]],
    lora: Mapping[str, Any] | None = None,
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
    lora : mapping, optional
        Fields of peft's ``LoraConfig``; by default all weights are trained.

    Raises
    ------
    TrainingError
        If TRL or peft refuses the settings for this policy, or a package that they need is missing.
    """
    transformers_logging.disable_progress_bar()
    # TRL's own use of a name that transformers is about to drop.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    plan = Dataset.from_list([{"prompt": row["prompt"], "prompt_id": row["id"]} for row in rows])
    tokenizer = load_tokenizer(policy)
    tokenizer.padding_side = "left"
    try:
        trainer = GRPOTrainer(
            model=str(policy),
            reward_funcs=reward_function(score, int(config.num_generations or 1)),
            args=config,
            train_dataset=plan,
            processing_class=tokenizer,
            peft_config=_adapter(lora),
        )
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        raise TrainingError(f"TRL refuses to train {policy} so: {error}") from None
    trainer.remove_callback(PrinterCallback)
    return trainer


def _adapter(lora: Mapping[str, Any] | None) -> Any:
    if lora is None:
        return None
    from peft import LoraConfig, TaskType

    return LoraConfig(task_type=TaskType.CAUSAL_LM, **lora)


def save_policy(trainer: GRPOTrainer, policy: str | Path, folder: Path) -> None:
    """Save the trained policy into `folder`; an adapter also merged into the policy.

    Every process must call it, since the weights may be spread over them.

    Parameters
    ----------
    trainer : GRPOTrainer
    policy : str or Path
        The untrained policy's folder.
    folder : Path
        A new folder; gets ``adapter/`` where there is one.
    """
    adapter = folder / "adapter"
    whole = not is_peft_model(trainer.model)
    trainer.save_model(str(folder if whole else adapter))
    if whole or not trainer.is_world_process_zero():
        return
    from peft import PeftModel

    _portable_config(adapter / "adapter_config.json", Path(policy).name)
    merged = PeftModel.from_pretrained(load_policy(policy), str(adapter)).merge_and_unload()
    merged.save_pretrained(folder)
    load_tokenizer(policy).save_pretrained(folder)


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


def _portable_config(path: Path, policy: str) -> None:
    """Name the policy instead of its path, and order what peft keeps as sets."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = policy
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(config.get(name), list):
            config[name].sort()
    write_json(path, config)


class Checkpoints(TrainerCallback):
    """Settles each checkpoint, and stops the run with one when that is asked for.

    Parameters
    ----------
    stop : Stop
        Says whether this process was asked to stop; one of them suffices.
    every : int
        Steps after which the run can be resumed exactly: those at which completions are drawn anew.
    """

    def __init__(self, stop: Stop, every: int) -> None:
        self._stop, self._every = stop, every

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint and the end; allow none from which the run would go on otherwise."""
        if state.global_step % self._every:
            control.should_save = False
        elif _any_process(self._stop.asked, args.device):
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Settle the checkpoint once every process has written its part."""
        _any_process(False, args.device)
        if state.is_world_process_zero:
            finalize(Path(args.output_dir, f"checkpoint-{state.global_step}"))


def _any_process(flag: bool, device: torch.device) -> bool:
    """Return whether `flag` is set in any process, once all of them have come here."""
    if not torch.distributed.is_initialized():
        return flag
    flags = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return bool(flags)


class Record(TrainerCallback):
    """Writes the run's series with dvclive and shows its progress on stderr.

    DVC deletes the series of a run that was cut off; a checkpoint has them, too.

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
        for name, series in SERIES.items():
            if logs.get(name) is not None:
                self._live.log_metric(f"train/{series}", float(logs[name]))
        self._live.make_summary()
        self._bar.update(step - self._bar.n)
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
