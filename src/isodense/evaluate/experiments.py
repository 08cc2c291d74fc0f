"""One line per experiment: what it changed, and the numbers that belong to it.

``dvc exp show`` has them all. Two things are added here. Only the columns that a comparison of
weights needs are shown. And a number is shown only where its stage belongs to the experiment: after
``dvc exp run -S density.k=10 density`` the metrics of training are still those of the parent
commit, so they are left out until training has run.

A stage belongs to a revision if what ``dvc.lock`` records for it is what that revision holds: its
command, its params, its code, and the outputs of stages that belong to the revision themselves.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.terminal import printable, rendered
from isodense.pipeline.terminal import table as aligned

Value = str | int | float | bool | list[Any] | None
Read = Callable[[str], bytes | None]  # a file of a revision, or None where it has none

MISSING = "–"
WORKSPACE = "workspace"
ATTEMPTS = 4  # at `dvc exp show`, which fails while a queued experiment is being put away
PARAMS = {"k": "density.k", "ess": "density.ess", "sampling": "train.sampling"}  # always shown
LEFT = ("experiment", "sampling", "state")  # columns that are flush left


@dataclass(frozen=True)
class Measure:
    """A column of numbers.

    Attributes
    ----------
    heading : str
    path : str
        Keys of the metric, joined by dots.
    digits : int
        After the decimal point.
    interval : bool
        Whether ``<path>_low`` and ``<path>_high`` bound it.
    """

    heading: str
    path: str
    digits: int
    interval: bool = False


MEASURES = (
    Measure("ESS", "density.ess", 0),
    Measure("exponent", "density.exponent", 2),
    Measure("accuracy", "reward.heldout.accuracy", 3),
    Measure("reward", "eval.trained.reward", 2, interval=True),
    Measure("gain", "eval.gain.reward", 2, interval=True),
    Measure("distinct-2", "eval.trained.distinct_2", 3),
    Measure("Vendi", "eval.trained.vendi", 1),
)


@dataclass(frozen=True)
class Experiment:
    """One revision.

    Attributes
    ----------
    name : str
        Name of the experiment, branch or tag; a short hash; or ``workspace``.
    rev : str
        Hash of the commit, or ``workspace``.
    baseline : str
        Name of the commit that it hangs on; its own where it is that commit.
    state : str
        ``queued``, ``running`` or ``failed``; empty for what is there.
    params : dict
        By dotted name.
    metrics : dict
        By dotted name, of the stages that belong to the revision.
    """

    name: str
    rev: str
    baseline: str
    state: str = ""
    params: dict[str, Value] = field(default_factory=dict)
    metrics: dict[str, Value] = field(default_factory=dict)


def experiments(num: int = 1, all_commits: bool = False) -> list[Experiment]:
    """Return the experiments of this checkout's last commits, each after the commit it hangs on.

    Parameters
    ----------
    num : int
        Commits.
    all_commits : bool
        Experiments of every commit instead.

    Returns
    -------
    list of Experiment
        The workspace first, if it differs from the last commit.

    Raises
    ------
    IsodenseError
        If this is not a DVC project, or DVC cannot read it.
    """
    if not Path("dvc.yaml").is_file():
        message = "there is no dvc.yaml here"
        raise IsodenseError(message, "run `isodense experiments` in the project's folder")
    shown = _exp_show(["--all-commits"] if all_commits else ["--num", str(num)])
    files = _Files()
    rows: list[Experiment] = []
    for commit in shown:
        name = _name(commit)
        rows.append(_experiment(commit, name, name, "", files))
        for found in commit["experiments"] or []:
            state = (found["executor"] or {}).get("state", "")
            entry = found["revs"][0]
            rows.append(_experiment(entry, found["name"] or _name(entry), name, state, files))
    if len(rows) > 1 and (rows[0].params, rows[0].metrics) == (rows[1].params, rows[1].metrics):
        return rows[1:]
    return rows


def _experiment(
    entry: dict[str, Any], name: str, baseline: str, state: str, files: _Files
) -> Experiment:
    state = "" if state == "success" else state
    if entry["error"] or not entry["data"]:
        return Experiment(name, entry["rev"], baseline, state or "unreadable")
    params = _merged(entry["data"]["params"])
    if state:  # its metrics would be those of the commit it started from
        return Experiment(name, entry["rev"], baseline, state, params)
    stale = stale_outputs(files.of(entry["rev"]))
    kept = {path: text for path, text in entry["data"]["metrics"].items() if path not in stale}
    return Experiment(name, entry["rev"], baseline, state, params, _merged(kept))


def _exp_show(options: Sequence[str]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", *options]
    for attempt in range(ATTEMPTS):
        done = subprocess.run(command, capture_output=True, text=True)
        if not done.returncode:
            return list(json.loads(done.stdout))
        if "does not exist" not in done.stderr:
            break
        time.sleep(attempt / 2)
    hint = "do what it says; `dvc exp show` says it, too"
    raise IsodenseError(f"`dvc exp show` failed: {done.stderr.strip()}", hint)


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"] or (entry["rev"] if entry["rev"] == WORKSPACE else entry["rev"][:7]))


def _merged(files: Mapping[str, Any]) -> dict[str, Value]:
    """Return the leaves of all files by dotted name."""
    leaves: dict[str, Value] = {}
    for file in files.values():
        found = _leaves_and_branches(file.get("data") or {}, "")
        leaves |= {name: value for name, value in found if not isinstance(value, Mapping)}
    return leaves


class _Files:
    """Files of the workspace and of commits."""

    def __init__(self) -> None:
        from dvc.scm import Git

        self.git = Git(".", search_parent_directories=True)
        self.folder = Path.cwd().resolve().relative_to(Path(self.git.root_dir).resolve())

    def of(self, rev: str) -> Read:
        """Return what reads files of a revision by their path in the project."""
        if rev == WORKSPACE:
            return lambda path: Path(path).read_bytes() if Path(path).is_file() else None
        files = self.git.get_fs(rev)

        def read(path: str) -> bytes | None:
            place = str(self.folder / path)
            return bytes(files.cat_file(place)) if files.isfile(place) else None

        return read


def stale_outputs(read: Read) -> set[str]:
    """Return the outputs and metrics, by path, of the stages that do not belong to a revision.

    Parameters
    ----------
    read : callable
        ``(path) -> bytes or None``: the revision's ``dvc.yaml``, ``dvc.lock``, params and code.

    Returns
    -------
    set of str
        What was made from something else than the revision holds, or has never been made.
    """
    stages = _yaml(read, "dvc.yaml").get("stages", {})
    locked = _yaml(read, "dvc.lock").get("stages", {})
    maker = {path: name for name, stage in stages.items() for path in _outputs(stage)}
    belongs: dict[str, bool] = {}

    def current(name: str) -> bool:
        if name not in belongs:
            lock = locked.get(name)
            upstream = {maker[dep] for dep in _paths(stages[name], "deps") if dep in maker}
            belongs[name] = (
                lock is not None
                and lock["cmd"] == stages[name]["cmd"]
                and all(current(other) for other in upstream)
                and _same_deps(stages[name], lock, locked, maker, read)
                and _same_params(stages[name], lock, read)
            )
        return belongs[name]

    return {path for path, name in maker.items() if not current(name)}


def outdated_outputs(lock: Path) -> set[str]:
    """Return the outputs of stages that last ran on other outputs than those there are now.

    Parameters
    ----------
    lock : Path
        ``dvc.lock``; where there is none, nothing is outdated.

    Returns
    -------
    set of str
        Paths of the outputs. Params and code are not looked at: what is there was made from one
        another.
    """
    locked = _parsed(lock.read_bytes())["stages"] if lock.is_file() else {}
    made = {out["path"]: (name, out.get("md5")) for name in locked for out in _outs(locked[name])}

    @functools.cache
    def current(name: str) -> bool:
        used = [dep for dep in locked[name].get("deps", []) if dep["path"] in made]
        return all(
            made[dep["path"]][1] == dep.get("md5") and current(made[dep["path"]][0]) for dep in used
        )

    return {path for path, (name, _) in made.items() if not current(name)}


def _outs(lock: Mapping[str, Any]) -> list[dict[str, Any]]:
    return lock.get("outs", [])


def _same_deps(
    stage: Mapping[str, Any],
    lock: Mapping[str, Any],
    locked: Mapping[str, Any],
    maker: Mapping[str, str],
    read: Read,
) -> bool:
    """Return whether a stage ran on the code and the outputs that the revision holds."""
    used = {dep["path"]: dep.get("md5") for dep in lock.get("deps", [])}
    if set(used) != set(_paths(stage, "deps")):
        return False
    for path, md5 in used.items():
        if path in maker:
            made = {out["path"]: out.get("md5") for out in _outs(locked[maker[path]])}
            if made.get(path) != md5:
                return False
            continue
        content = read(path)  # neither an output nor in git: cannot be told
        if content is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            return False
    return True


def _same_params(stage: Mapping[str, Any], lock: Mapping[str, Any], read: Read) -> bool:
    used = lock.get("params", {}).get("params.yaml", {})
    tree = dict(_leaves_and_branches(_yaml(read, "params.yaml"), ""))
    return set(used) == set(stage.get("params", [])) and all(
        key in tree and tree[key] == value for key, value in used.items()
    )


def _leaves_and_branches(tree: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from _leaves_and_branches(value, f"{prefix}{key}.")


def _yaml(read: Read, path: str) -> dict[str, Any]:
    content = read(path)
    return _parsed(content) if content else {}


@functools.lru_cache(maxsize=256)
def _parsed(content: bytes) -> dict[str, Any]:
    """Read YAML as DVC does, by version 1.2 of it, in which 1e-05 is a number."""
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(content) or {}


def _paths(stage: Mapping[str, Any], kind: str) -> list[str]:
    return [item if isinstance(item, str) else next(iter(item)) for item in stage.get(kind, [])]


def _outputs(stage: Mapping[str, Any]) -> list[str]:
    return [path for kind in ("outs", "metrics", "plots") for path in _paths(stage, kind)]


def changed_params(rows: Sequence[Experiment]) -> list[str]:
    """Return the params, other than those always shown, that differ among experiments."""
    names = sorted({name for row in rows for name in row.params} - set(PARAMS.values()))
    return [name for name in names if len({json.dumps(row.params.get(name)) for row in rows}) > 1]


def columns(rows: Sequence[Experiment]) -> list[str]:
    """Return the headings that :func:`ordered` knows and :func:`table` shows."""
    states = ["state"] if any(row.state for row in rows) else []
    measures = [measure.heading for measure in MEASURES]
    return ["experiment", *PARAMS, *changed_params(rows), *measures, *states]


def value(row: Experiment, heading: str) -> Value:
    """Return what an experiment has in a column; None where it has nothing."""
    if heading in ("experiment", "state"):
        return row.name if heading == "experiment" else row.state
    for measure in MEASURES:
        if heading == measure.heading:
            return row.metrics.get(measure.path)
    return row.params.get(PARAMS.get(heading, heading))


def ordered(rows: Sequence[Experiment], heading: str, reverse: bool = False) -> list[Experiment]:
    """Return experiments by a column: the largest number first, names from a to z.

    Parameters
    ----------
    rows : sequence of Experiment
    heading : str
        One of :func:`columns`.
    reverse : bool
        The other way round. What has nothing in the column comes last either way.

    Raises
    ------
    IsodenseError
        If there is no such column.
    """
    if heading not in columns(rows):
        raise IsodenseError(f"no column {heading!r}", f"name one of {', '.join(columns(rows))}")
    there = [row for row in rows if value(row, heading) is not None]
    absent = [row for row in rows if value(row, heading) is None]
    numbers = [value(row, heading) for row in there]
    if all(isinstance(number, int | float) for number in numbers):
        there.sort(key=lambda row: value(row, heading), reverse=not reverse)  # type: ignore[arg-type, return-value]
    else:
        there.sort(key=lambda row: str(value(row, heading)), reverse=reverse)
    return there + absent


def table(rows: Sequence[Experiment], markdown: bool = False) -> str:
    """Return the experiments as aligned text, or as a Markdown table."""
    headings = columns(rows)
    cells = [[_cell(row, heading) for heading in headings] for row in rows]
    if markdown:
        rule = ["---" if heading in LEFT else "---:" for heading in headings]
        escaped = [[cell.replace("|", "\\|") for cell in line] for line in (headings, rule, *cells)]
        return "".join(f"| {' | '.join(line)} |\n" for line in escaped)
    return rendered(aligned(headings, cells, LEFT))


def _cell(row: Experiment, heading: str) -> str:
    """Return a value as text; one with an interval, which is symmetric, as value ± half width."""
    found = value(row, heading)
    measure = next((measure for measure in MEASURES if measure.heading == heading), None)
    if found is None:
        return MISSING
    if measure is None:
        return printable(found) if isinstance(found, str) else json.dumps(found)
    text = f"{found:.{measure.digits}f}".replace("-", "−")
    bounds = [row.metrics.get(f"{measure.path}_{end}") for end in ("low", "high")]
    if measure.interval and all(isinstance(bound, int | float) for bound in bounds):
        half = (float(bounds[1]) - float(bounds[0])) / 2  # type: ignore[arg-type]
        text += f" ±{half:.{measure.digits}f}"
    return text


def as_csv(rows: Sequence[Experiment]) -> str:
    """Return the experiments as CSV: all digits, empty where none.

    Columns are ``params.<name>`` and ``metrics.<name>``: ``density.ess`` is the one and the other.
    """
    params = [*PARAMS.values(), *changed_params(rows)]
    metrics = list(_metric_paths())
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = [f"params.{name}" for name in params] + [f"metrics.{name}" for name in metrics]
    writer.writerow(["experiment", "rev", "baseline", "state", *names])
    for row in rows:
        values = [row.params.get(name) for name in params]
        values += [row.metrics.get(name) for name in metrics]
        writer.writerow([row.name, row.rev, row.baseline, row.state, *values])
    return stream.getvalue()


def as_json(rows: Sequence[Experiment]) -> str:
    """Return the experiments as a JSON list, with the params and metrics that the table shows."""
    params = [*PARAMS.values(), *changed_params(rows)]
    shown = [
        {
            "experiment": row.name,
            "rev": row.rev,
            "baseline": row.baseline,
            "state": row.state,
            "params": {name: row.params.get(name) for name in params},
            "metrics": {name: row.metrics.get(name) for name in _metric_paths()},
        }
        for row in rows
    ]
    return json.dumps(shown, indent=2, ensure_ascii=False) + "\n"


def _metric_paths() -> Iterable[str]:
    for measure in MEASURES:
        yield measure.path
        if measure.interval:
            yield from (f"{measure.path}_low", f"{measure.path}_high")
