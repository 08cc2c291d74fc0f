"""Trials of stages on a tiny project: one step of one run fails, and the next run goes on."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml

from isodense.pipeline import stage as running
from isodense.pipeline.artifact import MANIFEST, read_checked
from isodense.pipeline.cache import Entry
from isodense.pipeline.errors import IsodenseError
from tests import tiny
from tests.damage import reseal
from tests.faulty import Faults, install
from tests.project import ROOT, SMALL, write_params

PARAMS = SMALL | {"train.save_steps": 1, "map.epochs": 10}
MEASURED = {  # params with which the difficulty is measured
    "download.sample.pairs": 700,  # in three shards
    "reward.kind": "function",
    "reward.functions": ["tests.difficulty.graded:even"],
    "difficulty.completions": 2,
    "difficulty.max_completion_tokens": 4,
}
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
HEAVY = ("trl", "trl.trainer.grpo_trainer", "umap", "faiss", "matplotlib.figure", "dvclive.live",
         "isodense.evaluate.evaluate", "isodense.train.record", "sklearn.decomposition",
         "isodense.reward.scoring.load", "transformers.models.llama.modeling_llama",
         "transformers.models.bert.modeling_bert")  # fmt: skip
QUICK = ("download", "models", "prompts")  # stages that need none of these
SERIES = "reports/train"  # dvclive's, which it writes in place
FINISHED, COMPUTING = "finished", "computing"


@dataclass
class Trial:
    """What followed from a fault at one step."""

    step: str
    fault: str
    left: str  # in the place of the outputs: old, new, none, or some of each
    ended: str  # killed, one line, or finished
    kept: int  # finished pieces of the cache, which the next run did not compute again
    wrong: list[str] = field(default_factory=list)


class Bench:
    """A tiny project in `folder`, with some params, whose stages are tried one by one."""

    def __init__(self, folder: Path, params: dict[str, object] | None = None) -> None:
        self.folder, self.base = folder, folder / "base"
        torch.set_num_threads(1)
        self.stages = STAGES
        for name in ("data/raw", "models/raw", "rewards"):
            (self.base / name).mkdir(parents=True)
        encoder = tiny.encoder(folder / "tiny-encoder")
        policy = tiny.policy(folder / "tiny-policy")
        source = {"source": "folder", "version": None, "sha256": None, "path": None}
        values = (
            PARAMS
            | (params or {})
            | {
                "models.encoder": source | {"name": str(encoder)},
                "models.policy": source | {"name": str(policy), "chat_template_kwargs": {}},
            }
        )
        write_params(self.base / "params.yaml", values)

    def build(self, last: str) -> None:
        """Run the stages up to `last`, each once."""
        if last not in QUICK:
            self._import()
        for name in self.stages:
            status, said, _ = self.run(name, self.base, None, "")
            assert status == 0, said
            if name == "map":  # here, too: what numba has compiled stays
                with _within(self.base):
                    _script(name).main(self.arguments(name))
            if name == last:
                return

    def _import(self) -> None:
        """Import, and let compile, what stages use, once before processes are forked."""
        for module in HEAVY:
            importlib.import_module(module)
        import numba

        from isodense.embeddings.encoder import load_encoder
        from isodense.models.inference.policy import load_policy

        numba.config.THREADING_LAYER = "workqueue"  # OpenMP's does not outlive a fork
        load_policy(self.folder / "tiny-policy")
        load_encoder(self.folder / "tiny-encoder", max_tokens=64)

    def arguments(self, name: str) -> list[str]:
        """Return the stage's arguments in dvc.yaml."""
        commands = self.stages[name]["cmd"]
        commands = [commands] if isinstance(commands, str) else commands
        words = next(
            words for one in commands if f"stages/{name}.py" in (words := shlex.split(one))
        )
        return words[2:]

    def outputs(self, name: str) -> list[str]:
        found = [*self.stages[name]["outs"], *self.stages[name].get("metrics", [])]
        return [one if isinstance(one, str) else next(iter(one)) for one in found]

    def steps(self, name: str) -> list[tuple[str, str]]:
        """Return kind and path of each step of an undisturbed run."""
        with self.place(name) as place:
            status, said, log = self.run(name, place, None, "")
            assert status == 0, (status, said)
        return [(words[1], words[2]) for words in log if words[0] == "step"]

    @contextmanager
    def place(self, name: str) -> Iterator[Path]:
        """Give a folder with what the stage reads, and old outputs."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            place, mine = Path(folder, "project"), self.outputs(name)
            others = [out for other in self.stages if other != name for out in self.outputs(other)]
            for out in ["params.yaml", "data/raw", "models/raw", "rewards", *others]:
                if (self.base / out).exists():
                    (place / out).parent.mkdir(parents=True, exist_ok=True)
                    (place / out).symlink_to(self.base / out)
            for out in mine:
                _make_old(self.base / out, place / out)
            yield place

    def run(
        self, name: str, place: Path, at: int | None, fault: str
    ) -> tuple[int, str, list[list[str]]]:
        """Run a stage in a forked child; return its status, what it printed, and the log."""
        log, said = place.parent / "log", place.parent / "said"
        child = os.fork()
        if not child:
            _run_child(name, self.arguments(name), place, log, said, at, fault)
        _, status = os.waitpid(child, 0)
        lines = [line.split("\t") for line in log.read_text().splitlines()]
        return os.waitstatus_to_exitcode(status), said.read_text(errors="replace"), lines

    def trial(self, name: str, at: int, fault: str) -> Trial:
        """Let one step fail, look at what is left, and run the stage again."""
        with self.place(name) as place:
            old = {out: digest(place / out) for out in self.outputs(name)}
            status, said, log = self.run(name, place, at, fault)
            steps = [words for words in log if words[0] == "step"]
            made = Trial(
                " ".join(steps[min(at, len(steps) - 1)][1:]),
                fault,
                "",
                "killed" if status == -9 else "one line" if status else "finished",
                0,
            )
            made.wrong += _wrong_words(status, said, fault, place)
            made.left = self._left(name, place, old, made.wrong)
            finished = Counter(words[1] for words in log if words[0] == FINISHED)
            status, said, log = self.run(name, place, None, "")
            again = {words[1] for words in log if words[0] == COMPUTING}
            if status:
                made.wrong.append(f"the next run failed: {said[-300:]}")
            lost = sorted(set(finished) & again) if made.ended != "finished" else []
            made.kept = len(finished) - len(lost)
            if lost:
                made.wrong.append(f"computed again: {', '.join(lost)}")
            made.wrong += [
                f"{out} differs from an undisturbed run's"
                for out in self.outputs(name)
                if digest(place / out) != digest(self.base / out)
            ]
            made.wrong += [
                f"{path.name} stays" for path in place.rglob("*.tmp") if ".cache" not in path.parts
            ]
        return made

    def _left(self, name: str, place: Path, old: dict[str, str], wrong: list[str]) -> str:
        """Return which outputs are there, and note those that are neither old nor new."""
        kinds = set()
        for out in self.outputs(name):
            if out.startswith(SERIES):
                continue
            found = digest(place / out)
            states = {old[out]: "old", digest(self.base / out): "new", "": "none"}
            if found not in states:
                wrong.append(f"{out} is in parts")
            elif found and (place / out / MANIFEST).is_file():
                wrong += _refused(place / out, self.base / out)
            kinds.add(states.get(found, "parts"))
        return kinds.pop() if len(kinds) == 1 else "some of each"


def digest(path: Path) -> str:
    """Return the hash of a file or of all files of a folder, empty if there is none."""
    if not path.exists():
        return ""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.relative_to(path)}\n".encode())
        found.update(file.read_bytes() if file.is_file() else b"")
    return found.hexdigest()


def _refused(folder: Path, base: Path) -> list[str]:
    import json

    try:
        read_checked(folder, json.loads((base / MANIFEST).read_text())["kind"])
    except IsodenseError as error:
        return [f"refused: {error}"]
    return []


def _wrong_words(status: int, said: str, fault: str, place: Path) -> list[str]:
    """Return what is wrong with how a run ended."""
    if status == (-9 if fault == "kill" else 0):
        return []
    errors = [line for line in said.splitlines() if "] error: " in line]
    if status != 1 or len(errors) != 1 or "Traceback" in said:
        return [f"ended with {status}: {said[-600:]}"]
    if fault != "short write" and not _names_place(errors[0], place):
        return [f"names no place: {errors[0]}"]
    return [] if ".tmp" not in errors[0] else [f"names a temporary file: {errors[0]}"]


def _names_place(line: str, place: Path) -> bool:
    paths = [(word, Path(place, word)) for word in re.split("[:,]? ", line)]
    return any(path.exists() or "/" in word for word, path in paths)


def _make_old(source: Path, target: Path) -> None:
    """Copy an output and change it to what an earlier run would have left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        target.write_bytes(b"old\n")
        return
    shutil.copytree(source, target)
    if not (target / MANIFEST).is_file():
        (target / "old").touch()
        return
    (target / "old").touch()
    reseal(target)


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"stage_{name}", ROOT / "stages" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _within(folder: Path) -> Iterator[None]:
    here = Path.cwd()
    os.chdir(folder)
    with patch.dict(os.environ, {"CI": "1"}):
        try:
            yield
        finally:
            os.chdir(here)


def _run_child(
    name: str, arguments: list[str], place: Path, log: Path, said: Path, at: int | None, fault: str
) -> None:
    """Run a stage as its script does, and end the process."""
    status = 70
    try:
        noted = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(output, number)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False)
        logging.getLogger().handlers.clear()
        os.environ |= {"ISODENSE_CACHE": str(place / ".cache"), "CI": "1"}
        os.environ.pop("DVC_ROOT", None)
        os.chdir(place)
        sys.argv = [f"stages/{name}.py", *arguments]
        main = _script(name).main
        faults = Faults(place, noted, at, fault)
        _note_pieces(faults.note, name)
        install(faults)
        running.run(name, main)
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:  # noqa: BLE001 - the child ends here, whatever it was
        traceback.print_exc()
        status = 71
    finally:
        sys.stderr.flush()
        os._exit(status)


def _note_pieces(note: Callable[..., None], stage: str) -> None:
    """Log the pieces of the cache, and the checkpoints, that are begun and finished."""
    writing = Entry.writing

    @contextmanager
    def noted(self: Entry, name: str) -> Iterator[Path]:
        piece = f"{self.folder.parent.name}/{self.folder.name[:8]}/{name}"
        note(COMPUTING, piece)
        with writing(self, name) as path:
            yield path
        note(FINISHED, piece)

    Entry.writing = noted
    if stage != "train":
        return
    from isodense.train import grpo

    finalize = grpo.finalize

    def settled(checkpoint: Path) -> None:
        note(COMPUTING, checkpoint.name)
        finalize(checkpoint)
        note(FINISHED, checkpoint.name)

    grpo.finalize = settled
