"""Did training help, and where: base against trained policy on the held-out prompts.

Both policies answer the same prompts, in the same batches, with the same random numbers; the reward
scores both, and the frozen encoder embeds both. :mod:`isodense.evaluate.metrics` measures what they
said.

The reward is the one that was trained on, so a gain says that training worked, not that people
would agree; ``completions.jsonl`` holds every answer for reading.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isodense.evaluate.metrics import Answers, Comparison, Heldout
from isodense.evaluate.params import EvaluateParams
from isodense.pipeline.artifact import (
    content_sha256,
    load_array,
    read_manifest,
    require_same_ids,
    write_json,
)
from isodense.pipeline.cache import Store, cache_key
from isodense.pipeline.errors import ArtifactError, TrainingError
from isodense.pipeline.params import as_dict
from isodense.prompts.conversations import Message
from isodense.prompts.reader import PromptSet
from isodense.sampling.weights import HELDOUT_DENSITY

if TYPE_CHECKING:
    from isodense.embeddings.encoder import Encoder
    from isodense.models.inference.generation import Completion

Score = Callable[[Sequence[dict[str, Any]], Sequence[str]], np.ndarray]

CODE = ("evaluate", "models/inference")  # packages that compute the completions
LIBRARIES = ("torch", "transformers")
COMPLETIONS = "completions.json"  # in the cache
ENCODER_TOKENS = 256  # of a completion that the encoder reads; the last ones
ENCODER_MULTIPLE = 16  # lengths that encoders take


def load_heldout(prompts: PromptSet, density: str | Path) -> Heldout:
    """Return the held-out prompts with their density.

    Parameters
    ----------
    prompts : PromptSet
        All prompts.
    density : str or Path
        The density artifact.

    Raises
    ------
    TrainingError
        If fewer than two prompts are held out, which give no interval.
    ArtifactError
        If the densities belong to other prompts.
    """
    heldout = prompts.split("heldout")
    if len(heldout) < 2:
        message = f"{len(heldout)} of {len(prompts)} prompts are held out; evaluating takes two"
        raise TrainingError(message, "raise prompts.heldout, or add data")
    manifest = read_manifest(density, "density")
    require_same_ids(prompts.split("train").ids_sha256, manifest, f"the weights in {density}")
    path = Path(density) / HELDOUT_DENSITY
    values = load_array(path)
    if values.shape != (len(heldout),) or not np.isfinite(values).all():
        message = f"{path} does not hold one finite number for each of {len(heldout)} prompts"
        raise ArtifactError(message, "run `dvc repro density`")
    return Heldout(heldout, values)


def sample(heldout: Heldout, size: int) -> Heldout:
    """Return at most `size` of the prompts, in order.

    Ids are uniform hashes, so the smallest are a fair sample, and one that appending data changes
    little.
    """
    chosen = np.sort(np.argsort(np.array(heldout.prompts.ids), kind="stable")[:size])
    rows = [heldout.prompts.rows[row] for row in chosen]
    return Heldout(PromptSet(rows), heldout.density[chosen])


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
    """
    from isodense.reward.scoring.load import load_reward

    manifest = read_manifest(trained, "train")
    if manifest["inputs"]["policy"] != content_sha256(read_manifest(policy, "models")):
        message = f"{trained} was trained from another policy than {policy}"
        raise ArtifactError(message, "run `dvc repro train`")
    score = load_reward(reward, policy, device).score
    vectors = open_encoder(encoder, device)
    heldout = sample(heldout, params.max_prompts)
    asked = [row["prompt"] for row in heldout.prompts.rows]
    made = [
        respond_once(policy, asked, params, seed, device, cache),
        respond(trained, asked, params, seed, device),
    ]
    ratios = None
    if params.temperature > 0:
        ratios = log_ratios(policy, trained, asked, made[1], params, device)
    rows = heldout.prompts.rows
    base, after = (judge(rows, completions, score, vectors) for completions in made)
    return Comparison(heldout, base, after, ratios)


def respond(
    policy: Path, asked: Sequence[list[Message]], params: EvaluateParams, seed: int, device: str
) -> list[list[Completion]]:
    """Return a policy's completions of each prompt.

    Parameters
    ----------
    policy : Path
        A model folder.
    asked : sequence of list of message
        The prompts.
    params : EvaluateParams
        The stage's section.
    seed : int
        Seed of draws at a temperature above 0.
    device : str
        A torch device.
    """
    from isodense.models.inference.generation import complete
    from isodense.models.inference.policy import load_policy, load_tokenizer

    with _bar(f"answers of {policy}", len(asked)) as update:
        return complete(
            load_policy(policy, device),
            load_tokenizer(policy),
            asked,
            num_generations=params.num_generations,
            max_tokens=params.max_completion_tokens,
            temperature=params.temperature,
            batch_tokens=params.batch_tokens,
            seed=seed,
            on_batch=update,
        )


def respond_once(
    policy: Path,
    asked: Sequence[list[Message]],
    params: EvaluateParams,
    seed: int,
    device: str,
    cache: Path,
) -> list[list[Completion]]:
    """Do as :func:`respond` does, unless the same was done before and is in `cache`."""
    from isodense.models.inference.generation import Completion

    store = Store(cache, "completions")
    key = cache_key(
        inputs={"policy": read_manifest(policy, "models"), "prompts": list(asked)},
        params={**as_dict(params), "seed": seed},
        code=CODE,
        libraries=LIBRARIES,
        device=device,
    )
    entry = store.entry(key)
    if not entry.holds(COMPLETIONS):
        made = respond(policy, asked, params, seed, device)
        with entry.writing(COMPLETIONS) as path:
            write_json(path, [[asdict(completion) for completion in group] for group in made])
    groups = json.loads(entry.path(COMPLETIONS).read_text(encoding="utf-8"))
    store.clean()
    return [
        [Completion(**fields | {"ids": tuple(fields["ids"])}) for fields in group]
        for group in groups
    ]


def log_ratios(
    policy: Path,
    trained: Path,
    asked: Sequence[list[Message]],
    completions: Sequence[Sequence[Completion]],
    params: EvaluateParams,
    device: str,
) -> np.ndarray:
    """Return how much likelier each prompt's first completion is under `trained` than `policy`.

    Both are taken at the temperature of the draws. One completion per prompt is enough: what is
    sought is a mean over prompts, and each costs another forward pass of both policies.

    Returns
    -------
    ndarray of shape (n_prompts,), float64
        Differences of log-probabilities, in nats.
    """
    from isodense.models.inference.generation import log_probs
    from isodense.models.inference.policy import load_policy, load_tokenizer

    first = [group[:1] for group in completions]
    found = []
    for folder in (trained, policy):
        with _bar(f"likelihood under {folder}", len(asked)) as update:
            found.append(
                log_probs(
                    load_policy(folder, device),
                    load_tokenizer(policy),
                    asked,
                    first,
                    temperature=params.temperature,
                    batch_tokens=params.batch_tokens,
                    on_batch=update,
                )[:, 0]
            )
    return found[0] - found[1]


def judge(
    rows: Sequence[dict[str, Any]],
    completions: list[list[Completion]],
    score: Score,
    encoder: Encoder,
) -> Answers:
    """Score and embed a policy's completions.

    Parameters
    ----------
    rows : sequence of dict
        Rows of the prompts.
    completions : list of list of Completion
        As many of each prompt.
    score : callable
        The reward: ``(rows, completions) -> ndarray of shape (n,)``.
    encoder : Encoder
    """
    texts = [made.text for group in completions for made in group]
    copies = len(completions[0])
    rewards = score([row for row in rows for _ in range(copies)], texts)
    # Some encoders have no token, hence no vector, for an empty text.
    vectors = encoder.encode([text if text.strip() else "." for text in texts])
    shape = (len(completions), copies)
    return Answers(completions, rewards.reshape(shape), vectors.reshape(*shape, encoder.dim))


def open_encoder(folder: Path, device: str) -> Encoder:
    """Load the encoder for completions: pooled as the folder says, of at most 256 tokens."""
    from isodense.embeddings.encoder import load_encoder
    from isodense.models.inference.policy import context_length

    context = context_length(folder) or ENCODER_TOKENS
    limit = min(ENCODER_TOKENS, context - context % ENCODER_MULTIPLE)
    return load_encoder(folder, max_tokens=limit, device=device)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], Any]]:
    from tqdm import tqdm

    from isodense.pipeline.stage import progress

    with tqdm(total=total, unit="prompt", desc=title, **progress()) as bar:
        yield bar.update
