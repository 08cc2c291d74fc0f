"""A table of experiments: the params they changed, and their metrics.

Compared with ``dvc exp show``, only the columns that a comparison of weights needs are shown, and a
metric is left out where its stage is not up to date (:mod:`isodense.experiments.lockfile`): after
``dvc exp run -S density.k=10 density`` the metrics of training are still those of the parent
commit until training has run.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from isodense.experiments.lockfile import Revision, nested_items, stale_outputs
from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.terminal import printable, rendered
from isodense.pipeline.terminal import table as aligned

Value = str | int | float | bool | list[Any] | None

MISSING = "–"
WORKSPACE = "workspace"
ATTEMPTS = 4  # at `dvc exp show`, which fails while a queued experiment is being stored
PARAMS = {"k": "density.k", "ess": "density.ess", "sampling": "train.sampling"}  # always shown
LEFT = ("experiment", "sampling", "state")  # columns aligned to the left


@dataclass(frozen=True)
class Measure:
    """A column with a metric.

    Attributes
    ----------
    heading : str
        Heading of the column.
    path : str
        Keys of the metric, joined by dots.
    digits : int
        Digits after the decimal point.
    interval : bool
        Whether the metrics ``<path>_low`` and ``<path>_high`` are the ends of an interval.
    optional : bool
        Whether the column is left out where no experiment has the metric.
    """

    heading: str
    path: str
    digits: int
    interval: bool = False
    optional: bool = False


MEASURES = (
    Measure("ESS", "density.ess", 0),
    Measure("exponent", "density.exponent", 2),
    Measure("accuracy", "reward.heldout.accuracy", 3),
    Measure("solvable", "reward.sampled.sometimes_solved", 2, optional=True),
    Measure("reward", "eval.trained.reward", 2, interval=True),
    Measure("gain", "eval.gain.reward", 2, interval=True),
    Measure("pass@1", "eval.trained.pass_at_1", 3, interval=True, optional=True),
    Measure("pass@1 gain", "eval.gain.pass_at_1", 3, interval=True, optional=True),
    Measure("P(answer)", "eval.trained.answer_probability", 3, interval=True, optional=True),
    *(
        Measure(f"{name} by label", f"eval.trained.{path}_over_labels", digits, True, True)
        for name, path, digits in (
            ("reward", "reward", 2),
            ("pass@1", "pass_at_1", 3),
            ("P(answer)", "answer_probability", 3),
        )
    ),
    Measure("distinct-2", "eval.trained.distinct_2", 3),
    Measure("Vendi", "eval.trained.vendi", 1),
)


@dataclass(frozen=True)
class Experiment:
    """One revision.

    Attributes
    ----------
    name : str
        Name of the experiment, branch or tag, a short hash, or ``workspace``.
    rev : str
        Hash of the commit, or ``workspace``.
    baseline : str
        Name of the commit that the experiment started from; equal to `name` for a commit.
    state : str
        ``queued``, ``running``, ``failed`` or ``unreadable``; empty if finished.
    params : dict
        Params by dotted name.
    metrics : dict
        Metrics by dotted name, of the stages that are up to date.
    """

    name: str
    rev: str
    baseline: str
    state: str = ""
    params: dict[str, Value] = field(default_factory=dict)
    metrics: dict[str, Value] = field(default_factory=dict)


def experiments(num: int = 1, all_commits: bool = False) -> list[Experiment]:
    """Return the experiments of this checkout's last commits, each after its baseline commit.

    Parameters
    ----------
    num : int
        Number of commits.
    all_commits : bool
        Whether to return the experiments of every commit instead.

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
    if state:  # an unfinished experiment still has the metrics of its baseline
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
    hint = "do what the message says; `dvc exp show` prints it, too"
    raise IsodenseError(f"`dvc exp show` failed: {done.stderr.strip()}", hint)


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"] or (entry["rev"] if entry["rev"] == WORKSPACE else entry["rev"][:7]))


def _merged(files: Mapping[str, Any]) -> dict[str, Value]:
    """Return the leaves of all files by dotted name."""
    leaves: dict[str, Value] = {}
    for file in files.values():
        found = nested_items(file.get("data") or {}, "")
        leaves |= {name: value for name, value in found if not isinstance(value, Mapping)}
    return leaves


class _Files:
    """Files of the workspace and of commits, read without a checkout."""

    def __init__(self) -> None:
        from dvc.scm import Git

        self.git = Git(".", search_parent_directories=True)
        self.folder = Path.cwd().resolve().relative_to(Path(self.git.root_dir).resolve())

    def of(self, rev: str) -> Revision:
        """Return the files of a revision, by their paths in the project."""
        if rev == WORKSPACE:
            return Revision(_read_here, _files_here)
        files = self.git.get_fs(rev)

        def read(path: str) -> bytes | None:
            place = str(self.folder / path)
            return bytes(files.cat_file(place)) if files.isfile(place) else None

        def listed(path: str) -> Iterator[str]:
            place = str(self.folder / path)
            return (str(PurePosixPath(found).relative_to(place)) for found in files.find(place))

        return Revision(read, listed)


def _read_here(path: str) -> bytes | None:
    return Path(path).read_bytes() if Path(path).is_file() else None


def _files_here(path: str) -> Iterator[str]:
    files = (file for file in Path(path).rglob("*") if file.is_file())
    return (file.relative_to(path).as_posix() for file in files)


def changed_params(rows: Sequence[Experiment]) -> list[str]:
    """Return the names of the params, beyond `PARAMS`, that differ among experiments."""
    names = sorted({name for row in rows for name in row.params} - set(PARAMS.values()))
    return [name for name in names if len({json.dumps(row.params.get(name)) for row in rows}) > 1]


def columns(rows: Sequence[Experiment]) -> list[str]:
    """Return the headings of the table, by which :func:`ordered` can sort."""
    states = ["state"] if any(row.state for row in rows) else []
    measures = [
        measure.heading
        for measure in MEASURES
        if not measure.optional or any(measure.path in row.metrics for row in rows)
    ]
    return ["experiment", *PARAMS, *changed_params(rows), *measures, *states]


def value(row: Experiment, heading: str) -> Value:
    """Return the value of an experiment in a column, None if missing."""
    if heading in ("experiment", "state"):
        return row.name if heading == "experiment" else row.state
    for measure in MEASURES:
        if heading == measure.heading:
            return row.metrics.get(measure.path)
    return row.params.get(PARAMS.get(heading, heading))


def ordered(rows: Sequence[Experiment], heading: str, reverse: bool = False) -> list[Experiment]:
    """Return experiments sorted by a column: numbers descending, names ascending.

    Parameters
    ----------
    rows : sequence of Experiment
        The experiments.
    heading : str
        One of :func:`columns`.
    reverse : bool
        Whether to reverse the order. Experiments without a value come last either way.

    Raises
    ------
    IsodenseError
        If there is no such column.
    """
    if heading not in columns(rows):
        raise IsodenseError(f"no column {heading!r}", f"name one of {', '.join(columns(rows))}")
    present = [row for row in rows if value(row, heading) is not None]
    missing = [row for row in rows if value(row, heading) is None]
    if all(isinstance(value(row, heading), int | float) for row in present):
        present.sort(key=lambda row: value(row, heading), reverse=not reverse)  # type: ignore[arg-type, return-value]
    else:
        present.sort(key=lambda row: str(value(row, heading)), reverse=reverse)
    return present + missing


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
    """Return a value as text; with a (symmetric) interval, as value ± half width."""
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
    """Return the experiments as CSV, with all digits; missing values are empty.

    Columns are named ``params.<name>`` and ``metrics.<name>``, since ``density.ess``, say, names
    both a param and a metric.
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


def _metric_paths() -> Iterator[str]:
    for measure in MEASURES:
        yield measure.path
        if measure.interval:
            yield from (f"{measure.path}_low", f"{measure.path}_high")
