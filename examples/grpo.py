"""GRPO of TRL on the prompts and weights of another repository, at a tag.

python grpo.py <repository> <tag> <policy> <steps>
"""

import sys

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import isodense
from isodense.prompts.reader import load_prompts
from isodense.sampling.remote import fetch

repository, tag, policy, steps = *sys.argv[1:4], int(sys.argv[4])


def reward(completions: list[list[dict[str, str]]], **columns: list) -> list[float]:
    """Prefer answers of about a hundred characters: put yours here."""
    return [-abs(len(messages[-1]["content"]) - 100) / 100 for messages in completions]


config = GRPOConfig(
    output_dir="out",
    max_steps=steps,
    shuffle_dataset=False,  # the plan below is the order; TRL repeats each row into a group
    num_generations=4,  # completions in a group
    per_device_train_batch_size=8,  # completions, so two prompts
    max_completion_length=32,
    use_cpu=not torch.cuda.is_available(),
    bf16=torch.cuda.is_available(),
    logging_steps=1,
    log_completions=True,  # in out/completions
    report_to="none",
)
prompts = load_prompts(fetch(repository, "data/prompts", rev=tag)).split("train")
dataset = Dataset.from_list([{"id": row["id"], "prompt": row["prompt"]} for row in prompts.rows])
weights = isodense.load_weights(repository, rev=tag).align(dataset["id"])  # by id, not by position
draws = steps * config.generation_batch_size // config.num_generations  # on any number of GPUs
plan = dataset.select(isodense.draw(weights, draws, seed=0))

trainer = GRPOTrainer(policy, reward, args=config, train_dataset=plan)
trainer.train()
trainer.save_model("out/policy")
