"""The rows that other code reads: a plain table's, verl's and OpenRLHF's.

A layout turns a stored prompt and what belongs to it (weight, density, number of the draw) into one
row. Every column that the data came with is kept. What the two trainers do with the columns, and
which versions of them were run, is in ``docs/other-trainers.md``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from isodense.pipeline.errors import IsodenseError
from isodense.pipeline.tables import plain
from isodense.prompts.reader import OWN, PromptSet

Row = dict[str, Any]
Format = Literal["prototype", "parquet", "jsonl", "verl", "openrlhf"]

FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES = {"verl": ".parquet", "openrlhf": ".jsonl"}  # they choose the reader by it
# Columns that hold a ground truth by their name alone, in the order in which they are looked for.
KNOWN = ("ground_truth", "solution", "answer", "final_answer", "expected_answer")
VERL = ("data_source", "ability", "reward_model", "extra_info")  # verl's own columns
NESTED = "reward_model.ground_truth"


@dataclass
class Truth:
    """Where the ground truth of a prompt is, and what was met there.

    Attributes
    ----------
    column : str or None
        A column, or a key inside one as ``reward_model.ground_truth``; None where the data has
        none.
    met : Counter
        Prompts by what became of the value: ``missing``, ``written as text``, ``unwrapped``.
    """

    column: str | None
    met: Counter[str] = field(default_factory=Counter)

    def of(self, prompt: Row) -> Any:
        """Return the ground truth of a prompt, None where there is none."""
        value: Any = prompt
        for name in (self.column or "").split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def for_scorer(self, prompt: Row) -> Any:
        """Return the ground truth as scorers compare it: text, or what only a scorer can read.

        Text stays. Numbers and booleans become text, as they are compared with the text of an
        answer. A list of one is its element. Other lists and objects stay. Empty text stands for
        none.
        """
        value = self.of(prompt)
        if isinstance(value, list) and len(value) == 1:
            self.met["unwrapped"] += 1
            (value,) = value
        if value is None:
            self.met["missing"] += 1
            return ""
        if isinstance(value, str | list | dict):
            return value
        self.met["written as text"] += 1
        return _text(value)


def find_truth(prompts: PromptSet, column: str | None) -> Truth:
    """Return where the ground truth of the prompts is.

    Parameters
    ----------
    prompts : PromptSet
    column : str or None
        The column to use. None looks for verl's own, then for the names in `KNOWN`.

    Raises
    ------
    IsodenseError
        If no prompt has the column.
    """
    columns = prompts.columns
    if column is not None:
        truth = Truth(column)
        if all(truth.of(row) is None for row in prompts.rows):
            names = ", ".join([*columns, *(["label"] if prompts.labels else [])]) or "none"
            message = f"--ground-truth {column}: no prompt has that column"
            raise IsodenseError(message, f"columns of the data: {names}")
        return truth
    nested = Truth(NESTED)
    if "reward_model" in columns and any(nested.of(row) is not None for row in prompts.rows):
        return nested
    return Truth(next((name for name in KNOWN if name in columns), None))


@dataclass(frozen=True)
class Shape:
    """What a layout knows of all rows.

    Attributes
    ----------
    columns : tuple of str
        The columns that the data came with.
    labelled : bool
        Whether every prompt has a label.
    truth : Truth
    """

    columns: tuple[str, ...]
    labelled: bool
    truth: Truth


def table_row(prompt: Row, measures: Row, number: int, shape: Shape) -> Row:
    """Return a row for TRL, ``datasets``, pandas or DuckDB.

    Parameters
    ----------
    prompt : dict
        A row of ``data/prompts``.
    measures : dict
        What else is known of the prompt, by column.
    number : int
        Number of the row in the file, from 0.
    shape : Shape
        What all rows have.

    Returns
    -------
    dict
        ``id, prompt, text, count``, ``label`` where all prompts have one, the data's columns and
        the measures.
    """
    row = {name: prompt[name] for name in ("id", "prompt", "text", "count")}
    if shape.labelled:
        row["label"] = prompt["label"]
    return _beside(row | measures, _kept(prompt, shape.columns))


def verl_row(prompt: Row, measures: Row, number: int, shape: Shape) -> Row:
    """Return a row of verl's ``data.train_files``; parameters as in :func:`table_row`.

    Returns
    -------
    dict
        The prompt's own ``data_source``, ``ability``, ``reward_model`` and ``extra_info`` where it
        has them; else the first source that asked the prompt, its label (or ``chat``), and the
        ground truth (empty where there is none). ``extra_info`` also has ``index`` (`number`),
        ``split``, ``id``, ``count`` and the measures. The other columns of the data are beside
        verl's where the rows are verl's, else in ``extra_info``, where reward functions see them.
    """
    own = prompt.get("extra_info") or {}
    kept = _kept(prompt, [name for name in shape.columns if name not in VERL])
    ours = {"id": prompt["id"], "count": prompt["count"]} | measures
    first = {"index": number, "split": prompt["split"]}
    beside = "reward_model" in shape.columns
    row = {
        "data_source": prompt.get("data_source") or _source(prompt),
        "prompt": prompt["prompt"],
        "ability": prompt.get("ability") or prompt.get("label") or "chat",
        "reward_model": _reward_model(prompt, shape.truth),
        "extra_info": _beside(ours, first | own | ({} if beside else kept)),
    }
    return _beside(row, kept) if beside else row


def _reward_model(prompt: Row, truth: Truth) -> Row:
    """Return the prompt's own, whose ground truth is as it was, or a new one."""
    own = prompt.get("reward_model")
    if isinstance(own, dict) and truth.column == NESTED:
        if own.get("ground_truth") is None:
            truth.met["missing"] += 1
        return {"style": "rule", **own}
    return {"style": "rule", **(own or {}), "ground_truth": truth.for_scorer(prompt)}


def openrlhf_row(prompt: Row, measures: Row, number: int, shape: Shape) -> Row:
    """Return a row of OpenRLHF's prompt data set; parameters as in :func:`table_row`.

    Returns
    -------
    dict
        ``id, prompt``, ``label``, which is what OpenRLHF calls the ground truth, as text (empty
        where there is none), ``datasource`` (the data's own ``data_source`` or the first source
        that asked the prompt), ``kind`` (our label, where all prompts have one), ``count``, the
        measures and the data's columns.
    """
    value = shape.truth.for_scorer(prompt)
    if not isinstance(value, str):
        shape.truth.met["written as JSON text"] += 1
        value = json.dumps(plain(value), ensure_ascii=False)
    source = prompt.get("data_source") or _source(prompt)
    row = {"id": prompt["id"], "prompt": prompt["prompt"], "label": value, "datasource": source}
    if shape.labelled:
        row["kind"] = prompt["label"]
    return _beside(row | {"count": prompt["count"]} | measures, _kept(prompt, shape.columns))


LAYOUTS: dict[str, Callable[[Row, Row, int, Shape], Row]] = {  # of the formats that are one table
    "parquet": table_row,
    "jsonl": table_row,
    "verl": verl_row,
    "openrlhf": openrlhf_row,
}


def _kept(prompt: Row, columns: Sequence[str]) -> Row:
    return {name: prompt.get(name) for name in columns if name not in OWN}


def _beside(ours: Row, theirs: Row) -> Row:
    """Return both, ours first; a column of theirs with a name of ours gets a low line behind it."""
    return ours | {f"{name}_" if name in ours else name: part for name, part in theirs.items()}


def _text(value: Any) -> str:
    """Return a number or time as text, a whole number without a point.

    Examples
    --------
    >>> _text(72.0), _text(0.5), _text(True)
    ('72', '0.5', 'true')
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    made = plain(value)
    return made if isinstance(made, str) else json.dumps(made)


def _source(prompt: Row) -> str:
    return str(next(iter(prompt["sources"])))
