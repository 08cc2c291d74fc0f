"""Features of kind ``head``, kept in blocks in a folder of :mod:`isodense.pipeline.cache`.

A run that was cut off computes only the blocks that are not there, and a fit with another penalty
or other weights computes none. A row's bytes do not depend on its batch
(:class:`isodense.reward.load.Features`), so neither do they on the blocks.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from isodense.models.policy import load_tokenizer
from isodense.pipeline.artifact import load_array, replacing
from isodense.pipeline.cache import folder_name, mark_used
from isodense.pipeline.errors import ArtifactError
from isodense.pipeline.stage import progress
from isodense.prompts.conversations import Message
from isodense.reward.load import Features, tokenize
from isodense.reward.params import RewardParams

BLOCK = 256  # answers

Text = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of a prompt and of an answer

log = logging.getLogger("isodense")


def load_features(
    prompts: Sequence[list[Message]],
    answers: Sequence[str],
    policy: Path,
    params: RewardParams,
    device: str,
    store: Path,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the feature of each answer, computing what is not in the store.

    Parameters
    ----------
    prompts : sequence of list of message
        Conversations that end with the user's turn.
    answers : sequence of str
        One per prompt; one that occurs twice is computed once.
    policy : Path
        The policy's artifact.
    params : RewardParams
        Says which features.
    device : str
        A torch device.
    store : Path
        Folder of the folders of blocks.

    Returns
    -------
    rows : ndarray of shape (n, dim), float32
    cut : ndarray of shape (n,), bool
        Whether the conversation is longer than ``params.max_tokens``.

    Raises
    ------
    ModelError
        If the policy cannot give the features asked for.
    """
    asked, answered, cut = tokenize(load_tokenizer(policy), prompts, answers, params.max_tokens)
    texts = [(tuple(a), tuple(b)) for a, b in zip(asked, answered, strict=True)]
    distinct = sorted(set(texts), key=lambda text: (-len(text[0]), text))  # long prompts first
    run = store / folder_name(policy, _settings(params, device), itertools.chain(*distinct))
    rows = _in_blocks(distinct, policy, params, device, run)
    place = {text: row for row, text in enumerate(distinct)}
    mark_used(run)
    return rows[[place[text] for text in texts]], np.array(cut)


def _settings(params: RewardParams, device: str) -> dict[str, Any]:
    return {"layer": params.layer, "pooling": params.pooling, "device": device}


def _in_blocks(
    texts: Sequence[Text], policy: Path, params: RewardParams, device: str, run: Path
) -> np.ndarray:
    parts = [texts[start : start + BLOCK] for start in range(0, len(texts), BLOCK)]
    paths = [run / f"{number:05d}.npy" for number in range(len(parts))]
    missing = [number for number, path in enumerate(paths) if not _sound(path, len(parts[number]))]
    if missing:
        features = Features(
            policy, params.layer, params.pooling, params.max_tokens, params.batch_tokens, device
        )
        total = sum(len(parts[number]) for number in missing)
        with tqdm(total=total, unit="answer", **progress()) as bar:
            for number in missing:
                asked = [list(prompt) for prompt, _ in parts[number]]
                answered = [list(answer) for _, answer in parts[number]]
                _keep(paths[number], features.of_tokens(asked, answered, bar.update))
    if len(missing) < len(parts):
        log.info("%d of %d blocks computed, the rest were in %s", len(missing), len(parts), run)
    return np.concatenate([load_array(path) for path in paths])


def _sound(path: Path, rows: int) -> bool:
    """Return whether a finished block is there and whole."""
    try:
        block = load_array(path)
    except ArtifactError:
        return False
    shaped = block.ndim == 2 and len(block) == rows and block.dtype == np.float32
    return shaped and bool(np.isfinite(block).all())


def _keep(path: Path, block: np.ndarray) -> None:
    """Write a block whole or not at all, also where experiments run side by side."""
    with replacing(path) as scratch, scratch.open("wb") as stream:
        np.save(stream, block)
