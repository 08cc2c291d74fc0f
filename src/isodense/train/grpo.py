"""The TRL side of training: the trainer of a plan, its reward function, checkpoints and record.

Only TRL's public interface is used. What dvclive records repeats with the run: no times, no speeds.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils import is_peft_model
from dvclive.live import Live
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from isodense.models.inference.load import (
    UNREADABLE,
    read_config,
    read_model,
    require_whole,
    weights_of,
)
from isodense.models.inference.policy import load_tokenizer
from isodense.pipeline.artifact import write_json
from isodense.pipeline.errors import ModelError, TrainingError
from isodense.pipeline.stage import progress
from isodense.prompts.conversations import Message
from isodense.train.checkpoints import Stop, finalize
from isodense.train.prompts import plan_dataset, trainer_tokenizer, without_tools

Score = Callable[[Sequence[list[Message]], Sequence[str]], np.ndarray]

PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
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
        Prompts (``id``, ``prompt``, ``tools``) in the order of the plan.
    lora : mapping, optional
        Fields of peft's ``LoraConfig``; by default all weights are trained.

    Raises
    ------
    TrainingError
        If TRL or peft refuses the settings for this policy, or a package that they need is missing.
    ModelError
        If the policy is not whole, or not one that transformers knows.
    """
    check_policy(policy)
    transformers_logging.disable_progress_bar()
    # TRL's own use of a name that transformers is about to drop.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    try:
        trainer = GRPOTrainer(
            model=str(policy),
            reward_funcs=reward_function(score, int(config.num_generations or 1)),
            args=config,
            train_dataset=plan_dataset(rows),
            processing_class=trainer_tokenizer(policy),
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

    The model is saved whole, in the class that was trained and in the policy's dtype. Every process
    must call it, since the weights may be spread over them.

    Parameters
    ----------
    trainer : GRPOTrainer
    policy : str or Path
        The untrained policy's folder.
    folder : Path
        A new folder; gets ``adapter/`` where there is one.

    Raises
    ------
    TrainingError
        If the adapter does not fit the policy, or no weight changed.
    """
    adapter = folder / "adapter"
    whole = not is_peft_model(trainer.model)
    tokenizer: Any = trainer.processing_class
    tokenizer.chat_template = load_tokenizer(policy).chat_template
    trainer.save_model(str(folder if whole else adapter))
    if not trainer.is_world_process_zero():
        return
    if not whole:
        _portable_config(adapter / "adapter_config.json", Path(policy).name)
        model = trainer.accelerator.unwrap_model(trainer.model).get_base_model()
        merge_adapter(_class(model), policy, adapter).save_pretrained(folder)
        load_tokenizer(policy).save_pretrained(folder)
    for name in PROCESSORS:
        if Path(policy, name).is_file():
            shutil.copyfile(Path(policy, name), folder / name)
    keep_dtypes(policy, folder)
    if trainer.args.learning_rate > 0:
        require_change(policy, folder)


def check_policy(policy: str | Path) -> None:
    """Check the policy as TRL is about to load it, without reading the weights' values.

    Raises
    ------
    ModelError
        If it is not whole, or has weights that transformers does not know.
    """
    names = read_config(policy).architectures or [""]
    kind = getattr(transformers, names[0], transformers.AutoModelForCausalLM)
    try:
        require_whole(policy, read_model(kind, policy, device_map="meta")[1])
    except UNREADABLE as error:
        raise ModelError(f"{policy} cannot be loaded: {error}") from None


def merge_adapter(kind: Any, policy: str | Path, adapter: Path) -> Any:
    """Return the policy with an adapter merged into it, in float32.

    Parameters
    ----------
    kind : type
        The class that was trained: names of modules differ between classes of one architecture.
    policy : str or Path
        The untrained policy's folder.
    adapter : Path
        The adapter's folder.

    Raises
    ------
    TrainingError
        If the adapter has other weights than the policy takes.
    """
    from peft import PeftConfig, get_peft_model

    base, _ = read_model(kind, policy, dtype=torch.float32)
    config = PeftConfig.from_pretrained(str(adapter))
    config.base_model_name_or_path = base.name_or_path
    adapted = get_peft_model(base, config)
    result = adapted.load_adapter(str(adapter), "default")
    faults = {"missing": result.missing_keys, "unexpected": result.unexpected_keys}
    if any(faults.values()):
        said = ", ".join(f"{len(x)} {fault}, first {x[0]}" for fault, x in faults.items() if x)
        message = f"the adapter does not fit {type(base).__name__} of {policy}: {said}"
        raise TrainingError(message, "set train.lora.target_modules to modules of the policy")
    return adapted.merge_and_unload()


def keep_dtypes(policy: str | Path, trained: Path) -> None:
    """Store each weight of the trained policy in the dtype that it has in the untrained one.

    TRL trains in float32, whatever the policy is stored in.
    """
    stored = weights_of(policy)
    sizes = 0
    for path in sorted(trained.glob("*.safetensors")):
        tensors = load_file(path)
        cast = {
            name: weight.to(stored[name]().dtype) if name in stored else weight
            for name, weight in tensors.items()
        }
        sizes += sum(weight.nbytes for weight in cast.values())
        if any(weight.dtype != tensors[name].dtype for name, weight in cast.items()):
            save_file(cast, path, metadata={"format": "pt"})
    _declare_dtype(Path(policy, "config.json"), trained / "config.json")
    index = trained / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        content["metadata"]["total_size"] = sizes
        write_json(index, content)


def _declare_dtype(policy: Path, trained: Path) -> None:
    """Let the config of the trained policy, and each one in it, name the policy's dtype."""
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (policy, trained))
    dtype = before.get("dtype") or before.get("torch_dtype")
    parts = [after, *(part for part in after.values() if isinstance(part, dict))]
    wrong = [part for part in parts if dtype and part.get("dtype", dtype) != dtype]
    for part in wrong:
        part["dtype"] = dtype
    if wrong:
        write_json(trained, after)


def require_change(policy: str | Path, trained: str | Path) -> None:
    """Raise if every weight of the trained policy is that of the untrained one.

    Raises
    ------
    TrainingError
        Saying why that can be.
    """
    before = weights_of(policy)
    for name, weight in weights_of(trained).items():
        if name not in before:
            return
        old, new = before[name](), weight()
        if old.shape != new.shape or not torch.equal(old.to(new.dtype), new):
            return
    message = "training changed no weight of the policy: the result would be the policy itself"
    hint = (
        "see whether the rewards of a group differ (frac_reward_zero_std), whether "
        "train.learning_rate is too small for the policy's dtype, and what train.lora adapts"
    )
    raise TrainingError(message, hint)


def _class(model: Any) -> Any:
    """Return the class of transformers that a model is of, below those that wrappers derive."""
    kinds = [kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers.")]
    return kinds[0] if kinds else type(model)


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
        asked = list(map(without_tools, prompts))
        scores = np.asarray(score(asked, [answer[-1]["content"] for answer in completions]))
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
