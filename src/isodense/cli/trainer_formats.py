"""The rows that other code reads: a plain table's, verl's and OpenRLHF's.

A layout turns a stored prompt and what belongs to it (weight, density, number of the draw) into one
row. What the two trainers do with the columns, and which versions of them were read, is in
``docs/other-trainers.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

Row = dict[str, Any]
Format = Literal["prototype", "parquet", "jsonl", "verl", "openrlhf"]

FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES = {"verl": ".parquet", "openrlhf": ".jsonl"}  # they choose the reader by it


def table_row(prompt: Row, measures: Row, number: int) -> Row:
    """Return a row for TRL, ``datasets``, pandas or DuckDB.

    Parameters
    ----------
    prompt : dict
        A row of ``data/prompts``.
    measures : dict
        What else is known of the prompt, by column.
    number : int
        Number of the row in the file, from 0.

    Returns
    -------
    dict
        ``id, prompt, text, count`` and the measures.
    """
    row = {"id": prompt["id"], "prompt": _messages(prompt)}
    return row | {"text": prompt["text"], "count": prompt["count"]} | measures


def verl_row(prompt: Row, measures: Row, number: int) -> Row:
    """Return a row of verl's ``data.train_files``; parameters as in :func:`table_row`.

    Returns
    -------
    dict
        ``data_source`` (the first source that asked the prompt), ``prompt``, ``ability``,
        ``reward_model`` with the label as ``ground_truth`` (empty where there is none), and
        ``extra_info`` with ``index`` (`number`), ``split``, ``id``, ``count`` and the measures.
    """
    ours = {"index": number, "split": prompt["split"], "id": prompt["id"], "count": prompt["count"]}
    return {
        "data_source": _source(prompt),
        "prompt": _messages(prompt),
        "ability": "chat",
        "reward_model": {"style": "rule", "ground_truth": _label(prompt)},
        "extra_info": ours | measures,
    }


def openrlhf_row(prompt: Row, measures: Row, number: int) -> Row:
    """Return a row of OpenRLHF's prompt data set; parameters as in :func:`table_row`.

    Returns
    -------
    dict
        ``id, prompt, label`` (empty where there is none), ``datasource`` (the first source that
        asked the prompt), ``count`` and the measures.
    """
    row = {"id": prompt["id"], "prompt": _messages(prompt), "label": _label(prompt)}
    return row | {"datasource": _source(prompt), "count": prompt["count"]} | measures


LAYOUTS: dict[str, Callable[[Row, Row, int], Row]] = {  # of the formats that are one table
    "parquet": table_row,
    "jsonl": table_row,
    "verl": verl_row,
    "openrlhf": openrlhf_row,
}


def arrow_type(value: Any) -> Any:
    """Return the Arrow type of a value of a row: real numbers are float32, a dict is a struct."""
    import pyarrow as pa

    if isinstance(value, dict):
        return pa.struct([(name, arrow_type(part)) for name, part in value.items()])
    if isinstance(value, list):
        return pa.list_(arrow_type(value[0]))
    scalars = {int: pa.int64(), float: pa.float32(), str: pa.string()}
    return scalars.get(type(value)) or pa.list_(pa.float32())  # or a vector


def _messages(prompt: Row) -> list[Row]:
    return [{name: message[name] for name in ("role", "content")} for message in prompt["prompt"]]


def _label(prompt: Row) -> str:
    return prompt.get("label") or ""


def _source(prompt: Row) -> str:
    return str(next(iter(prompt["sources"])))
