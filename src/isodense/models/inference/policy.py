"""Reading a policy: a causal language model in a safetensors folder, with a chat template.

The input of a policy is the chat template applied to the prompt, with the generation prompt of the
assistant; an answer is the tokens of the text and the end-of-turn token. Reward, training and
evaluation all tokenize here, so that a conversation has the same tokens in each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError

from isodense.models.inference.load import (
    UNREADABLE,
    policy_class,
    read_config,
    read_model,
    read_tokenizer,
    require_whole,
)
from isodense.models.inference.prepacked import prepack
from isodense.models.inference.reader import require_undamaged
from isodense.pipeline.errors import ModelError
from isodense.prompts.conversations import Message

# What a template raises: by raise_exception, or where a message is not as it expects.
REFUSED = (TemplateError, TypeError, KeyError, AttributeError, ValueError)
ROW_TOOLS = "(messages and messages[0].tools)"
SET_TOOLS = "{%- set tools = messages[0].tools %}"
SHOWN = 60  # characters of a refused prompt in an error


def load_tokenizer(folder: str | Path) -> Any:
    """Load the tokenizer of a policy and check that it has all that a conversation needs.

    Raises
    ------
    ArtifactError
        If the folder is an artifact and damaged.
    ModelError
        If the folder holds no tokenizer, chat template or end-of-turn token.
    """
    require_undamaged(folder, weights=False)
    try:
        tokenizer = read_tokenizer(folder)
    except UNREADABLE as error:
        raise ModelError(f"{folder} has no tokenizer: {error}", "run `dvc repro models`") from None
    if tokenizer.chat_template is None:
        message = f"the tokenizer in {folder} has no chat template"
        raise ModelError(message, "choose an instruction-tuned policy in section models")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer in {folder} has no end-of-turn token (eos_token)")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if takes_specials_for_text(tokenizer):  # right for texts, and wrong for a chat template's
        tokenizer.split_special_tokens = False
    return tokenizer


def takes_specials_for_text(tokenizer: Any) -> bool:
    """Return whether a special token that is spelt out in a text stays text, as in nanochat.

    It is what the folder says (``split_special_tokens``): :func:`load_tokenizer` lets the tokenizer
    recognise them, as those that a chat template writes would be text otherwise.
    """
    return bool(tokenizer.init_kwargs.get("split_special_tokens", False))


def template_settings(tokenizer: Any) -> dict[str, Any]:
    """Return the keyword arguments that ``apply_chat_template`` needs beside the usual ones.

    With them, special tokens that are spelt out in a message stay text where they do in a text.
    """
    return {"sanitize_control_tokens": True} if takes_specials_for_text(tokenizer) else {}


def context_length(folder: str | Path) -> int | None:
    """Return the context length of the policy in tokens, or None if the config has none."""
    require_undamaged(folder, weights=False)
    config = read_config(folder).get_text_config()
    return getattr(config, "max_position_embeddings", None)


def load_policy(folder: str | Path, device: str = "cpu") -> Any:
    """Load the model of a policy, with language head, in float32.

    Parameters
    ----------
    folder : str or Path
        A safetensors folder.
    device : {"cpu", "cuda"}
        Device of the model.

    Returns
    -------
    transformers.PreTrainedModel
        In evaluation mode, on `device`.

    Raises
    ------
    ArtifactError
        If the folder is an artifact and damaged.
    ModelError
        If the folder is not a whole causal language model that transformers knows.
    """
    require_undamaged(folder)
    kind = policy_class(folder)
    try:
        model, missing = read_model(kind, folder, dtype=torch.float32)
    except UNREADABLE as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from None
    require_whole(folder, missing)
    return model.eval().to(device)


def load_for_inference(folder: str | Path, device: str = "cpu") -> Any:
    """Load a policy to generate with: on a CPU its linear layers run on oneDNN.

    Those have their weights laid out anew and are none of its ``state_dict``; see
    :func:`isodense.models.inference.prepacked.prepack`, and :func:`load_policy` for arguments and
    errors.
    """
    model = load_policy(folder, device)
    prepack(model)
    return model


def prompt_tokens(
    tokenizer: Any,
    prompts: Sequence[list[Message]],
    tools: Sequence[list[dict[str, Any]] | None] | None = None,
) -> list[list[int]]:
    """Return the token ids of each prompt in the chat template, with the generation prompt.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        Tokenizer of the policy.
    prompts : sequence of list of message
        Conversations that end with a user message, or with what a tool returned.
    tools : sequence of list of dict, optional
        Of each prompt, the JSON schemas of the tools that the policy may call, or None.

    Raises
    ------
    ModelError
        If the chat template refuses a prompt (an unknown role, say).
    """
    ids: list[list[int]] = []
    if tools is None or not any(tools):
        try:
            return _rendered(tokenizer, list(prompts), None)
        except REFUSED:
            tools = [None] * len(prompts)  # find out which prompt it is
    for number, (prompt, schemas) in enumerate(zip(prompts, tools, strict=True)):
        try:
            ids += _rendered(tokenizer, [prompt], schemas)
        except REFUSED as error:
            roles = ", ".join(message["role"] for message in prompt)
            message = f"the policy's chat template refuses prompt {number} ({roles}): {error}"
            raise ModelError(message, f"it begins {_beginning(prompt)!r}") from None
    return ids


def _rendered(
    tokenizer: Any, prompts: list[list[Message]], tools: list[dict[str, Any]] | None
) -> list[list[int]]:
    rendered = tokenizer.apply_chat_template(
        prompts,
        tools=tools or None,  # some templates announce tools for an empty list, too
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        tokenizer_kwargs={"verbose": False},  # prompts that are too long are the caller's to tell
        **template_settings(tokenizer),
    )
    ids: list[list[int]] = rendered["input_ids"]
    return ids


def _beginning(prompt: list[Message]) -> str:
    text = next((message["content"] for message in prompt if message["content"]), "")
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def with_row_tools(template: str | Mapping[str, str]) -> str:
    """Return a template that takes its tools from the key ``tools`` of the first message.

    For code that applies a template to many prompts at once, with the same tools for all, as TRL's
    trainers do. Tools that are passed win.

    Parameters
    ----------
    template : str or mapping of str to str
        Jinja source, or named templates, of which ``tool_use`` is that of prompts with tools.
    """
    named = {"default": template} if isinstance(template, str) else dict(template)
    plain = named.get("default", next(iter(named.values())))
    if "tool_use" not in named:
        return f"{{%- if not tools and {ROW_TOOLS} %}}{SET_TOOLS}{{%- endif %}}\n{plain}"
    tool_use = named["tool_use"]
    return (
        f"{{%- if tools or {ROW_TOOLS} %}}{{%- if not tools %}}{SET_TOOLS}{{%- endif %}}\n"
        f"{tool_use}{{% else %}}\n{plain}{{% endif %}}"
    )


def answer_tokens(tokenizer: Any, answers: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each answer, with the end-of-turn token."""
    settings = {"split_special_tokens": True} if takes_specials_for_text(tokenizer) else {}
    ids = tokenizer(list(answers), add_special_tokens=False, verbose=False, **settings)["input_ids"]
    return [[*row, tokenizer.eos_token_id] for row in ids]


def token_batches(
    costs: Sequence[int], budget: int, lengths: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Yield the row numbers of each batch, long rows first.

    Parameters
    ----------
    costs : sequence of int
        Tokens of each row.
    budget : int
        Most tokens per batch, padding included; a longer row is a batch by itself.
    lengths : sequence of int, optional
        Rows of different lengths are in different batches.

    Examples
    --------
    >>> list(token_batches([1, 4, 2, 3], budget=6))
    [[1], [3, 2], [0]]
    """
    batch: list[int] = []
    for row in sorted(range(len(costs)), key=lambda row: (-costs[row], row)):
        full = batch and (len(batch) + 1) * costs[batch[0]] > budget
        if batch and (full or (lengths and lengths[row] != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
