"""The reward that GRPO optimises: of four kinds, all checked on pairs that none was fitted on.

``head`` fits a linear probe on frozen features of the policy (:mod:`isodense.reward.linear_probe`),
``full`` trains all weights with TRL (:mod:`isodense.reward.trl`), ``model`` takes a finished reward
model and ``function`` the user's code (:mod:`isodense.reward.pretrained`). The pairs of held-out
prompts give the accuracy of each, beside that of length alone and chance
(:mod:`isodense.reward.scoring.check`).

What scores answers later (:mod:`isodense.reward.scoring`) imports none of these modules, and
training depends on it alone: changing how a reward is made does not rerun the training where the
reward stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.artifact import content_sha256, publishing, read_manifest, write_manifest
from isodense.pipeline.errors import TrainingError
from isodense.prompts.reader import PromptSet
from isodense.reward.base import Outcome, Task
from isodense.reward.pairs import margins, pair_weights, sides, split_pairs
from isodense.reward.params import RewardParams
from isodense.reward.scoring.check import accuracy, compare
from isodense.sampling.weights import Weights


def fit(
    pairs: Sequence[dict[str, Any]],
    prompts: PromptSet,
    policy: Path,
    params: RewardParams,
    seed: int,
    device: str,
    cache: Path,
    inputs: dict[str, str],
    out: Path,
    weights: Weights | None = None,
) -> dict[str, Any]:
    """Make the reward, write ``models/reward`` and return what the metrics report.

    Parameters
    ----------
    pairs : sequence of dict
        Rows of ``data/examples``.
    prompts : PromptSet
        Says which prompts are held out.
    policy : Path
        The policy's artifact.
    params : RewardParams
        The stage's section.
    seed : int
        Seed of draws and of the weights of a new head, where the kind has them.
    device : str
        A torch device.
    cache : Path
        Root of the cache, outside all outputs.
    inputs : dict
        Content hashes of what `pairs`, `prompts` and `weights` were read from, for the manifest.
    out : Path
        The reward's artifact.
    weights : Weights, optional
        Weights of the density stage, if training pairs are to count by them.

    Raises
    ------
    TrainingError
        If the pairs do not suffice, or the fit, the training or the function fails.
    ModelError
        If the policy or the reward model cannot give the scores asked for.
    ArtifactError
        If the weights belong to other prompts.
    """
    parts = split_pairs(pairs, prompts)
    train, heldout = parts["train"], parts["heldout"]
    shares = pair_weights(train, prompts, weights)
    task = Task(train, heldout, shares, prompts, policy, params, seed, device, cache)
    inputs = inputs | {"policy": content_sha256(read_manifest(policy, "models"))}
    with publishing(out) as staging:
        made = _maker(params.kind)(task, staging)
        if not np.isfinite(made.heldout).all():
            message = f"the scores of {len(heldout)} held-out pairs are not all finite"
            hint = "choose another model; of kind full, lower reward.full.learning_rate"
            raise TrainingError(message, hint)
        lengths = _length_margins(policy, heldout + train)
        found = compare(made.heldout, *np.split(lengths, [len(heldout)]))
        check = {name: found[name]["accuracy"] for name in ("heldout", "length_only")}
        fields = {"params": params.used(), "inputs": inputs, "check": check, **made.fields}
        write_manifest(staging, "reward", reward_kind=params.kind, **fields)
    if params.kind in ("head", "full"):
        found["heldout"]["log_loss"] = float(np.logaddexp(0, -made.heldout).mean())
    return {
        "train_pairs": len(train),
        "heldout_pairs": len(heldout),
        "unknown_pairs": len(parts["unknown"]),
        "truncated_pairs": made.truncated,
        **({} if made.train is None else {"train": accuracy(made.train)}),
        **found,
    }


def _maker(kind: str) -> Callable[[Task, Path], Outcome]:
    if kind == "head":
        from isodense.reward.linear_probe import make
    elif kind == "full":
        from isodense.reward.trl import make
    elif kind == "model":
        from isodense.reward.pretrained import make_model as make
    else:
        from isodense.reward.pretrained import make_function as make
    return make


def _length_margins(policy: Path, pairs: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return tokens of the chosen answer less those of the rejected one, by the policy's count."""
    from isodense.models.inference.policy import answer_tokens, load_tokenizer

    tokens = answer_tokens(load_tokenizer(policy), sides(pairs)[1])
    return margins(np.array([len(row) for row in tokens]))
