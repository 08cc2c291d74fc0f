"""A training run that was cut off ends with the bytes of one that was not."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.commands.config.config_args import load_config_from_file

from isodense.models.inference.policy import load_policy, load_tokenizer
from isodense.pipeline.errors import TrainingError
from isodense.prompts.reader import PromptSet, load_prompts
from isodense.sampling.weights import load_weights
from isodense.train.checkpoints import Stop, checkpoint_bytes, finalize, newest
from isodense.train.params import TrainParams
from isodense.train.plan import make_plan
from isodense.train.train import CODE, train
from tests.rl import FLAGS, ROOT, SECTIONS, run_stage, snapshot, write_inputs, write_reward

SECTION = SECTIONS["train"] | {"max_steps": 6, "save_steps": 2}
REUSE = {"grpo": {"num_iterations": 2}, "max_steps": 8}
INPUTS = {
    "prompts": {"kind": "prompts", "files": {"shard-00000.parquet": {"sha256": "1"}}},
    "density": {"kind": "density", "files": {"density_weights.npy": {"sha256": "2"}}},
    "policy": {"kind": "models", "files": {"model.safetensors": {"sha256": "3"}}},
    "reward": {"kind": "reward", "files": {}, "function": {"name": "r:f", "sha256": "4"}},
}


def section(**changes: object) -> TrainParams:
    return TrainParams(**(SECTION | changes))  # type: ignore[arg-type]


def length(rows, completions) -> np.ndarray:
    return np.array([len(text) for text in completions], dtype=np.float32)


class Until:
    """The reward `length` that does something at its nth call."""

    def __init__(self, call: int, act) -> None:
        self.left, self.act = call, act

    def __call__(self, rows, completions) -> np.ndarray:
        self.left -= 1
        if not self.left:
            self.act()
        return length(rows, completions)


def interrupt() -> None:
    raise KeyboardInterrupt


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PromptSet]:
    folder = tmp_path_factory.mktemp("resume")
    return folder, write_inputs(folder).split("train")


def run(world, name: str, score, inputs=INPUTS, seed: int = 1, **changes: object):
    folder, prompts = world
    weights = load_weights(folder / "data/density")
    return train(
        prompts,
        weights.weights,
        weights.density,
        lambda device: SimpleNamespace(score=score),
        folder / "models/policy",
        section(**changes),
        seed=seed,
        device="cpu",
        cache=folder / "cache" / name,
        inputs=inputs,
        out=folder / name / "models/grpo",
        live=folder / name / "reports/train",
        table=folder / name / "reports/train" / "realised.csv",
    )


@pytest.mark.parametrize(
    ("name", "act", "changes"),
    [
        ("crash", interrupt, {}),
        ("ctrl-c", press_ctrl_c, {}),
        ("reuse", interrupt, REUSE),
        ("redraw", press_ctrl_c, {"redraw": "decile"}),
        ("redraw-reuse", interrupt, {**REUSE, "redraw": "decile"}),
        ("adapter", press_ctrl_c, {"lora": {"r": 4, "target_modules": "all-linear"}, "beta": 0.1}),
    ],
)
def test_the_bytes_are_those_of_an_unbroken_run(world, name, act, changes):
    folder, _ = world
    report = run(world, f"{name}-whole", length, **changes)
    with pytest.raises(KeyboardInterrupt):
        run(world, f"{name}-cut", Until(4, act), **changes)
    assert not (folder / f"{name}-cut/models").exists()
    scratch = next((folder / "cache" / f"{name}-cut/train").iterdir())
    kept = newest(scratch)
    assert kept is not None
    assert [path.name for path in scratch.glob("checkpoint-*")] == [kept.name]
    calls = Until(100, interrupt)
    assert run(world, f"{name}-cut", calls, **changes) == report
    assert 0 < 100 - calls.left < 6  # the steps before the checkpoint are not run again
    assert snapshot(folder / f"{name}-cut") == snapshot(folder / f"{name}-whole")


FUNCTION = {"function": {"name": "r:f", "sha256": "another"}}  # the manifest's files stay {}


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": INPUTS | {"reward": INPUTS["reward"] | FUNCTION}},
        {"inputs": INPUTS | {"prompts": {"kind": "prompts", "files": {}}}},
        {"inputs": INPUTS | {"density": INPUTS["density"] | {"params": {"k": 10}}}},
        {"inputs": INPUTS | {"policy": {"kind": "models", "files": {}}}},
        {"learning_rate": 0.02},
        {"seed": 2},
        "library",
        "code",
        "processes",
    ],
    ids=lambda change: change if isinstance(change, str) else "-".join(change),
)
def test_a_run_goes_on_only_where_all_that_shapes_it_is_the_same(
    world, change, request, monkeypatch: pytest.MonkeyPatch
):
    name = f"other-{request.node.callspec.id}"
    with pytest.raises(KeyboardInterrupt):
        run(world, name, Until(4, interrupt))
    if change == "library":
        real = importlib.metadata.version
        newer = {"trl": "99"}
        monkeypatch.setattr(
            "importlib.metadata.version", lambda name: newer.get(name) or real(name)
        )
    elif change == "code":
        monkeypatch.setattr("isodense.pipeline.cache.source_sha256", lambda packages: "other")
    elif change == "processes":
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
    calls = Until(100, interrupt)
    run(world, name, calls, **(change if isinstance(change, dict) else {}))
    assert 100 - calls.left == 6  # all steps, from the first


def test_the_source_of_all_that_trains_is_in_the_key():
    assert set(CODE) == {"models/inference", "reward/scoring", "sampling", "train"}


def test_a_crash_after_the_last_step_trains_no_step_more(world, monkeypatch: pytest.MonkeyPatch):
    folder, _ = world
    changes = {"grpo": {"num_iterations": 2}, "max_steps": 5}
    report = run(world, "end-whole", length, **changes)
    with monkeypatch.context() as patch:
        patch.setattr("isodense.train.grpo.save_policy", lambda *_: interrupt())
        with pytest.raises(KeyboardInterrupt):
            run(world, "end-cut", length, **changes)
    assert run(world, "end-cut", length, **changes) == report
    assert snapshot(folder / "end-cut") == snapshot(folder / "end-whole")


def test_scratches_that_nobody_uses_are_deleted(world):
    folder, _ = world
    old, ended, other = (folder / "cache/tidy/train" / name for name in ("old", "ended", "other"))
    for path in (old, ended, other):
        path.mkdir(parents=True)
    (ended / "published").touch()
    os.utime(old, (0, 0))
    run(world, "tidy", length, max_steps=1)
    assert not old.exists()
    assert not ended.exists()
    assert other.exists()


def test_a_run_whose_result_was_lost_after_it_ended_trains_no_step_more(
    world, monkeypatch: pytest.MonkeyPatch
):
    """DVC runs a stage again if it is killed, or the disk full, before it noted the result."""
    folder, _ = world
    run(world, "lost", length, max_steps=2)
    before = snapshot(folder / "lost")
    shutil.rmtree(folder / "lost")
    monkeypatch.setattr("trl.GRPOTrainer.training_step", lambda *_: interrupt())
    run(world, "lost", length, max_steps=2)
    assert snapshot(folder / "lost") == before


def test_a_request_to_stop_finishes_the_step(world):
    folder, _ = world
    with pytest.raises(KeyboardInterrupt):
        run(world, "stop", Until(3, press_ctrl_c), save_steps=100)
    scratch = next((folder / "cache/stop/train").iterdir())
    assert newest(scratch) == scratch / "checkpoint-3"


def test_an_unfinished_checkpoint_is_never_chosen(tmp_path: Path):
    assert newest(tmp_path) is None
    for step in (8, 9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/weights").write_bytes(b"1234")
    (tmp_path / "checkpoint-9/complete").touch()  # a kill while the mark was written
    assert newest(tmp_path) is None
    finalize(tmp_path / "checkpoint-10")
    assert newest(tmp_path) == tmp_path / "checkpoint-10"
    assert len(list(tmp_path.iterdir())) == 1
    for damage in (b"12", b"1235"):  # a crash before it was on disk; a flipped bit
        (tmp_path / "checkpoint-10/weights").write_bytes(damage)
        assert newest(tmp_path) is None
    for mark in ("[]", "{"):
        (tmp_path / "checkpoint-10/complete").write_text(mark)
        assert newest(tmp_path) is None
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-x/complete").write_text("{}")
    assert newest(tmp_path) is None


def checkpoint(folder: Path, step: int) -> Path:
    made = folder / f"checkpoint-{step}"
    (made / "deep").mkdir(parents=True)
    (made / "deep/weights").write_bytes(b"1234")
    return made


def test_the_newest_checkpoint_is_that_of_the_highest_step(tmp_path: Path):
    for step in (9, 10, 8):
        finalize(checkpoint(tmp_path / "apart", step))
        (tmp_path / f"apart/checkpoint-{step}").rename(tmp_path / f"checkpoint-{step}")
    assert newest(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10/deep/weights").write_bytes(b"12")
    assert newest(tmp_path) == tmp_path / "checkpoint-9"


@pytest.mark.parametrize(("hashed", "digest"), [(4, hashlib.sha256(b"1234").hexdigest()), (3, "-")])
def test_files_up_to_a_size_are_marked_with_their_hash(tmp_path: Path, monkeypatch, hashed, digest):
    monkeypatch.setattr("isodense.train.checkpoints.HASHED", hashed)
    made = checkpoint(tmp_path, 1)
    finalize(made)
    assert json.loads((made / "complete").read_text()) == {"deep/weights": f"4 {digest}"}
    (made / "deep/weights").write_bytes(b"1235")
    assert newest(tmp_path) == (made if digest == "-" else None)
    (made / "deep/weights").write_bytes(b"123")
    assert newest(tmp_path) is None


def test_room_for_two_checkpoints_and_the_result_is_asked_for():
    weights = 7 * 4  # bytes of seven float32
    moments = 2 * weights  # of Adam
    assert checkpoint_bytes(7, adapter=False) == 2 * (weights + moments) + weights
    assert checkpoint_bytes(7, adapter=True) == weights


def test_a_kill_while_older_checkpoints_are_deleted_leaves_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    finalize(checkpoint(tmp_path, 1))
    monkeypatch.setattr(
        "shutil.rmtree", lambda path: (path / "deep/weights").unlink() or interrupt()
    )
    with pytest.raises(KeyboardInterrupt):
        finalize(checkpoint(tmp_path, 2))
    assert newest(tmp_path) == tmp_path / "checkpoint-2"


def test_a_signal_passed_on_twice_asks_once(monkeypatch: pytest.MonkeyPatch):
    with Stop() as stop:
        press_ctrl_c()
        press_ctrl_c()  # the same one, from the launcher
        assert stop.asked
    monkeypatch.setattr("isodense.train.checkpoints.SAME", 0.0)
    with Stop() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked


def test_ctrl_c_twice_interrupts_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("isodense.train.checkpoints.SAME", 0.0)
    before = signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        press_ctrl_c()
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_adapter_is_merged_and_kept(world):
    folder, _ = world
    run(world, "lora", length, max_steps=1, lora={"r": 4, "target_modules": "all-linear"})
    made = folder / "lora/models/grpo"
    config = json.loads((made / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "policy"
    assert len(config["target_modules"]) == 7
    assert config["target_modules"] == sorted(config["target_modules"])
    assert not any(str(folder).encode() in content for content in snapshot(made).values())
    load_tokenizer(made)
    before = load_policy(folder / "models/policy").state_dict()
    after = load_policy(made).state_dict()
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora": {"target_modules": ["nothing_like_it"]}}, "nothing_like_it"),
        ({"grpo": {"use_vllm": True}}, "vLLM"),
    ],
)
def test_what_trl_refuses_is_one_clear_error(world, changes, said):
    with pytest.raises(TrainingError, match=f"TRL refuses to train(.|\n)*{said}"):
        run(world, "refused", length, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("redraw", [None, "decile"])
def test_kill_9_of_the_stage_loses_only_the_steps_since_the_checkpoint(tmp_path: Path, redraw):
    write_reward(tmp_path, write_inputs(tmp_path))
    changes = {"train": {"max_steps": 8, "save_steps": 1, "redraw": redraw}}
    whole = run_stage("train", tmp_path, **changes)
    assert whole.returncode == 0, whole.stderr
    before = snapshot(tmp_path / "models/grpo") | snapshot(tmp_path / "reports/train")
    command = [sys.executable, str(ROOT / "stages/train.py"), *FLAGS["train"].split()]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not list(tmp_path.glob(".cache/isodense/train/*/checkpoint-[3-9]/complete")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    again = run_stage("train", tmp_path, **changes)
    assert again.returncode == 0, again.stderr
    assert "going on from checkpoint-" in again.stderr
    assert snapshot(tmp_path / "models/grpo") | snapshot(tmp_path / "reports/train") == before


WORKER = """
import json, os, signal, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from tests.train.test_resume import length, run
from isodense.prompts.reader import load_prompts

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
world = folder, load_prompts(folder / "data/prompts").split("train")
asked = []

def heard(rows, completions):
    asked.append([row["prompt"][-1]["content"] for row in rows])
    return length(rows, completions)

def stopping(rows, completions):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return length(rows, completions)

run(world, "whole", heard)
(folder / f"asked-{rank}.json").write_text(json.dumps(asked))
asked.clear()
run(world, "redrawn-whole", heard, redraw="decile")
(folder / f"redrawn-{rank}.json").write_text(json.dumps(asked))
for name, changes in {"cut": {}, "redrawn-cut": {"redraw": "decile"}}.items():
    try:
        run(world, name, stopping, **changes)
        raise SystemExit("not stopped")
    except KeyboardInterrupt:
        pass
    run(world, name, length, **changes)
"""


@pytest.mark.slow
def test_two_processes_share_the_plan_and_resume_together(tmp_path: Path):
    write_inputs(tmp_path)
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    path = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    done = subprocess.run(
        [*command, "--standalone", str(tmp_path / "worker.py"), str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": path,
            "CI": "1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    asked = asked_of(tmp_path, "asked")
    prompts = load_prompts(tmp_path / "data/prompts").split("train")
    plan = make_plan(load_weights(tmp_path / "data/density").weights, 12, seed=1)
    assert asked == [prompts.rows[row]["prompt"][-1]["content"] for row in plan.rows]
    redrawn = asked_of(tmp_path, "redrawn")
    assert redrawn[:2] == asked[:2]  # nothing is known before the first step
    for name in ("", "redrawn-"):
        assert snapshot(tmp_path / f"{name}cut") == snapshot(tmp_path / f"{name}whole")


def asked_of(folder: Path, name: str) -> list[str]:
    """Return the prompt of each group of two processes, which do not mix them."""
    ranks = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]
    steps = [[*first, *second] for first, second in zip(*ranks, strict=True)]
    groups = [step[at : at + 4] for step in steps for at in range(0, len(step), 4)]
    assert len(groups) == 12
    assert all(len(set(group)) == 1 for group in groups)
    return [group[0] for group in groups]


@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp", "FSDP")])
def test_the_shipped_launcher_configs_are_accelerates(name: str, kind: str):
    config = load_config_from_file(str(ROOT / f"configs/{name}.yaml"))
    assert config.distributed_type == kind
    assert config.num_processes == 8
