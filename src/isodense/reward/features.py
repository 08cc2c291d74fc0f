"""Features of kind ``head``, kept in blocks by :mod:`isodense.pipeline.cache`.

A run that was cut off computes only the blocks that are not there, and a fit with another penalty
or other weights computes none. A row's bytes do not depend on its batch
(:mod:`isodense.reward.scoring.hidden_states`), so neither do they on the blocks. What the fit
reads is a file beside them, in the order of the answers, of which only what is in use is in memory.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from isodense.models.inference.policy import load_tokenizer
from isodense.pipeline.artifact import load_array, read_manifest
from isodense.pipeline.cache import Entry, Store, cache_key, sequences_sha256
from isodense.pipeline.executor import compute, workers
from isodense.pipeline.tasks import Job, Task
from isodense.prompts.conversations import Message
from isodense.reward.params import RewardParams
from isodense.reward.scoring.hidden_states import Features, Tools, tokenize

BLOCK = 256  # answers
RECIPE = 4  # to be raised with any change to the features' values; see tests/recipes.py
LIBRARIES = ("torch", "transformers")

Text = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of a prompt and of an answer

log = logging.getLogger("isodense")


def load_features(
    prompts: Sequence[list[Message]],
    answers: Sequence[str],
    policy: Path,
    params: RewardParams,
    device: str,
    cache: Path,
    tools: Tools = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the feature of each answer, computing what is not in the cache.

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
    cache : Path
        The cache's root.
    tools : sequence of list of dict, optional
        See :func:`isodense.models.inference.policy.prompt_tokens`.

    Returns
    -------
    rows : memmap of shape (n, dim), float32
        In a file that ends with it.
    cut : ndarray of shape (n,), bool
        Whether the conversation is longer than ``params.max_tokens``.

    Raises
    ------
    ModelError
        If the policy cannot give the features asked for.
    """
    tokenizer, limit = load_tokenizer(policy), params.max_tokens
    asked, answered, cut = tokenize(tokenizer, prompts, answers, limit, tools)
    texts = [(tuple(a), tuple(b)) for a, b in zip(asked, answered, strict=True)]
    distinct = sorted(set(texts), key=lambda text: (-len(text[0]), text))  # long prompts first
    store = Store(cache, "reward-features")
    entry = store.entry(_key(distinct, policy, params, device))
    names = _in_blocks(distinct, policy, params, device, entry)
    position = {text: row for row, text in enumerate(distinct)}
    rows = _gathered(entry, names, np.array([position[text] for text in texts]))
    store.clean()
    return rows, np.array(cut)


def _gathered(entry: Entry, names: Sequence[str], positions: np.ndarray) -> np.ndarray:
    """Return the rows at these positions of all blocks, a block in memory at a time."""
    order = np.argsort(positions, kind="stable")
    borders = np.searchsorted(positions[order], np.arange(len(names) + 1) * BLOCK)
    first = load_array(entry.path(names[0]), mmap=True)
    with tempfile.TemporaryFile(dir=entry.folder) as file:
        shape = (len(positions), first.shape[1])
        rows = np.memmap(file, dtype=first.dtype, mode="w+", shape=shape)
    for number, name in enumerate(names):
        chosen = order[borders[number] : borders[number + 1]]
        rows[chosen] = load_array(entry.path(name))[positions[chosen] - number * BLOCK]
    return rows


def _key(texts: Sequence[Text], policy: Path, params: RewardParams, device: str) -> str:
    tokens = sequences_sha256(itertools.chain(*texts))
    return cache_key(
        inputs={"policy": read_manifest(policy, "models"), "texts": tokens},
        params={"layer": params.layer, "pooling": params.pooling, "block": BLOCK},
        code=RECIPE,
        libraries=LIBRARIES,
        device=device,
    )


class _Featuring:
    """What computes features in a worker."""

    def __init__(self, policy: Path, params: RewardParams, device: str) -> None:
        self._features = Features(
            policy, params.layer, params.pooling, params.max_tokens, params.batch_tokens, device
        )

    def __call__(self, texts: Sequence[Text]) -> np.ndarray:
        asked = [list(prompt) for prompt, _ in texts]
        return self._features.of_tokens(asked, [list(answer) for _, answer in texts])


def _in_blocks(
    texts: Sequence[Text], policy: Path, params: RewardParams, device: str, entry: Entry
) -> list[str]:
    """Return the names of the blocks in the cache, all of them there."""
    parts = [texts[start : start + BLOCK] for start in range(0, len(texts), BLOCK)]
    names = [f"{number:05d}.npy" for number in range(len(parts))]
    missing = [number for number, name in enumerate(names) if not entry.holds(name)]
    if missing:
        job = Job(_Featuring, {"policy": policy}, {"params": params, "device": device}, device)
        tasks = (Task(names[number], len(parts[number]), (parts[number],)) for number in missing)
        total = sum(len(parts[number]) for number in missing)
        with workers(job) as found:
            for task, block in compute(found, tasks, total, "answer"):
                with entry.writing(task.name) as path, path.open("wb") as stream:
                    np.save(stream, block)
    if len(missing) < len(parts):
        log.info(
            "%d of %d blocks computed, the rest were in %s", len(missing), len(parts), entry.folder
        )
    return names
