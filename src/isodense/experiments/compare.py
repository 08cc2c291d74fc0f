"""Does sampling by density help? Arms × seeds as DVC experiments, at the same rollout budget.

An arm says how the reward and the training draw prompts: by density, uniformly over distinct
prompts, in proportion to occurrences, or by other means to compare with. Each arm runs with each
seed of draws and completions, from the same commit, and ``dvc exp show`` lists the runs. Finished
runs are not run again.

Seeds are the unit of replication: intervals are 95% t intervals over seeds, of the difference to
the first arm paired by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from isodense.experiments.differences import Row, markdown, tabulate
from isodense.experiments.figure import figure
from isodense.experiments.judge import collect
from isodense.experiments.measures import deciding, note
from isodense.experiments.plan import plan_runs, require_different
from isodense.experiments.running import head, require_unchanged, revisions, run_missing
from isodense.pipeline.artifact import replacing, write_json
from isodense.pipeline.errors import IsodenseError


def compare(
    arms: Sequence[str],
    seeds: int,
    settings: Sequence[str],
    out: Path,
    jobs: int = 1,
    measure: str | None = None,
) -> list[Row]:
    """Run the experiments of a comparison that are missing, and write the results.

    Parameters
    ----------
    arms, seeds, settings
        See :func:`isodense.experiments.plan.plan_runs`.
    out : Path
        Folder for ``plan.json``, ``table.md``, ``results.json`` and ``compare.png``.
    jobs : int
        Experiments at once.
    measure : str, optional
        The measure that decides; see :func:`isodense.experiments.measures.deciding`.

    Returns
    -------
    list of Row
        See :func:`isodense.experiments.differences.tabulate`.

    Raises
    ------
    IsodenseError
        If the comparison makes no sense, or an experiment fails.
    """
    import yaml
    from dvc.exceptions import DvcException

    runs = plan_runs(arms, seeds, settings)
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    require_different(arms, params, settings)
    decide = deciding(measure, params, settings)
    require_unchanged(out)
    commit = head()  # the checkout may have moved on when the last run ends
    note(decide, runs, out / "plan.json")
    run_missing(runs, commit, jobs)
    try:
        rows = tabulate(collect(runs, revisions(commit)), decide)
    except (DvcException, OSError, ValueError) as error:
        hint = "if `dvc gc` has removed outputs: `dvc exp remove` the experiments, then again"
        raise IsodenseError(f"an experiment cannot be read: {error}", hint) from None
    with replacing(out / "table.md") as staging:
        staging.write_text(markdown(rows), encoding="utf-8")
    results = {
        "measure": rows[0].measure,
        "arms": list(arms),
        "seeds": seeds,
        "settings": list(settings),
        "experiments": {run.name: list(run.settings) for run in runs},
        "rows": [row.as_dict() for row in rows],
    }
    write_json(out / "results.json", results)
    with replacing(out / "compare.png") as staging:
        figure(rows, staging)
    return rows
