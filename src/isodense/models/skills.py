"""A policy of a million parameters that answers some of the requests of source ``skills``.

Made, not fetched: a Llama of four layers with a tokenizer of its own, supervised for a short while
on requests and their answers, which leaves it right about one time in five and so with much to
learn by trial and error. ``name`` is the distribution that it saw: ``even`` (every skill alike) or
``lopsided`` (then for a while the training set itself). ``version`` is the seed, and the data is
that of the same ``base.seed``: its held-out requests are not trained on.

It is trained on one thread of the CPU, so that a seed gives the same bytes on one machine type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isodense.pipeline.runtime import BaseParams, one_thread
from isodense.synthetic.requests import SkillsParams, draw_heldout, load, row

STANDARD = SkillsParams(
    requests=2400, exponent=1.0, duplicates=0.1, near_duplicates=0.15, heldout=40
)
VOCABULARY = 800
BATCH = 64
STEPS = 300  # on every skill alike
MORE_STEPS = 40  # on the lopsided set
RATE = 3e-3
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]


def make(name: str, seed: int, out: Path) -> None:
    """Make the policy and save it as a folder that ``transformers`` loads.

    Parameters
    ----------
    name : {"even", "lopsided"}
        What it is trained on.
    seed : int
        ``base.seed`` of its data.
    out : Path
        The folder.
    """
    base = BaseParams(seed=seed, device="cpu")
    even = even_rows(base, BATCH * STEPS)
    courses = [Course(even, STEPS, base.seed_of("models.even"))]
    if name == "lopsided":
        rows = [one for one in load(STANDARD, _rng(base)) if "heldout" not in one]
        courses.append(Course(rows, MORE_STEPS, base.seed_of("models.lopsided")))
    save_policy(courses, base.seed_of("models.skills"), out)


@dataclass(frozen=True)
class Course:
    """What a policy is supervised on.

    Attributes
    ----------
    rows : list of dict
        With ``prompt``, one message, and ``answer``.
    steps : int
        Of `BATCH` rows each.
    seed : int
        Of their order.
    """

    rows: list[dict[str, Any]]
    steps: int
    seed: int


def save_policy(courses: Sequence[Course], seed: int, out: Path) -> None:
    """Make a small Llama and its tokenizer, and save both.

    Parameters
    ----------
    courses : sequence of Course
        One after the other; the tokenizer is trained on the texts of the first.
    seed : int
        Of the first weights.
    out : Path
        The folder.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    tokenizer = _tokenizer(courses[0].rows)
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.06,  # at 0.02, that of large models, it learns nothing in 300 steps
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with one_thread():
        model = LlamaForCausalLM(config)
        for course in courses:
            _supervise(model, tokenizer, course.rows, course.steps, course.seed)
    model.config.use_cache = True  # which the trainer sets to False
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _rng(base: BaseParams) -> np.random.Generator:
    return base.rng("download.skills")


def even_rows(base: BaseParams, rows: int) -> list[dict[str, Any]]:
    """Return requests of all skills in turn, none of them held out."""
    _, drawn, _ = draw_heldout(STANDARD.heldout, _rng(base))
    return [row(one.skill, *one.draw()) for _ in range(-(-rows // len(drawn))) for one in drawn]


def _tokenizer(rows: list[dict[str, Any]]) -> Any:
    """Return a byte-level BPE tokenizer with single digits, trained on the rows."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|[^\W\d]+|."), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    fast.train_from_iterator(_texts(rows), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[1],
        additional_special_tokens=SPECIAL[2:],
        chat_template=TEMPLATE,
        model_max_length=256,
    )


def _texts(rows: list[dict[str, Any]]) -> Iterator[str]:
    for one in rows:
        yield from (one["prompt"][0]["content"], one["answer"])


def _supervise(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], steps: int, seed: int
) -> None:
    """Train on the answers by TRL's supervised trainer."""
    import tempfile

    import datasets
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    answered = [
        {
            "prompt": row["prompt"],
            "completion": [{"role": "assistant", "content": row["answer"]}],
        }
        for row in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            lr_scheduler_type="linear",
            warmup_steps=20,
            adam_beta2=0.99,
            seed=seed,
            data_seed=seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            logging_steps=40,
        )
        shown = datasets.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            data = datasets.Dataset.from_list(answered)
            SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer).train()
        finally:
            if shown:
                datasets.enable_progress_bars()
