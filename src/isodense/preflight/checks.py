"""Checks of prompts and params against each other and against what the policy reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isodense.density.kinds import balance_kinds, load_kinds
from isodense.models.inference.policy import context_length, load_tokenizer, prompt_tokens
from isodense.pipeline.errors import IsodenseError, ModelError
from isodense.preflight.inputs import Inputs
from isodense.prompts.reader import are_kinds
from isodense.sampling.schemes import BY_DIFFICULTY

FEWEST = 0.05  # share of prompts that must fit, below which the plan of a run fails
OFTEN = 0.05  # share of prompts that do not fit above which there is a warning
FITTED = ("head", "full")  # kinds of reward that are fitted on pairs


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes
    ----------
    level : {"warning", "problem"}
        Whether the stage goes on all the same, or cannot.
    stage : str
        The stage that meets it.
    text : str
    hint : str
        What to do.
    """

    level: Literal["warning", "problem"]
    stage: str
    text: str
    hint: str = ""


def examine(inputs: Inputs) -> Iterator[Finding]:
    """Yield the findings of all checks."""
    for check in (
        check_pairs,
        check_columns,
        check_difficulty,
        check_labels,
        check_kinds,
        check_heldout,
        check_answer,
    ):
        yield from check(inputs)
    if not (inputs.policy / "manifest.json").is_file():
        text = f"{inputs.policy} is not here, so that its context and template were not looked at"
        yield Finding("warning", "train", text, "run `dvc repro models`, or `dvc pull models`")
        return
    context = context_length(inputs.policy)
    if context is not None:
        yield from check_context(inputs, context)
    tokenizer = load_tokenizer(inputs.policy)
    refused = list(check_template(inputs, tokenizer))
    yield from refused
    if not any(finding.level == "problem" for finding in refused):
        yield from check_lengths(inputs, tokenizer, context)


def check_pairs(inputs: Inputs) -> Iterator[Finding]:
    """Whether a reward that is fitted on pairs has any.

    No problem: whoever has prompts alone begins with their weights, and the stage says it again
    before it computes anything.
    """
    kind = inputs.reward.kind
    if kind in FITTED and not inputs.pairs:
        text = f"reward.kind {kind} needs preference pairs, this data has none"
        hint = "weights need no reward (`dvc repro density`); to train, set function or model"
        yield Finding("warning", "reward", text, hint)


def check_columns(inputs: Inputs) -> Iterator[Finding]:
    """Whether the data has the columns that reward functions take."""
    functions = getattr(inputs.reward, "functions", None)
    if inputs.reward.kind != "function" or not functions:
        return
    from isodense.reward.scoring.functions import find_functions, lacking

    try:
        found = find_functions(functions)
        for line in lacking(found, inputs.columns):
            yield Finding("problem", "reward", line)
        for name in (name for name in inputs.columns if inputs.nulls.get(name)):
            takers = ", ".join(one.label for one in found if one.names(name))
            if takers:
                text = f"{inputs.nulls[name]} of {inputs.count} prompts have no {name}"
                hint = f"{takers} gets None for these: let it return None (no opinion) there"
                yield Finding("warning", "reward", text, hint)
    except IsodenseError as error:
        yield Finding("problem", "reward", error.message, error.hint)


def check_difficulty(inputs: Inputs) -> Iterator[Finding]:
    """Whether draws by difficulty have one, and the stage something to take it from."""
    section, sampling = inputs.difficulty, inputs.train.sampling
    if sampling in BY_DIFFICULTY and not section.completions:
        text = f"train.sampling: {sampling} with difficulty.completions: 0, so that it is not known"
        yield Finding("problem", "train", text, "set difficulty.completions (8, say)")
    if not section.completions:
        return
    if section.column is not None:
        if section.column not in inputs.columns:
            has = ", ".join(inputs.columns) or "no column beside the prompt"
            text = f"difficulty.column: {section.column}; the data has {has}"
            yield Finding("problem", "difficulty", text, "correct it, or set it to null")
    elif inputs.reward.kind != "function":
        text = f"reward.kind {inputs.reward.kind} does not say which completions solve a prompt"
        hint = "set reward.kind: function, difficulty.column, or difficulty.completions: 0"
        yield Finding("problem", "difficulty", text, hint)
    elif inputs.reward.solved_above is None:
        text = "reward.solved_above is null, so that no completion is known to solve a prompt"
        yield Finding("problem", "difficulty", text, "set it, or difficulty.column")


def check_labels(inputs: Inputs) -> Iterator[Finding]:
    """Whether training prompts have the labels by which they are drawn."""
    unknown = inputs.labels.count(None)
    if inputs.train.sampling == "label" and unknown:
        text = (
            f"train.sampling: label, and {unknown} of {len(inputs.labels)} training prompts have "
        )
        yield Finding(
            "problem", "train", f"{text}none", "give every prompt one, or draw by density"
        )
    if inputs.train.redraw == "label" and not are_kinds(inputs.labels):
        text = "train.redraw: label needs labels that name kinds of prompts"
        yield Finding("problem", "train", text, "set train.redraw: decile")


def check_kinds(inputs: Inputs) -> Iterator[Finding]:
    """Whether the data has the kinds by which the density stage balances."""
    by = inputs.density.balance_by
    if by is None:
        return
    try:
        kinds = load_kinds(inputs.prompts, by)
        balance_kinds(np.ones(len(kinds)), kinds, 1.0, inputs.density.quotas)
    except IsodenseError as error:
        yield Finding("problem", "density", error.message, error.hint)


def check_heldout(inputs: Inputs) -> Iterator[Finding]:
    """Whether there are held-out prompts to evaluate on."""
    if inputs.heldout < 2:
        text = f"{inputs.heldout} of {inputs.count} prompts are held out; evaluating takes two"
        yield Finding("problem", "evaluate", text, "raise prompts.heldout, or add data")


def check_answer(inputs: Inputs) -> Iterator[Finding]:
    """Whether the data has the ground truth whose probability is evaluated."""
    name, known = inputs.evaluate.answer, inputs.columns
    if name not in (None, "label", *known):
        text = f"evaluate.answer names {name!r}, and the data has {', '.join(known) or 'none'}"
        yield Finding("problem", "evaluate", text, "correct the name, or set it to null")


def check_context(inputs: Inputs, context: int) -> Iterator[Finding]:
    """Whether the longest texts that the params allow fit into the policy's context."""
    train = inputs.train
    tokens = train.max_prompt_tokens + train.max_completion_tokens
    reads = f"the policy reads {context}"
    if tokens > context:
        text = f"train.max_prompt_tokens + max_completion_tokens = {tokens}, {reads}"
        yield Finding("problem", "train", text, f"let them sum to {context} at most")
    if inputs.reward.kind in FITTED and inputs.reward.max_tokens > context:
        text = f"reward.max_tokens = {inputs.reward.max_tokens}, {reads}"
        yield Finding("problem", "reward", text, f"set it to at most {context}")


def check_template(inputs: Inputs, tokenizer: Any) -> Iterator[Finding]:
    """Whether the policy's chat template takes every set of roles, and shows what it is given."""
    for (roles, tools), row in inputs.kinds.items():
        try:
            (ids,) = prompt_tokens(tokenizer, [row["prompt"]], [row.get("tools")])
        except ModelError as error:
            text = error.message.replace("prompt 0", "a prompt")
            hint = f"{error.hint}; leave such prompts out, or choose another policy"
            yield Finding("problem", "train", text, f"{hint} (embeddings and density need none)")
            continue
        if tools and ids == prompt_tokens(tokenizer, [row["prompt"]])[0]:
            text = "prompts come with tools, which the policy's chat template does not show"
            yield Finding("warning", "train", text, "choose a policy that is made for tools")
        yield from _left_out(roles, row["prompt"], tokenizer.decode(ids))


def _left_out(roles: tuple[str, ...], prompt: list[Any], text: str) -> Iterator[Finding]:
    """Yield a warning for a message that the rendered prompt lacks."""
    shown = "".join(text.split())
    for message in prompt:
        content = "".join((message.get("content") or "").split())
        if content not in shown and message["role"] != "assistant":  # thinking is left out
            text = f"the policy's chat template leaves out messages of role {message['role']}"
            text += f" (of a prompt of {', '.join(roles)})"
            yield Finding("warning", "train", text, "choose another policy, or change the prompts")
            return


def check_lengths(inputs: Inputs, tokenizer: Any, context: int | None) -> Iterator[Finding]:
    """How many prompts are too long for training and for evaluation."""
    tools = [row.get("tools") for row in inputs.rows]
    try:
        ids = prompt_tokens(tokenizer, [row["prompt"] for row in inputs.rows], tools)
    except ModelError as error:
        yield Finding("problem", "train", error.message, error.hint)
        return
    over: Counter[str] = Counter()
    total = Counter(row["split"] for row in inputs.rows)
    answer = inputs.evaluate.max_completion_tokens
    limits: dict[str, Callable[[int], bool]] = {
        "train": lambda length: length > inputs.train.max_prompt_tokens,
        "heldout": lambda length: context is not None and length + answer > context,
    }
    for row, tokens in zip(inputs.rows, ids, strict=True):
        over[row["split"]] += limits[row["split"]](len(tokens))
    if over["train"] > OFTEN * total["train"]:
        most = inputs.train.max_prompt_tokens
        share = f"{over['train']} of {total['train']} training prompts"
        text = f"{share} exceed train.max_prompt_tokens = {most} and would be skipped"
        few = total["train"] - over["train"] < FEWEST * total["train"]
        level: Literal["warning", "problem"] = "problem" if few else "warning"
        yield Finding(level, "train", text, "raise train.max_prompt_tokens")
    if over["heldout"]:
        share = f"{over['heldout']} of {total['heldout']} held-out prompts"
        text = f"{share} and evaluate.max_completion_tokens = {answer} exceed the policy's context"
        yield Finding("warning", "evaluate", f"{text}, {context}", "leave out such prompts")
