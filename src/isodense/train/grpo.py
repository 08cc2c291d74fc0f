"""The TRL side of training: the trainer of a plan, checkpoints, and what is published.

Only TRL's public interface is used.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from isodense.models.inference.backbone import made_up
from isodense.models.inference.load import (
    UNREADABLE,
    policy_class,
    read_model,
    require_whole,
    weights_of,
)
from isodense.models.inference.policy import (
    load_tokenizer,
    takes_specials_for_text,
    template_settings,
)
from isodense.models.inference.prepacked import prepack_frozen
from isodense.models.inference.reader import require_undamaged
from isodense.pipeline.artifact import write_json
from isodense.pipeline.errors import ModelError, TrainingError
from isodense.reward.scoring.load import Reward
from isodense.train.checkpoints import Stop, finalize
from isodense.train.prompts import plan_dataset, trainer_tokenizer, with_tools
from isodense.train.realised import Signals
from isodense.train.record import steps_with_signal
from isodense.train.redraw import Redraw
from isodense.train.rewards import reward_functions

EXACT, HALF = 1e-3, 5e-2  # largest difference of logits over their size, in float32, in 16 bits
CLASSES = ("transformers.", "isodense.models.inference.")  # modules of models' classes
DRAW = "draw"  # column of the data set: number of the draw
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def make_trainer(
    policy: str | Path,
    reward: Reward,
    config: GRPOConfig,
    rows: Sequence[dict[str, Any]],
    lora: Mapping[str, Any] | None = None,
    signals: Signals | None = None,
    redraw: Redraw | None = None,
) -> GRPOTrainer:
    """Return a trainer that walks through `rows` in order, or draws others in their places.

    Parameters
    ----------
    policy : str or Path
        The untrained policy's folder.
    reward : Reward
    config : GRPOConfig
        Its ``shuffle_dataset`` is off.
    rows : sequence of dict
        Rows of prompts in the order of the plan.
    lora : mapping, optional
        Fields of peft's ``LoraConfig``; by default all weights are trained.
    signals : Signals, optional
        Keeps the signal of each group, by default by the row of the plan.
    redraw : Redraw, optional
        Chooses the prompts while training runs, by what `signals` keeps.

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
    signals = signals or Signals([row["id"] for row in rows])
    functions, config.reward_weights = reward_functions(
        reward, redraw.rows if redraw else rows, int(config.num_generations or 1), signals.seen
    )
    require_undamaged(policy)
    dataset = plan_dataset(rows)
    if redraw:
        dataset = dataset.add_column(DRAW, list(range(len(rows))))
    tokenizer = trainer_tokenizer(policy)
    if settings := template_settings(tokenizer):  # the user's are in the template already
        config.chat_template_kwargs = settings
    try:
        trainer = (partial(Redrawing, redraw) if redraw else GRPOTrainer)(
            model=str(policy),
            reward_funcs=functions,  # type: ignore[arg-type]
            args=config,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=_adapter(lora),
        )
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        raise TrainingError(f"TRL refuses to train {policy} so: {error}") from None
    if lora is not None and config.use_cpu and not _in_pieces(trainer):
        model: Any = trainer.model
        prepack_frozen(model)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(signals)
    if redraw:
        trainer.add_callback(redraw)
    return trainer


class Redrawing(GRPOTrainer):
    """TRL's trainer on prompts that are chosen when their completions are about to be drawn.

    Its data set says how many; what a loader has fetched ahead does not matter.

    Parameters
    ----------
    redraw : Redraw
    *args, **kwargs
        Those of TRL's trainer.
    """

    def __init__(self, redraw: Redraw, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._redraw = redraw

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Do a step on the prompts that are drawn in the places of those in `inputs`."""
        history = self.state.log_history
        drawn = [self._redraw.rows[self._redraw.row(one[DRAW], history)] for one in inputs]
        prompts = [
            {"prompt": with_tools(row["prompt"], row.get("tools")), "prompt_id": row["id"]}
            for row in drawn
        ]
        return super().training_step(model, prompts, *args, **kwargs)


def _adapter(lora: Mapping[str, Any] | None) -> Any:
    if lora is None:
        return None
    from peft import LoraConfig, TaskType

    return LoraConfig(task_type=TaskType.CAUSAL_LM, **lora)


def save_policy(trainer: GRPOTrainer, policy: str | Path, folder: Path) -> bool:
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

    Returns
    -------
    bool
        Whether a weight changed; true in all processes but the first.

    Raises
    ------
    TrainingError
        If the adapter does not fit the policy, or no weight changed although the rewards of some
        groups differed.
    """
    adapter = folder / "adapter"
    whole = not is_peft_model(trainer.model)
    tokenizer: Any = trainer.processing_class
    published = load_tokenizer(policy)
    tokenizer.chat_template = published.chat_template
    if takes_specials_for_text(published):
        tokenizer.split_special_tokens = published.split_special_tokens = True
    trainer.save_model(str(folder if whole else adapter))
    if not trainer.is_world_process_zero():
        return True
    if not whole:
        merged_policy(trainer, policy, adapter).save_pretrained(folder)
        published.save_pretrained(folder)
    for name in PROCESSORS:
        if Path(policy, name).is_file():
            shutil.copyfile(Path(policy, name), folder / name)
    keep_dtypes(policy, folder)
    if has_changed(policy, folder):
        return True
    if trainer.args.learning_rate > 0 and steps_with_signal(trainer.state.log_history):
        raise TrainingError(
            "training changed no weight of the policy: the result would be the policy itself",
            "see whether train.learning_rate is too small for the policy's dtype, and what "
            "train.lora adapts",
        )
    return False


def merged_policy(trainer: GRPOTrainer, policy: str | Path, adapter: Path) -> Any:
    """Return the policy with the trained adapter merged: the model that was trained.

    Parameters
    ----------
    trainer : GRPOTrainer
    policy : str or Path
        The untrained policy's folder.
    adapter : Path
        Where the trainer has saved the adapter.

    Raises
    ------
    TrainingError
        If the adapter does not fit the policy, or the merged model computes something else.
    """
    _portable_config(adapter / "adapter_config.json", Path(policy).name)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    merged = merge_adapter(_class(trained.get_base_model()), policy, adapter)
    if not _in_pieces(trainer):
        exact = trained.dtype == torch.float32 and trainer.accelerator.mixed_precision == "no"
        _require_same(trained, merged, EXACT if exact else HALF)
    return merged


def _in_pieces(trainer: GRPOTrainer) -> bool:
    """Return whether the processes of a run share the model out."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def _require_same(trained: Any, merged: Any, most: float) -> None:
    """Raise unless two models give the same logits, up to a share of the largest."""
    (tokens,) = made_up(merged.config, [16])
    training = trained.training
    trained.eval()
    with torch.inference_mode():
        wanted, found = (
            model(input_ids=torch.tensor([tokens], device=model.device)).logits.float().cpu()
            for model in (trained, merged.eval())
        )
    trained.train(training)
    difference = float((wanted - found).abs().max())
    if not difference <= most * float(wanted.abs().max()):
        message = (
            f"merged, the adapter gives another model: logits differ by up to {difference:.2g}"
        )
        hint = "in train.lora, adapt no tied embeddings, and start with init_lora_weights: true"
        raise TrainingError(message, hint)


def check_policy(policy: str | Path) -> None:
    """Check the policy as TRL is about to load it, without reading the weights' values.

    Raises
    ------
    ModelError
        If it is not whole, or has weights that transformers does not know.
    """
    kind = policy_class(policy)
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


def has_changed(policy: str | Path, trained: str | Path) -> bool:
    """Return whether any weight of the trained policy is not that of the untrained one."""
    before = weights_of(policy)
    for name, weight in weights_of(trained).items():
        if name not in before:
            return True
        old, new = before[name](), weight()
        if old.shape != new.shape or not torch.equal(old.to(new.dtype), new):
            return True
    return False


def _class(model: Any) -> Any:
    """Return the class that a model was loaded in, below those that wrappers derive."""
    kinds = [kind for kind in type(model).__mro__ if kind.__module__.startswith(CLASSES)]
    return kinds[0] if kinds else type(model)


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
