"""Training the policy by GRPO, on prompts drawn by weight.

The prompts are drawn before the trainer is built: a plan of row numbers, as many as the run will
use, from :func:`isodense.sampling.draw.draw`. TRL's trainer walks through the plan in order,
repeats each prompt ``num_generations`` times and keeps the group together, so that rewards are
compared among answers to one prompt. With ``train.redraw`` the plan only says how many there are:
:mod:`isodense.train.redraw` chooses each when its turn comes. Embeddings are never opened.

A run that was cut off goes on from its last checkpoint, in the cache, with the same draws and, on
the same machine, to the same weights. The cache entry is keyed by everything that shapes the run.
It outlives the run, so that a result which DVC could not note costs no training; the next run
deletes it.

Any field of TRL's ``GRPOConfig`` can be set under ``train.grpo``, except those that the stage
sets from other params or needs for the run to repeat, and of peft's ``LoraConfig`` under
``train.lora``.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isodense.models.inference.reader import parameter_count
from isodense.pipeline.artifact import (
    content_sha256,
    publishing,
    read_manifest,
    write_manifest,
)
from isodense.pipeline.cache import Entry, Store, cache_key
from isodense.pipeline.errors import TrainingError
from isodense.pipeline.params import as_dict
from isodense.pipeline.storage import require_space
from isodense.prompts.reader import PromptSet
from isodense.reward.scoring.check import no_signal, require_not_weak
from isodense.train.checkpoints import Stop, checkpoint_bytes, newest
from isodense.train.params import TrainParams
from isodense.train.plan import fitting, nominal, plan_facts, plan_run
from isodense.train.settings import draws_at_once, draws_needed, make_config, resumable_every

if TYPE_CHECKING:
    from isodense.reward.scoring.load import Reward

log = logging.getLogger("isodense")

HOLDING_PATHS = shutil.ignore_patterns("training_args.bin", "README.md", "*.tmp")
LAUNCH = ("WORLD_SIZE", "OMP_NUM_THREADS", "ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION")
PUBLISHED = "published"  # in the cache entry of a run that has ended
NOT_SHAPING = ("save_steps", "on_weak_reward")  # params that change nothing about the result
CODE = (
    "models/inference",
    "reward/scoring",
    "sampling",
    "train",
)  # packages that compute checkpoints
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate")


def read_manifests(
    prompts: Path, density: Path, policy: Path, reward: Path
) -> dict[str, dict[str, Any]]:
    """Return the manifests of the artifacts that training reads."""
    kinds = {
        "prompts": (prompts, "prompts"),
        "density": (density, "density"),
        "policy": (policy, "models"),
        "reward": (reward, "reward"),
    }
    return {name: read_manifest(*entry) for name, entry in kinds.items()}


def check_reward(reward: Path, on_weak_reward: str) -> None:
    """Refuse a reward that pairs show to be weak, or only warn of it.

    One that gave no group two different rewards when it was checked on completions is warned of: a
    sample is no proof, and what is rare at first may be found in training.

    Parameters
    ----------
    reward : Path
        The reward's artifact.
    on_weak_reward : {"error", "warn"}

    Raises
    ------
    TrainingError
        If the reward is that weak and must not be.
    """
    manifest = read_manifest(reward, "reward")
    if silent := no_signal(manifest):
        log.warning("%s", silent)
    try:
        require_not_weak(manifest, reward)
    except TrainingError as error:
        if on_weak_reward == "error":
            raise
        log.warning("%s", error)


def live_folder(metrics: Path, plots: Path) -> Path:
    """Return the folder in which dvclive writes the two paths that DVC knows.

    Raises
    ------
    TrainingError
        If dvclive would not write them there.
    """
    if metrics != metrics.parent / "metrics.json" or plots != metrics.parent / "plots" / "metrics":
        message = f"--metrics {metrics} --plots {plots} are not where dvclive writes"
        raise TrainingError(message, "name them DIR/metrics.json and DIR/plots/metrics")
    return metrics.parent


def train(
    prompts: PromptSet,
    weights: np.ndarray,
    density: np.ndarray,
    reward: Callable[[str], Reward],
    policy: Path,
    params: TrainParams,
    seed: int,
    device: str,
    cache: Path,
    inputs: dict[str, dict[str, Any]],
    out: Path,
    live: Path,
    table: Path,
) -> dict[str, Any]:
    """Train the policy, write ``models/grpo`` and the run's series, and return the plan's facts.

    Parameters
    ----------
    prompts : PromptSet
        The training prompts.
    weights : ndarray of shape (n_prompts,)
        How often each is drawn, up to a factor.
    density : ndarray of shape (n_prompts,)
        Log density of each.
    reward : callable
        Given a torch device, returns the reward.
    policy : Path
        The untrained policy's artifact.
    params : TrainParams
        The stage's section.
    seed : int
        Seed of draws and completions.
    device : {"cpu", "cuda"}
    cache : Path
        Where the run keeps its checkpoints, the last until another run begins.
    inputs : dict of str to dict
        Manifests of what went in.
    out : Path
        The trained policy's artifact.
    live : Path
        The folder of dvclive's series.
    table : Path
        The CSV of what was learnt from, see :mod:`isodense.train.realised`.

    Raises
    ------
    TrainingError
        If the settings, the prompts or the rewards cannot be trained on, or another process
        trains with the same.
    ModelError
        If the policy cannot be loaded.
    KeyboardInterrupt
        If the run was asked to stop; the same call goes on from there.
    """
    from isodense.train.grpo import Checkpoints, make_trainer, save_policy
    from isodense.train.realised import Signals, realised, write_table
    from isodense.train.record import Record, quarters, steps_with_signal
    from isodense.train.redraw import Redraw, drawn_plan, strata

    store = Store(cache, "train")
    entry = store.entry(_key(params, inputs, seed, device))
    folder = entry.folder
    first = os.environ.get("RANK", "0") == "0"
    with entry.claimed("training") if first else nullcontext():  # before processes meet
        if first:
            _remove_published(store, entry)
            _require_space(policy, params, folder, out)
        config = make_config(params, seed, device, folder)
        plan = plan_run(prompts, weights, policy, params, draws_needed(config), seed)
        facts = plan_facts(plan, prompts)
        rows = [prompts.rows[row] for row in plan.rows]
        scores = reward(str(config.device))
        signals = Signals(prompts.ids)
        odds = nominal(weights, params.uniform_share)
        redraw = None
        if params.redraw:
            redraw = Redraw(
                prompts.rows,
                odds,
                strata(params.redraw, density, prompts),
                len(plan.rows),
                draws_at_once(config),
                seed,
                fitting(prompts, policy, params),
            )
        trainer = make_trainer(policy, scores, config, rows, params.lora, signals, redraw)
        names = [one.label for one in getattr(scores, "functions", ())]
        record = Record(live, facts, names) if first else None
        if record:
            store.clean()
            trainer.add_callback(record)
        with Stop() as stop:
            trainer.add_callback(Checkpoints(stop, resumable_every(config)))
            trainer.train(resume_from_checkpoint=_resume_from(folder))
        if trainer.state.global_step < config.max_steps:
            raise KeyboardInterrupt
        history = trainer.state.log_history
        if redraw:
            facts = plan_facts(drawn_plan(history), prompts)
        shares, learnt = realised(history, odds, density, prompts)
        results = {**quarters(history), "steps_with_signal": steps_with_signal(history), **learnt}
        changed = save_policy(trainer, policy, folder / "policy")
        trainer.accelerator.wait_for_everyone()
        if record:
            if not changed:
                _warn_unchanged(params)
            record.finish({**facts, **results, "changed": int(changed)})
            write_table(shares, table)
            hashes = {name: content_sha256(manifest) for name, manifest in inputs.items()}
            fields = {"params": as_dict(params), "inputs": hashes, "changed": changed}
            _publish(folder / "policy", out, plan=facts, ids_sha256=prompts.ids_sha256, **fields)
            shutil.rmtree(folder / "policy")
            (folder / PUBLISHED).touch()
    return {**facts, **results, "changed": changed}


def _remove_published(store: Store, present: Entry) -> None:
    """Delete the checkpoints of other runs that have ended: DVC has noted their results by now.

    Until it has, a full disk or a kill makes DVC train again; that goes on from the last step.
    """
    for entry in store.entries(PUBLISHED):
        if entry.folder != present.folder:
            store.remove(entry)


def _require_space(policy: Path, params: TrainParams, folder: Path, out: Path) -> None:
    count = parameter_count(policy)
    kept = checkpoint_bytes(count, adapter=params.lora is not None)
    require_space("train", {folder: kept, out: 4 * count})


def _warn_unchanged(params: TrainParams) -> None:
    if params.learning_rate == 0:
        log.warning("train.learning_rate is 0: the result is the untrained policy")
        return
    log.warning(
        "the rewards of every group were equal in all %d steps, so that nothing could be learnt: "
        "the result is the untrained policy. Try easier prompts, a stronger policy, a reward with "
        "partial credit, a larger train.max_completion_tokens or train.num_generations",
        params.max_steps,
    )


def _key(params: TrainParams, inputs: dict[str, dict[str, Any]], seed: int, device: str) -> str:
    """Return the key of what shapes the run, bytes included."""
    shaping = {name: value for name, value in as_dict(params).items() if name not in NOT_SHAPING}
    return cache_key(
        inputs=inputs,
        params={**shaping, "seed": seed},
        code=CODE,
        libraries=LIBRARIES,
        device=device,
        processes={name: os.environ.get(name) for name in LAUNCH},
    )


def _resume_from(folder: Path) -> str | None:
    checkpoint = newest(folder)
    if checkpoint is None:
        return None
    log.info("going on from %s", checkpoint.name)
    return str(checkpoint)


def _publish(made: Path, out: Path, **fields: Any) -> None:
    """Copy the saved model without what holds paths."""
    with publishing(out) as folder:
        shutil.copytree(made, folder, dirs_exist_ok=True, ignore=HOLDING_PATHS)
        write_manifest(folder, "train", **fields)
