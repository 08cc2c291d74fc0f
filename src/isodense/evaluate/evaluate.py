"""Did training help, and where: base against trained policy on the held-out prompts.

Both policies answer the same prompts, in the same batches, with the same random numbers; the reward
scores both, and the frozen encoder embeds both. :mod:`isodense.evaluate.metrics` measures what they
said.

The reward is the one that was trained on, so a gain says that training worked, not that people
would agree; ``completions.jsonl`` holds every answer for reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isodense.evaluate.ground_truth import ground_truth_log_probs
from isodense.evaluate.heldout import Heldout, sample
from isodense.evaluate.metrics import Answers, Comparison
from isodense.evaluate.params import EvaluateParams
from isodense.pipeline.artifact import content_sha256, read_manifest
from isodense.pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from isodense.embeddings.encoder import Encoder
    from isodense.models.inference.generation import Completion
    from isodense.reward.scoring.load import Reward

ENCODER_TOKENS = 256  # of a completion that the encoder reads; the last ones
ENCODER_MULTIPLE = 16  # lengths that encoders take


def evaluate(
    heldout: Heldout,
    policy: Path,
    trained: Path,
    reward: Path,
    encoder: Path,
    params: EvaluateParams,
    seed: int,
    device: str,
    cache: Path,
) -> Comparison:
    """Let both policies answer the held-out prompts, and score and embed the answers.

    Parameters
    ----------
    heldout : Heldout
        All held-out prompts.
    policy, trained, reward, encoder : Path
        Artifacts of the untrained policy, the trained one, the reward and the encoder.
    params : EvaluateParams
        The stage's section.
    seed : int
        Seed of draws at a temperature above 0.
    device : str
        A torch device.
    cache : Path
        Keeps the untrained policy's answers, which are the same in every experiment.

    Raises
    ------
    ArtifactError
        If `trained` was not trained from `policy`, or the reward belongs to another policy.
    DataError
        If ``evaluate.answer`` names no column with ground truths.
    """
    from isodense.models.inference.completions import (
        complete_once,
        completions_of,
        log_probs_of,
    )
    from isodense.reward.scoring.load import load_reward

    manifest = read_manifest(trained, "train")
    if manifest["inputs"]["policy"] != content_sha256(read_manifest(policy, "models")):
        message = f"{trained} was trained from another policy than {policy}"
        raise ArtifactError(message, "run `dvc repro train`")
    scores = load_reward(reward, policy, device)
    vectors = open_encoder(encoder, device)
    heldout = sample(heldout, params.max_prompts)
    rows, settings = heldout.prompts.rows, _settings(params, seed)
    likely = [_likely(folder, policy, rows, params, device) for folder in (policy, trained)]
    made = [
        complete_once(policy, rows, settings, device, cache),
        completions_of(trained, rows, settings, device),
    ]
    ratios = None
    if params.temperature > 0:  # of one completion per prompt: each costs two forward passes
        first = [group[:1] for group in made[1]]
        drawn = {"temperature": params.temperature, "batch_tokens": params.batch_tokens}
        under = [
            log_probs_of(folder, policy, rows, first, device, **drawn)[:, 0]
            for folder in (trained, policy)
        ]
        ratios = under[0] - under[1]
    above = read_manifest(reward, "reward").get("solved_above")
    base, after = (
        replace(judge(rows, completions, scores, vectors, above), answer_log_probs=under)
        for completions, under in zip(made, likely, strict=True)
    )
    return Comparison(heldout, base, after, ratios, changed=manifest.get("changed", True))


def _likely(
    folder: Path, policy: Path, rows: Sequence[dict[str, Any]], params: EvaluateParams, device: str
) -> np.ndarray | None:
    """Return how likely the ground truths are, where a column has them."""
    if params.answer is None:
        return None
    return ground_truth_log_probs(folder, policy, rows, params.answer, device, params.batch_tokens)


def _settings(params: EvaluateParams, seed: int) -> dict[str, Any]:
    """Return how both policies answer: arguments of `complete`."""
    return {
        "num_generations": params.num_generations,
        "max_tokens": params.max_completion_tokens,
        "temperature": params.temperature,
        "batch_tokens": params.batch_tokens,
        "seed": seed,
    }


def judge(
    rows: Sequence[dict[str, Any]],
    completions: list[list[Completion]],
    reward: Reward,
    encoder: Encoder,
    solved_above: float | None = None,
) -> Answers:
    """Score and embed a policy's completions.

    Parameters
    ----------
    rows : sequence of dict
        Rows of the prompts.
    completions : list of list of Completion
        As many of each prompt.
    reward : Reward
    encoder : Encoder
    solved_above : float, optional
        See :class:`isodense.evaluate.metrics.Answers`.
    """
    from isodense.reward.scoring.functions import FunctionReward

    flat = [made for group in completions for made in group]
    texts, shape = [made.text for made in flat], (len(completions), len(completions[0]))
    owners = [row for row in rows for _ in range(shape[1])]
    functions: dict[str, np.ndarray] = {}
    if isinstance(reward, FunctionReward):
        each = reward.each(owners, texts, [made.ids for made in flat])
        rewards = reward.total(each)
        functions = {
            one.label: values.reshape(shape)
            for one, values in zip(reward.functions, each.T, strict=True)
        }
    else:
        rewards = reward.score(owners, texts)
    # Some encoders have no token, hence no vector, for an empty text.
    vectors = encoder.encode([text if text.strip() else "." for text in texts])
    vectors = vectors.reshape(*shape, encoder.dim)
    return Answers(completions, rewards.reshape(shape), vectors, functions, solved_above)


def open_encoder(folder: Path, device: str) -> Encoder:
    """Load the encoder for completions: pooled as the folder says, of at most 256 tokens."""
    from isodense.embeddings.encoder import load_encoder
    from isodense.models.inference.policy import context_length

    context = context_length(folder) or ENCODER_TOKENS
    limit = min(ENCODER_TOKENS, context - context % ENCODER_MULTIPLE)
    return load_encoder(folder, max_tokens=limit, device=device)
