"""TRL's settings of a run, from the params of the stage."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isodense.pipeline.errors import TrainingError
from isodense.train.params import TrainParams

if TYPE_CHECKING:
    from trl.trainer.grpo_config import GRPOConfig


def make_config(params: TrainParams, seed: int, device: str, folder: Path) -> GRPOConfig:
    """Return TRL's settings of the run.

    Parameters
    ----------
    params : TrainParams
        The stage's section.
    seed : int
        Seed of initialisation and completions.
    device : {"cpu", "cuda"}
    folder : Path
        The trainer's own folder.

    Raises
    ------
    TrainingError
        If the completions of a step cannot be shared out, several GPUs have no launcher, a tracker
        is not installed, or TRL refuses a setting.
    """
    from trl.trainer.grpo_config import GRPOConfig

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    each, left = divmod(params.prompts_per_step * params.num_generations, processes)
    per_pass = min(params.completions_per_pass, each)
    if left or each % per_pass:
        message = (
            f"prompts_per_step {params.prompts_per_step} × num_generations "
            f"{params.num_generations} completions do not divide over {processes} processes into "
            f"passes of completions_per_pass {per_pass}"
        )
        raise TrainingError(message, "change one of them in section train")
    run = os.environ.get("DVC_EXP_NAME", folder.name[:8])
    trackers = _trackers(params, run)
    settings = {
        "activation_checkpointing": params.grpo.get("gradient_checkpointing", False),
        "bf16": device == "cuda",
        "project": Path.cwd().name,
        "run_name": run,
        **params.grpo,
        "output_dir": str(folder),
        "seed": seed,
        "use_cpu": device == "cpu",
        "max_steps": params.max_steps,
        "per_device_train_batch_size": per_pass,
        "gradient_accumulation_steps": each // per_pass,
        "num_generations": params.num_generations,
        "max_completion_length": params.max_completion_tokens,
        "learning_rate": params.learning_rate,
        "beta": params.beta,
        "temperature": params.temperature,
        "shuffle_dataset": False,
        "remove_unused_columns": False,
        "logging_steps": 1,
        "report_to": trackers or "none",
        "disable_tqdm": True,
        "save_strategy": "steps",
    }
    try:
        config = GRPOConfig(**settings)
        every = resumable_every(config)
        config.save_steps = -(-params.save_steps // every) * every
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise TrainingError(f"TRL refuses the settings under train: {error}") from None
    if config.n_gpu > 1:
        message = f"one process sees {config.n_gpu} GPUs, which TRL does not train on"
        launch = "ISODENSE_LAUNCH='accelerate launch --config_file configs/ddp.yaml'"
        raise TrainingError(message, f"set {launch}, or CUDA_VISIBLE_DEVICES to one of them")
    return config


def _trackers(params: TrainParams, run: str) -> list[str]:
    """Return the trackers that TRL reports to; TensorBoard's files go to ``logs/`` by default.

    Raises
    ------
    TrainingError
        If one of them is not installed.
    """
    trackers: list[str] = [name for name in params.report_to if name != "dvclive"]
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            message = f"train.report_to names {name}, which is not installed"
            raise TrainingError(message, f"pip install {name}, or leave it out")
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path("logs", "tensorboard", run)))
    return trackers


def resumable_every(config: GRPOConfig) -> int:
    """Return after how many steps completions are drawn anew: there a run resumes exactly."""
    settings: Any = config
    uses: int = settings.steps_per_generation * settings.num_iterations
    return uses // math.gcd(uses, settings.gradient_accumulation_steps)


def draws_at_once(config: GRPOConfig) -> int:
    """Return how many prompts are completed together: a generation batch."""
    settings: Any = config  # its fields are optional to the type checker until it is built
    return int(settings.generation_batch_size // settings.num_generations)


def draws_needed(config: GRPOConfig) -> int:
    """Return how many prompts the run takes: whole generation batches, reused as TRL does."""
    settings: Any = config
    uses = settings.steps_per_generation * settings.num_iterations
    rounds = -(-settings.max_steps * settings.gradient_accumulation_steps // uses)
    return int(rounds * draws_at_once(config))
