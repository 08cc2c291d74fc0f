"""Does sampling by density help? Arms × seeds as DVC experiments, at the same rollout budget.

An arm says how the reward and the training draw prompts: by density, uniformly over distinct
prompts, or in proportion to occurrences. Each arm runs with each seed of draws and completions,
from the same commit, and ``dvc exp show`` lists the runs. Finished runs are not run again.

Rewards of different arms cannot be compared with each other, so one judge, the reward of the first
arm, scores the held-out completions of all arms. Seeds are the unit of replication: intervals are
95% t intervals over seeds, of the difference to the first arm paired by seed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isodense.evaluate.intervals import mean_known
from isodense.experiments.arms import ARMS
from isodense.experiments.differences import Row, figure, markdown, tabulate
from isodense.pipeline.artifact import replacing, write_json
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.layout import ARTIFACTS, COMPLETIONS
from isodense.sampling.remote import open_files


@dataclass(frozen=True)
class Run:
    """One run of a comparison, as a DVC experiment.

    Attributes
    ----------
    arm : str
        Key of `ARMS`.
    seed : int
        Seed of draws and completions.
    settings : tuple of str
        Params to set, in the form ``section.key=value`` of ``dvc exp run -S``.
    """

    arm: str
    seed: int
    settings: tuple[str, ...]

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
        Params that all arms set, as ``section.key=value``.

    Raises
    ------
    IsodenseError
        If there is nothing to compare, an arm is unknown or named twice, or a setting is one that
        the arms differ in.
    """
    varied = ("reward.sampling", "train.sampling", "train.seed")
    taken = [setting for setting in settings if setting.lstrip("+").partition("=")[0] in varied]
    if taken:
        raise IsodenseError(f"{taken[0]} is what the arms differ in", "choose among --arms instead")
    wrong = [arm for arm in arms if arm not in ARMS]
    if wrong or len(set(arms)) < max(len(arms), 2) or seeds < 2:
        message = f"cannot compare the arms {', '.join(arms)} with {seeds} seeds"
        raise IsodenseError(message, f"name two or more of {', '.join(ARMS)}, and 2 seeds or more")
    runs = []
    for seed in range(seeds):
        for arm in arms:
            reward, train = ARMS[arm]
            values = (f"reward.sampling={reward}", f"train.sampling={train}", f"train.seed={seed}")
            runs.append(Run(arm, seed, (*settings, *values)))
    return runs


def require_different(arms: Sequence[str], settings: Sequence[str], params: Path) -> None:
    """Check that arms which differ in the reward's sampling do differ: the reward must be fitted.

    Parameters
    ----------
    arms : sequence of str
        Keys of `ARMS`.
    settings : sequence of str
        Params that all arms set, as ``section.key=value``.
    params : Path
        ``params.yaml``.

    Raises
    ------
    IsodenseError
        If an arm samples for the reward by density, but the reward is of a kind that is not fitted.
    """
    import yaml

    kind = yaml.safe_load(params.read_text(encoding="utf-8"))["reward"]["kind"]
    for setting in settings:
        name, _, value = setting.partition("=")
        kind = value if name == "reward.kind" else kind
    drawing = [arm for arm in arms if ARMS[arm][0] == "density"]
    if drawing and kind not in ("head", "full"):
        message = f"a reward of kind {kind} is not fitted: {drawing[0]} is the same as another arm"
        raise IsodenseError(message, "leave out " + " and ".join(drawing))


def run_missing(runs: Sequence[Run]) -> None:
    """Run the experiments that have not been run from this commit, one after another.

    Raises
    ------
    IsodenseError
        If files that git tracks have changed, or an experiment fails.
    """
    from tqdm import tqdm

    from isodense.pipeline.stage import progress

    # Of this folder only: in a larger repository, what colleagues change elsewhere has no effect.
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", "--", ".")
    if changed:
        message = f"files have changed since the last commit:\n{changed}"
        hint = "commit them, or restore them with `git restore` and `dvc checkout`"
        raise IsodenseError(message, hint)
    finished = revisions()
    for run in tqdm(runs, unit="run", **progress()):
        if run.name in finished:
            continue
        changes = [word for setting in run.settings for word in ("-S", setting)]
        command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", run.name]
        done = subprocess.run([*command, *changes, "evaluate"], env=environ(), stdout=sys.stderr)
        if done.returncode:
            hint = "correct the error above; `isodense compare` again keeps finished runs"
            raise IsodenseError(f"experiment {run.name} failed", hint)


def revisions() -> dict[str, str]:
    """Return the commits of the experiments that started from this checkout's commit, by name."""
    from dvc.repo import Repo

    with Repo() as repo:
        return {name: sha for found in repo.experiments.ls().values() for name, sha in found}


def collect(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """Return the metrics of every run, with the judge's scores.

    Parameters
    ----------
    runs : sequence of Run
        Finished runs; the judge is the reward of the first.

    Returns
    -------
    dict
        A list of metrics for each arm, in the order of seeds.
    """
    import dvc.api

    shas = revisions()
    found: dict[str, list[dict[str, Any]]] = {run.arm: [] for run in runs}
    with tempfile.TemporaryDirectory() as folder:
        judge = _judge(shas[runs[0].name], Path(folder))
        for run in runs:
            sha = shas[run.name]
            files, inside = open_files(".", sha)
            text = files.read_text(f"{inside}/{COMPLETIONS.as_posix()}", encoding="utf-8")
            rows = [json.loads(line) for line in text.splitlines()]
            found[run.arm].append({**dvc.api.metrics_show(rev=sha), "judge": judge(rows)})
    return found


def _judge(sha: str, folder: Path) -> Callable[[list[dict[str, Any]]], dict[str, float]]:
    """Return a function that scores completions by the reward of the experiment `sha`."""
    import dvc.api

    from isodense.pipeline.runtime import resolve_device
    from isodense.prompts.reader import load_prompts
    from isodense.reward.scoring.load import load_reward

    files, inside = open_files(".", sha)
    fetched = {name: folder / name for name in ("reward", "policy", "prompts")}
    for name, target in fetched.items():
        files.get(f"{inside}/{ARTIFACTS[name].path.as_posix()}", str(target), recursive=True)
    prompts = load_prompts(fetched["prompts"]).split("heldout")
    by_id = {row["id"]: row for row in prompts.rows}
    device = resolve_device(dvc.api.params_show(rev=sha)["base"]["device"])
    reward = load_reward(fetched["reward"], fetched["policy"], device)

    return lambda rows: judged(rows, by_id, reward.score)


def judged(
    rows: Sequence[dict[str, Any]],
    by_id: Mapping[str, dict[str, Any]],
    score: Callable[[Sequence[dict[str, Any]], Sequence[str]], np.ndarray],
) -> dict[str, float]:
    """Return the mean score of the trained policy's completions, by density.

    Parameters
    ----------
    rows : sequence of dict
        Rows of ``reports/completions.jsonl``.
    by_id : mapping of str to dict
        Rows of prompts by id.
    score : callable
        The judge: ``(rows, completions) -> ndarray of shape (n,)``.

    Returns
    -------
    dict
        ``all``, ``sparse`` and ``crowded``: means over all prompts, over the third with the lowest
        and the third with the highest density.
    """
    asked = [by_id[row["id"]] for row in rows for _ in row["trained"]]
    scores = score(asked, [text for row in rows for text in row["trained"]])
    by_prompt = mean_known(np.asarray(scores, dtype=np.float64).reshape(len(rows), -1), axis=1)
    order = np.argsort([row["density"] for row in rows], kind="stable")
    third = max(1, len(rows) // 3)
    return {
        "all": float(mean_known(by_prompt)),
        "sparse": float(mean_known(by_prompt[order[:third]])),
        "crowded": float(mean_known(by_prompt[order[-third:]])),
    }


def compare(arms: Sequence[str], seeds: int, settings: Sequence[str], out: Path) -> list[Row]:
    """Run the experiments of a comparison that are missing, and write the results.

    Parameters
    ----------
    arms, seeds, settings
        See :func:`plan_runs`.
    out : Path
        Folder for ``table.md``, ``results.json`` and ``compare.png``.

    Returns
    -------
    list of Row
        See :func:`isodense.experiments.differences.tabulate`.

    Raises
    ------
    IsodenseError
        If the comparison makes no sense, or an experiment fails.
    """
    from dvc.exceptions import DvcException

    runs = plan_runs(arms, seeds, settings)
    require_different(arms, settings, Path("params.yaml"))
    run_missing(runs)
    try:
        rows = tabulate(collect(runs))
    except (DvcException, OSError) as error:
        hint = "if `dvc gc` has removed outputs: `dvc exp remove` the experiments, then again"
        raise IsodenseError(f"an experiment cannot be read: {error}", hint) from None
    with replacing(out / "table.md") as staging:
        staging.write_text(markdown(rows), encoding="utf-8")
    experiments = {run.name: list(run.settings) for run in runs}
    write_json(
        out / "results.json", {"experiments": experiments, "rows": [row.as_dict() for row in rows]}
    )
    with replacing(out / "compare.png") as staging:
        figure(rows, staging)
    return rows


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise IsodenseError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout.rstrip()


def environ() -> dict[str, str]:
    """Return the environment with this interpreter first on ``PATH``: stages call ``python``."""
    here = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([here, os.environ.get("PATH", "")])}
