"""Tiny real models for tests: built in a second, loaded by transformers like any other folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from isodense.pipeline.artifact import write_manifest
from tests.damage import reseal

CORPUS = [
    "What is the capital of France? The capital of France is Paris.",
    "How do I boil an egg? Put it in boiling water for eight minutes.",
    "Name three colours. Red, green and blue are three colours.",
    "Tell me a joke about cats. Why did the cat sit on the computer? To watch the mouse.",
    "system user assistant You are a helpful assistant.",
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
torch.set_num_threads(1)  # more only wait for each other at this size

WORDS = "red green blue paris france egg water minutes cat mouse joke capital".split()


def tokenizer(vocabulary: int = 300) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer in the ChatML format of SmolLM2."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        bos_token="<|im_start|>",
        chat_template=TEMPLATE,
    )


def policy(folder: Path, layers: int = 3, hidden: int = 32, seed: int = 0) -> Path:
    """Save a tiny Llama with its tokenizer and the manifest of the models stage."""
    folder.mkdir(parents=True)
    made = tokenizer()
    made.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(made),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=made.bos_token_id,
        eos_token_id=made.eos_token_id,
        pad_token_id=made.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    write_manifest(folder, "models", role="policy")
    return folder


def user(text: str) -> list[dict[str, str]]:
    """Return a conversation of one user message."""
    return [{"role": "user", "content": text}]


def encoder(folder: Path, pooling: str = "mean", seed: int = 0) -> Path:
    """Save a tiny BERT as a sentence-transformers folder with the manifest of the models stage."""
    folder.mkdir(parents=True)
    made = tokenizer()
    made.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(made),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=made.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    types = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{types}Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{types}Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    key = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}[pooling]
    settings = {"word_embedding_dimension": 32, f"pooling_mode_{key}": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    write_manifest(folder, "models", role="encoder")
    return folder


def texts(count: int) -> list[str]:
    """Return different texts of mixed lengths."""
    return [" ".join(WORDS[: i % 11 + 1]) + "?" * (i % 7) + f" {i}" for i in range(count)]


def prompts(folder: Path, count: int, heldout: float = 0.2) -> Path:
    """Publish that many prompts of mixed lengths as the prompts stage does."""
    from tests.tables import publish_prompts

    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    pairs = [{"prompt": user(text), **answers, "source": "test"} for text in texts(count)]
    publish_prompts(pairs, folder, heldout)
    return folder


def vision_policy(folder: Path) -> Path:
    """Save a tiny Qwen3.5 that also sees: text config nested, two kinds of attention, vision."""
    made = tokenizer()
    text = {
        "vocab_size": len(made) + 8,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "max_position_embeddings": 256,
        "pad_token_id": made.pad_token_id,
        "eos_token_id": made.eos_token_id,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 8,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
    }
    places = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {name: len(made) + number for number, name in enumerate(places)}
    config = Qwen3_5Config(text_config=text, vision_config=vision, **ids)
    folder.mkdir(parents=True)
    made.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen3_5ForConditionalGeneration(config).save_pretrained(folder)
    write_manifest(folder, "models", role="policy")
    return folder


def add_weight(folder: Path, name: str) -> None:
    """Add a tensor to the weights of a model folder."""
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name: torch.ones(2)}, path, metadata={"format": "pt"})
    if (folder / "manifest.json").is_file():
        reseal(folder)


def edit(path: Path, **fields: object) -> None:
    """Set fields of a JSON file, which need not exist; an artifact around it stays whole."""
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | fields))
    for folder in path.parents[:2]:
        if (folder / "manifest.json").is_file():
            reseal(folder)
            break
