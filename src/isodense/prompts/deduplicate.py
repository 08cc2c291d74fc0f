"""Exact deduplication: from pairs to unique prompts, in order of first appearance.

Two prompts are duplicates if their canonical conversations are equal
(:mod:`isodense.prompts.conversations`). A unique prompt keeps the number of occurrences
(``count``) and their sources. The stored conversation is that of the first occurrence, with white
space unchanged; ``text`` is what the encoder embeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.artifact import publishing, write_manifest
from isodense.pipeline.errors import DataError
from isodense.pipeline.jsonl import write_jsonl
from isodense.pipeline.params import as_dict
from isodense.prompts.conversations import encoder_text, is_heldout, prompt_id
from isodense.prompts.params import PromptsParams
from isodense.prompts.reader import FILE, PromptSet


def unique_prompts(pairs: Iterable[dict[str, Any]], heldout: float) -> PromptSet:
    """Return the unique prompts of `pairs`; prompts without text are skipped.

    Parameters
    ----------
    pairs : iterable of dict
        Rows of ``data/examples``.
    heldout : float
        Share of prompts held out, in [0, 1).

    Returns
    -------
    PromptSet
        Prompts in order of first appearance. A prompt with several labels keeps the first.
    """
    rows: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        identifier = prompt_id(pair["prompt"])
        if identifier not in rows:
            text = encoder_text(pair["prompt"])
            if not text:
                continue
            rows[identifier] = {
                "id": identifier,
                "prompt": pair["prompt"],
                "text": text,
                "count": 0,
                "sources": {},
                "split": "heldout" if is_heldout(identifier, heldout) else "train",
            }
        row = rows[identifier]
        if pair.get("label"):
            row.setdefault("label", pair["label"])
        row["count"] += 1
        row["sources"][pair["source"]] = row["sources"].get(pair["source"], 0) + 1
    return PromptSet(list(rows.values()))


def statistics(prompts: PromptSet) -> dict[str, Any]:
    """Return the metrics of the stage: counts of prompts and pairs, lengths, sources."""
    counts = np.array([row["count"] for row in prompts.rows])
    chars = np.array([len(row["text"]) for row in prompts.rows])
    sources = Counter[str]()
    for row in prompts.rows:
        sources.update(row["sources"])
    labels = {row["label"] for row in prompts.rows if "label" in row}
    return {
        "unique": len(prompts),
        "pairs": int(counts.sum()),
        "repeated_share": round(float(1 - len(prompts) / counts.sum()), 6),
        "largest_count": int(counts.max()),
        "train": len(prompts.positions("train")),
        "heldout": len(prompts.positions("heldout")),
        "multi_turn": sum(len(row["prompt"]) > 1 for row in prompts.rows),
        "labels": len(labels),
        "chars_median": int(np.median(chars)),
        "chars_p95": int(np.percentile(chars, 95)),
        "chars_max": int(chars.max()),
        "pairs_by_source": dict(sorted(sources.items())),
    }


def publish(
    pairs: Iterable[dict[str, Any]], params: PromptsParams, examples_sha256: str, out: Path
) -> dict[str, Any]:
    """Write ``data/prompts`` and return its statistics.

    Parameters
    ----------
    pairs : iterable of dict
        Rows of ``data/examples``.
    params : PromptsParams
        The stage's section.
    examples_sha256 : str
        SHA-256 of the pairs' manifest.
    out : Path
        The artifact's folder.

    Raises
    ------
    DataError
        If there is no valid prompt, or all prompts are held out.
    """
    prompts = unique_prompts(pairs, params.heldout)
    hint = "check download.sources and run `dvc repro download`"
    if not prompts:
        raise DataError("no valid prompts found", "data/examples", hint=hint)
    if not prompts.positions("train"):
        message = f"all {len(prompts)} prompts are held out"
        raise DataError(message, "data/prompts", hint="lower prompts.heldout, or add prompts")
    with publishing(out) as folder:
        write(prompts, as_dict(params), examples_sha256, folder)
    return statistics(prompts)


def write(
    prompts: PromptSet, params: dict[str, Any], examples_sha256: str | None, folder: Path
) -> dict[str, Any]:
    """Write the files of a prompts artifact into an empty folder and return the manifest."""
    write_jsonl(folder / FILE, prompts.rows)
    return write_manifest(
        folder,
        "prompts",
        rows=len(prompts),
        ids_sha256=prompts.ids_sha256,
        train_ids_sha256=prompts.split("train").ids_sha256,
        params=params,
        inputs={"pairs": examples_sha256},
    )
