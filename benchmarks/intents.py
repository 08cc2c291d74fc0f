"""Does sampling by density help on real requests? Ten intents of HWU64, as DVC experiments.

Usage
-----
python benchmarks/intents.py --rows hwu64.jsonl.gz
python benchmarks/intents.py --rows hwu64.jsonl.gz --seeds 2 --steps 4 --out /tmp/smallest

`--rows` is yours to bring: JSONL of {"text", "label"}, one row for each distinct text. HWU64 is
10,018 requests to a home assistant of 64 intents, at most 194 of each, from the folder
CrossValidation of github.com/xliuhw/NLU-Evaluation-Data (Liu and others, 2019, arXiv 1903.05566),
licence CC BY 4.0. Nothing of it is part of this project.

Each seed draws ten intents that have 190 requests or more, and how common each is: the r-th has
110 / r training prompts, so 110 to 11. Held out are 40 other requests of each. The policy answers
with the number of the intent, 0 to 9, one token, and the reward is exact match. The policy is a
small Llama of the seed's own, like that of the skills: supervised on the other 54 intents, whose
names it answers, then shortly on 2 more requests of each of the ten, so that it answers with a
number and is often wrong. The measure that decides is named here, before the runs: the probability
of the right number, mean over the ten. Seeds begin at 310; the task, the rate and
the steps were chosen with uniform sampling on seed 390.

Requests and policies are kept in ``~/.cache/isodense/intents``, where all experiments find them.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from isodense.experiments.compare import compare
from isodense.experiments.differences import describe
from isodense.models import skills
from isodense.pipeline.artifact import publishing
from isodense.pipeline.runtime import BaseParams

ARMS = ["uniform", "density", "oracle", "inverted"]
MEASURE = "answer_probability_over_labels"
MADE = "~/.cache/isodense/intents"
INTENTS = 10
LEAST = 190  # requests of an intent that can be drawn
TOP = 110  # training prompts of the commonest
HELDOUT = 40
FEW = 2  # requests of each intent that the policy is supervised on
STEPS = 80  # of supervision on the other intents
FEW_STEPS = 20  # on the few
SETTINGS = (
    "base.seed=31{seed}",
    "download.sources=[local]",
    "models.policy.source=folder",
    "models.policy.version=null",
    "models.policy.sha256=null",
    "models.policy.path=null",
    "prompts.heldout=0.0",  # the file says what is held out
    "reward.kind=function",
    "reward.functions=['isodense.reward.answers:exact_match']",
    "reward.check.max_completion_tokens=2",
    "train.prompts_per_step=8",
    "train.num_generations=8",
    "train.completions_per_pass=64",
    "train.max_prompt_tokens=96",
    "train.max_completion_tokens=2",
    "train.save_steps=1000",
    "train.lora=null",
    "evaluate.max_prompts=null",
    "evaluate.answer=answer",
    "evaluate.num_generations=2",
    "evaluate.max_completion_tokens=2",
)

Rows = list[dict[str, Any]]


def main() -> None:
    """Make what is missing, run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, required=True, help="JSONL, plain or as .gz")
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", default="3.0e-4")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/effect/intents"))
    args = parser.parse_args()
    made = f"{MADE}/{recipe(args.rows)}"
    settings = [
        *SETTINGS,
        f"download.local.files=['{made}/31{{seed}}/train.jsonl']",
        f"download.local.heldout=['{made}/31{{seed}}/heldout.jsonl']",
        f"models.policy.name='{made}/31{{seed}}/policy'",
        f"train.max_steps={args.steps}",
        f"train.learning_rate={args.rate}",
    ]
    with ProcessPoolExecutor(args.jobs) as pool:
        seeds = [int(f"31{seed}") for seed in range(args.seeds)]
        list(pool.map(partial(make, args.rows, Path(made).expanduser()), seeds))
    rows = compare(args.arms, args.seeds, settings, args.out, args.jobs, MEASURE)
    sys.stdout.write(describe(rows))


def recipe(path: Path) -> str:
    """Return a hash of all that shapes requests and policies: the rows, this file and `skills`."""
    digest = hashlib.sha256()
    for file in (path, Path(__file__), Path(skills.__file__)):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def make(path: Path, made: Path, seed: int) -> None:
    """Write the requests and the policy of a seed to a folder of its own, if it is not there."""
    out = made / str(seed)
    if out.exists():
        return
    base = BaseParams(seed=seed, device="cpu")
    train, heldout, few, others = draw(load(path), base.rng("benchmarks.intents"))
    with publishing(out) as staging:
        for name, rows in (("train", train), ("heldout", heldout)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (staging / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        courses = [
            skills.Course(conversations(others), STEPS, base.seed_of("models.intents.others")),
            skills.Course(conversations(few), FEW_STEPS, base.seed_of("models.intents.few")),
        ]
        skills.save_policy(courses, base.seed_of("models.intents"), staging / "policy")


def load(path: Path) -> Rows:
    """Return the rows of the file."""
    read: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with read(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def draw(rows: Rows, rng: np.random.Generator) -> tuple[Rows, Rows, Rows, Rows]:
    """Return training prompts, held-out ones, the few to supervise on, and all other intents.

    Parameters
    ----------
    rows : list of dict
        ``text`` and ``label`` of each.
    rng : Generator
        Draws the ten intents, which of them are common, and the requests.
    """
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(row["label"], []).append(row["text"])
    able = sorted(label for label, found in texts.items() if len(found) >= LEAST)
    ranked = [str(label) for label in rng.choice(able, INTENTS, replace=False)]
    numbers = {label: str(number) for number, label in enumerate(sorted(ranked))}
    parts: tuple[Rows, Rows, Rows] = ([], [], [])
    for rank, label in enumerate(ranked, 1):
        order = rng.permutation(texts[label])
        sizes = [TOP // rank, HELDOUT, FEW]
        for part, found in zip(parts, np.split(order, np.cumsum(sizes)), strict=False):
            part += [asked(str(text), label, numbers[label]) for text in found]
    train, heldout, few = parts
    others = [
        asked(text, label, label.replace("_", " "))
        for label in sorted(texts.keys() - numbers.keys())
        for text in texts[label]
    ]
    return [train[row] for row in rng.permutation(len(train))], heldout, few, others


def asked(text: str, label: str, answer: str) -> dict[str, Any]:
    """Return a row of the data."""
    return {"prompt": text, "label": label, "answer": answer}


def conversations(rows: Rows) -> Rows:
    """Return rows with each prompt as a list of messages."""
    return [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]


if __name__ == "__main__":
    main()
