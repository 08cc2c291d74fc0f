"""Prompts as TRL's trainer takes them: the plan as a data set, and a tokenizer that renders it.

TRL applies the chat template itself, and passes it the tools of the run, which are functions for it
to call and the same for all prompts. Here tools are schemas, of each prompt its own, and nothing is
called: they travel in the prompt's first message, from which the trainer's copy of the template
takes them. So a prompt has the tokens that :func:`isodense.models.inference.policy.prompt_tokens`
gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Json, Value

from isodense.models.inference.policy import load_tokenizer, with_row_tools
from isodense.prompts.conversations import Message

PLAIN = {"role", "content"}  # keys of a message without tools


def plan_dataset(rows: Sequence[dict[str, Any]]) -> Dataset:
    """Return the prompts of a plan as TRL's trainer takes them.

    Parameters
    ----------
    rows : sequence of dict
        Prompts (``id``, ``prompt``, where there are any ``tools``) in the order of the plan.

    Returns
    -------
    datasets.Dataset
        Columns ``prompt`` and ``prompt_id``.
    """
    columns = {
        "prompt": [with_tools(row["prompt"], row.get("tools")) for row in rows],
        "prompt_id": [row["id"] for row in rows],
    }
    if all(set(message) == PLAIN for prompt in columns["prompt"] for message in prompt):
        return Dataset.from_dict(columns)
    # As JSON, since a struct would give every message the keys of all, as null.
    return Dataset.from_dict(columns, Features({"prompt": Json(), "prompt_id": Value("string")}))


def with_tools(prompt: list[Message], tools: list[dict[str, Any]] | None) -> list[Any]:
    """Return the prompt with its tools in the first message."""
    return [{**prompt[0], "tools": tools}, *prompt[1:]] if tools else prompt


def without_tools(prompt: list[Any]) -> list[Message]:
    """Return the prompt as it was before :func:`with_tools`."""
    return [{name: part for name, part in message.items() if name != "tools"} for message in prompt]


def trainer_tokenizer(policy: str | Path) -> Any:
    """Return the policy's tokenizer as the trainer needs it: padded on the left, tools by row.

    Parameters
    ----------
    policy : str or Path
        The policy's folder.
    """
    tokenizer = load_tokenizer(policy)
    tokenizer.padding_side = "left"
    tokenizer.chat_template = with_row_tools(tokenizer.chat_template)
    return tokenizer
